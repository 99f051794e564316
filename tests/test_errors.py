"""Errors in one line, whatever other libraries and files put into them."""

import pytest

from sde_onnx.errors import InputError, OutputError, counted, first_line, one_line, shown_size


@pytest.mark.parametrize(("error", "said"), [
    (ValueError("one\ntwo"), "one"), (ValueError(" \n"), "ValueError"), (KeyError("key"), "'key'"),
    (FileNotFoundError(2, "No such file or directory", "f"), "No such file or directory"), (OSError("odd"), "odd"),
    (ValueError("x" * 300), "x" * 200),
], ids=repr)
def test_anothers_error_is_its_first_line(error, said):
    assert first_line(error) == said


def test_a_value_is_not_all_of_a_long_one():
    assert one_line("a\n b") == repr("a\n b")
    assert one_line(list(range(100))) == repr(list(range(100)))[:77] + "..."
    assert len(one_line("x" * 78)) == 80
    assert one_line(10**5000) == "a very large int"


def test_counts_and_sizes_are_for_people():
    assert [counted(count, "image") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [shown_size(size) for size in (101, 41_900, 100_000, 2_247_000_000)] == [
        "0.1 kB", "41.9 kB", "0.1 MB", "2,247.0 MB"]


@pytest.mark.parametrize("kind", [InputError, OutputError])
def test_a_message_is_one_line_whatever_is_in_it(kind):
    spaces = "é\u3000\u202f"   # which names have
    assert str(kind(f"a\nb\x1b[2J\udcff\u2028\u202e {spaces}")) == r"a\nb\x1b[2J\udcff\u2028\u202e " + spaces

import io
import sys

import numpy as np
import pytest

from sde_onnx import files
from sde_onnx.errors import OutputError, first_line
from sde_onnx.files import UNREADABLE, array_of, arrays_of, check_writable, replacing


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "result"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_no_folder_that_it_made(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(RuntimeError), replacing(tmp_path / "old" / "new" / "newer" / "result"):
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]
    with replacing(tmp_path / "old" / "new" / "result") as temporary:
        temporary.touch()
    assert (tmp_path / "old" / "new" / "result").exists()


def test_a_file_in_the_place_of_its_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="below cannot be written"), replacing(tmp_path / "file" / "below"):
        pass


def test_outputs_are_checked_before_the_work(tmp_path):
    path = tmp_path / "new" / "result"
    check_writable(path, force=False)
    assert not path.parent.exists()   # nothing is made before the work is done
    path.parent.mkdir()
    path.write_text("x")
    with pytest.raises(OutputError, match="exists already"):
        check_writable(path, force=False)
    check_writable(path, force=True)
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path, force=True)
    for nowhere in (path / "below", tmp_path / "newer" / ("n" * 256) / "result", tmp_path / "newer" / ("n" * 256)):
        with pytest.raises(OutputError, match=f"{nowhere.name} cannot be written"):
            check_writable(nowhere, force=False)


def saved(save, *arguments, **arrays):
    file = io.BytesIO()
    save(file, *arguments, **arrays)
    return file.getvalue()


ONE, OBJECTS = np.zeros(3), np.array([None])


@pytest.mark.parametrize(("read", "content", "said"), [
    (arrays_of, b"no arrays", "it holds no arrays of numbers"),
    (arrays_of, saved(np.savez, a=OBJECTS), "it holds no arrays of numbers"),
    (arrays_of, saved(np.save, ONE), "it is a single array, expected a .npz"),
    (array_of, b"no array", "it holds no arrays of numbers"),
    (array_of, saved(np.save, OBJECTS), "it holds no arrays of numbers"),
    (array_of, saved(np.savez, a=ONE), "it is a .npz, expected a single array"),
], ids=["text", "objects", "npy", "array: text", "array: objects", "array: npz"])
def test_what_holds_no_arrays_is_told_without_advice_to_load_it_all_the_same(read, content, said, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UNREADABLE) as error:
        read(tmp_path / "file")
    assert first_line(error.value) == said


def test_arrays_are_found_by_their_names(tmp_path):
    np.savez(tmp_path / "a.npz", a=ONE, b=ONE + 1, c=ONE + 2)
    assert {name: array[0] for name, array in arrays_of(tmp_path / "a.npz").items()} == {"a": 0, "b": 1, "c": 2}
    assert list(arrays_of(tmp_path / "a.npz", "b", optional=("c", "d"))) == ["b", "c"]
    with pytest.raises(ValueError, match="it holds no array `d`"):
        arrays_of(tmp_path / "a.npz", "b", "d")
    np.save(tmp_path / "a.npy", ONE)
    np.testing.assert_array_equal(array_of(tmp_path / "a.npy"), ONE)


@pytest.mark.skipif(sys.platform == "win32", reason="links and their errors")
def test_a_loop_of_links_is_told(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OutputError, match="x cannot be written: Too many levels of symbolic links"):
        check_writable(tmp_path / "a" / "x", force=False, inputs=[tmp_path / "b"])


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_not_read(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**20), b=ONE)
    assert arrays_of(tmp_path / "a.npz")["a"].sum() == 0
    monkeypatch.setattr(files, "LARGE", 2**20)
    with pytest.raises(ValueError, match=r"its arrays take \d\.\d kB and unpack to 8.4 MB: save them with"):
        arrays_of(tmp_path / "a.npz")
    assert arrays_of(tmp_path / "a.npz", "b")["b"].sum() == 0   # of what is not read it is no matter

"""``encode``, ``decode`` and ``edit`` go on where they were stopped."""

import itertools
import pkgutil
from pathlib import Path

import commands
import numpy as np
import pytest

import sde_onnx
from sde_onnx.cli.unfinished import UnfinishedRun
from sde_onnx.errors import OutputError
from sde_onnx.images import load_png, save_png

SETTINGS, SHAPE = {"steps": 4}, (5, 3, 2, 2)
ARRAYS = np.arange(60, dtype=np.float32).reshape(SHAPE)


class StoppedError(Exception):
    """In the place of Ctrl-C."""


def batches(left, *, until=5):
    """The arrays that are left, two at a time, and no more than some."""
    for first in range(left.start, 5, 2):
        if first >= until:
            raise StoppedError
        yield ARRAYS[first : min(first + 2, 5)]


def stopped(place, settings=SETTINGS, until=4):
    run = UnfinishedRun(place, settings, SHAPE)
    with pytest.raises(StoppedError):
        run.complete(lambda left: batches(left, until=until))


def held(folder):
    """The files of a folder and below it, each with what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_arrays_that_are_there_are_not_made_again(tmp_path, capsys):
    place, asked = tmp_path / "out", []
    stopped(place)
    assert capsys.readouterr().out == ""
    run = UnfinishedRun(place, SETTINGS, SHAPE)
    assert not run.began_to_write
    np.testing.assert_array_equal(run.complete(lambda left: asked.append(left) or batches(left)), ARRAYS)
    assert asked == [slice(4, None)]
    assert capsys.readouterr().out == "4 of 5 images were there already\n"
    again = UnfinishedRun(place, SETTINGS, SHAPE)
    assert again.began_to_write
    np.testing.assert_array_equal(again.complete(pytest.fail), ARRAYS)
    again.remove()
    assert list(place.iterdir()) == []
    run.remove()   # of a second process


def test_runs_of_other_settings_have_arrays_of_their_own(tmp_path):
    stopped(tmp_path)
    UnfinishedRun(tmp_path, {"steps": 5}, SHAPE).complete(lambda left: -ARRAYS[None, left].reshape(1, *SHAPE))
    assert len(list(tmp_path.iterdir())) == 2
    np.testing.assert_array_equal(UnfinishedRun(tmp_path, SETTINGS, SHAPE).complete(batches), ARRAYS)
    np.testing.assert_array_equal(UnfinishedRun(tmp_path, {"steps": 5}, SHAPE).complete(pytest.fail), -ARRAYS)


def test_what_a_second_process_goes_on_with_after_the_first_has_ended(tmp_path):
    first, second = (UnfinishedRun(tmp_path, SETTINGS, SHAPE) for _ in range(2))

    def slowly(left):
        made = batches(left)
        yield next(made)
        first.complete(batches)
        first.remove()
        yield from made

    np.testing.assert_array_equal(second.complete(slowly), ARRAYS)
    np.testing.assert_array_equal(UnfinishedRun(tmp_path, SETTINGS, SHAPE).complete(batches), ARRAYS)


def test_a_removal_that_was_stopped_is_made_good(tmp_path, monkeypatch):
    run, unlink, removed = UnfinishedRun(tmp_path, SETTINGS, SHAPE), Path.unlink, []
    run.complete(batches)

    def until_the_third(path, missing_ok):
        if len(removed) == 2:
            raise StoppedError
        removed.append(path.name)
        unlink(path)

    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(Path, "unlink", until_the_third)
        run.remove()
    assert "all" not in removed
    again = UnfinishedRun(tmp_path, SETTINGS, SHAPE)
    assert again.began_to_write
    np.testing.assert_array_equal(again.complete(batches), ARRAYS)
    again.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"no array", np.zeros((2, 3, 2, 2)), np.zeros((2, 3, 2), np.float32),
                                     np.zeros((6, 3, 2, 2), np.float32), np.zeros((0, 3, 2, 2), np.float32),
                                     np.full((2, 3, 2, 2), np.nan, np.float32)],
                         ids=["bytes", "float64", "shape", "too many", "none", "NaN"])
def test_damaged_arrays_are_refused(content, tmp_path):
    stopped(tmp_path)
    path = next(tmp_path.glob(".unfinished-*/000000.npy"))
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(OutputError, match=r"000000.npy is damaged \(.*\): remove it"):
        UnfinishedRun(tmp_path, SETTINGS, SHAPE)


def test_what_is_no_folder_is_refused(tmp_path):
    stopped(tmp_path)
    [folder] = tmp_path.iterdir()
    folder.rename(tmp_path / "elsewhere")
    for make in (lambda: folder.symlink_to(tmp_path / "elsewhere"), lambda: folder.write_text("")):
        make()
        with pytest.raises(OutputError, match="is no folder: remove it"):
            UnfinishedRun(tmp_path, SETTINGS, SHAPE)
        folder.unlink()


@pytest.fixture(scope="module")
def labelled_codes(pictures, labelled_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("codes") / "codes.npz"
    commands.done("encode", labelled_file, pictures, "--label", "2,7", "--steps", 4, "--provider", "cpu", "-o", path)
    return path


@pytest.fixture
def command(request):
    """A command and its output's name; what is named as a fixture is its value."""
    words, output = request.param
    values = [request.getfixturevalue(word) if word in FIXTURES else word for word in words]
    return [*values, "--batch-size", 1, "--provider", "cpu", "-o"], output


FIXTURES = ("pictures", "codes", "labelled_file", "labelled_codes")
ENCODE = (("encode", "pictures", "--steps", 4), "c.npz")
DECODE = (("decode", "codes", "--steps", 4), "d")
EDIT = (("edit", "pictures", "--sigma", 0.5, "--steps", 4, "--seeds", "0,3"), "e")
TOLERANCES = [("--steps", 5), ("--rtol", 1e-3), ("--atol", 1e-3)]   # which nothing depends on beside --steps
LABELLED = [(("encode", "labelled_file", "pictures", "--label", "2,7", "--steps", 4), "c.npz"),
            (("decode", "labelled_file", "labelled_codes", "--steps", 4), "d"),
            (("edit", "labelled_file", "pictures", "--label", "2,7", "--seeds", "0,3", "--sigma", 0.5, "--steps", 4),
             "e")]


def named(commands_of):
    return [pytest.param(command, id=" ".join(map(str, command[0][:1]))) for command in commands_of]


def stopping(monkeypatch, target, times):
    """Makes a function raise KeyboardInterrupt from some call on."""
    place, name = target
    function, count = getattr(place, name), itertools.count()

    def stopped_function(*arguments, **options):
        if next(count) >= times:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    monkeypatch.setattr(place, name, stopped_function)


def aborted(command, output):
    result = commands.run(*command, output)
    assert result.exit_code == 1 and "Aborted!" in result.output, result.output


@pytest.mark.parametrize("command", [*named([ENCODE, DECODE, EDIT]),
                                     *(pytest.param(command, marks=pytest.mark.thorough, id=f"{command[0][0]} labelled")
                                       for command in LABELLED)], indirect=True)
def test_a_run_that_was_stopped_goes_on_where_it_was(command, tmp_path, monkeypatch):
    command, name = command
    whole, again = tmp_path / "whole" / name, tmp_path / "again" / name
    commands.done(*command, whole)
    with monkeypatch.context() as patched:
        stopping(patched, (np, "save"), 1)
        aborted(command, again)
    assert [path.name for path in again.parent.rglob("*.npy")] == ["000000.npy"]
    assert not any(path in held(again.parent) for path in held(whole.parent))
    assert "1 of " in commands.done(*command, again).output
    assert held(again.parent) == held(whole.parent)


@pytest.mark.parametrize(("command", "writer"), [
    (DECODE, ("sde_onnx.images", "save_png")), (EDIT, ("sde_onnx.images", "save_png")), (ENCODE, ("numpy", "savez")),
    (ENCODE, ("sde_onnx.cli.unfinished.UnfinishedRun", "remove")),
], ids=["decode", "edit", "encode", "encode, at the end"], indirect=["command"])
def test_a_run_that_was_stopped_while_it_wrote_its_output_writes_it_whole(command, writer, tmp_path, monkeypatch):
    command, name = command
    whole, again = tmp_path / "whole" / name, tmp_path / "again" / name
    commands.done(*command, whole)
    with monkeypatch.context() as patched:
        stopping(patched, (pkgutil.resolve_name(writer[0]), writer[1]), 1 if writer[1] == "save_png" else 0)
        aborted(command, again)
    commands.done(*command, again)
    assert held(again.parent) == held(whole.parent)
    commands.refuses("exists already", *command, again)
    commands.done(*command, again, "--force")


@pytest.mark.parametrize("command", named([DECODE, EDIT]), indirect=True)
def test_a_file_that_no_run_has_made_is_not_replaced(command, tmp_path, monkeypatch):
    command, _ = command
    with monkeypatch.context() as patched:
        stopping(patched, (np, "save"), 1)
        aborted(command, tmp_path / "out")
    mine = tmp_path / "out" / ("0.png" if command[0] == "decode" else "0-000000.png")
    save_png(mine, np.zeros((2, 2, 3), np.uint8))
    commands.refuses("exists already", *command, tmp_path / "out")
    assert load_png(mine).shape == (2, 2, 3)
    assert "1 of " in commands.done(*command, tmp_path / "out", "--force").output   # replaces it, and loses nothing


@pytest.mark.parametrize(("command", "others"), [
    (ENCODE, [("--steps", 5), ("-o", "other.npz"), ("pictures", "mirrored"), ("pictures", "renamed"),
              ("model", "other.onnx")]),
    ((("encode", "pictures"), "c.npz"), TOLERANCES),
    (DECODE, [("--steps", 5), ("--denoise",), ("codes", "other codes"), ("model", "other.onnx")]),
    ((("decode", "codes"), "d"), TOLERANCES),
    (EDIT, [("--steps", 5), ("--sigma", 0.6), ("--seeds", "0,4"), ("--eta", 2), ("--solver", "heun"),
            ("pictures", "mirrored"), ("pictures", "renamed"), ("model", "other.onnx")]),
], ids=["encode", "encode by tolerances", "decode", "decode by tolerances", "edit"], indirect=["command"])
def test_whatever_an_output_depends_on_makes_another_run(command, others, pictures, codes, tmp_path, monkeypatch):
    def seen(run, make):
        folders.append(run._folder)
        raise KeyboardInterrupt

    (tmp_path / "other.onnx").write_bytes(sde_onnx.bundled_gradient().read_bytes())
    for picture in pictures.iterdir():
        (tmp_path / "mirrored").mkdir(exist_ok=True)
        save_png(tmp_path / "mirrored" / picture.name, load_png(picture)[:, ::-1])
        (tmp_path / "renamed").mkdir(exist_ok=True)
        (tmp_path / "renamed" / f"1{picture.name}").write_bytes(picture.read_bytes())
    with np.load(codes) as saved:
        np.savez(tmp_path / "other codes.npz", **dict(saved) | {"latents": -saved["latents"]})
    folders: list[Path] = []
    monkeypatch.setattr(UnfinishedRun, "complete", seen)
    words, name = command
    for first, *rest in [("--batch-size", 2), *others]:
        changed, output = list(words), tmp_path / name
        if first in ("pictures", "codes"):
            given = pictures if first == "pictures" else codes
            changed[changed.index(given)] = tmp_path / (rest[0] + ("" if first == "pictures" else ".npz"))
        elif first == "model":
            changed.insert(1, tmp_path / rest[0])
        elif first == "-o":
            output = tmp_path / rest[0]
        else:
            changed = [*changed[:-1], first, *rest, changed[-1]]
        aborted(changed, output)
    aborted(words, tmp_path / name)
    assert folders[-1] == folders[0]   # a batch's size changes nothing
    assert len(set(folders)) == len(others) + 1

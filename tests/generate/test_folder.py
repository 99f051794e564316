import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from sde_onnx.cli import main
from sde_onnx.errors import OutputError
from sde_onnx.generate.claims import Claims
from sde_onnx.generate.folder import FolderRun


def run(model_file, folder, *arguments):
    steps = [] if {"--quality", "rk45"} & set(arguments) else ["--steps", "2"]
    return CliRunner().invoke(main, ["sample", str(model_file), "-o", str(folder), "--provider", "cpu", *steps,
                                     *map(str, arguments)])


def finished(folder):
    return [path for path in folder.iterdir() if path.suffix in (".png", ".npz")]


def contents(folder):
    return {path.name: path.read_bytes() for path in finished(folder)}


@pytest.mark.parametrize("kind", [[], ["--shards"]], ids=["png", "npz"])
def test_a_run_goes_on_where_it_stopped(kind, model_file, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(model_file, whole, "--seeds", "0-9", "--batch-size", 4, *kind).exit_code == 0
    assert run(model_file, broken, "--seeds", "0-3", "--batch-size", 4, *kind).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in finished(broken)}
    # The batch size is that of the run in the folder, asked for or not.
    result = run(model_file, broken, "--seeds", "0-9", *kind)
    assert "4 of 10 images were there already" in result.stdout
    assert "6 images" in result.stdout
    assert contents(broken) == contents(whole)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    again = run(model_file, broken, "--seeds", "0-9", *kind)
    assert "10 of 10 images were there already" in again.stdout


def test_shards_hold_floats_and_seeds(model_file, tmp_path):
    assert run(model_file, tmp_path / "out", "--seeds", "0-4", "--batch-size", 3, "--shards").exit_code == 0
    with np.load(tmp_path / "out" / "000003-000004.npz") as shard:
        assert shard["seeds"].tolist() == [3, 4]
        assert shard["images"].shape == (2, 3, 16, 16)
        assert shard["images"].dtype == np.float32


def test_half_a_batch_is_completed(model_file, tmp_path):
    run(model_file, tmp_path / "whole", "--seeds", "0-3")
    run(model_file, tmp_path / "broken", "--seeds", "0-3")
    (tmp_path / "broken" / "000002.png").unlink()
    assert run(model_file, tmp_path / "broken", "--seeds", "0-3").exit_code == 0
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_grid_shows_all_images_of_a_resumed_run(model_file, tmp_path):
    run(model_file, tmp_path / "out", "--seeds", "0-1", "--batch-size", 2)
    run(model_file, tmp_path / "out", "--seeds", "0-3", "--grid")
    sheet = np.asarray(Image.open(tmp_path / "out.png"))
    tiles = [np.asarray(Image.open(tmp_path / "out" / f"{seed:06d}.png")) for seed in range(4)]
    np.testing.assert_array_equal(sheet, np.block([[[tiles[0]], [tiles[1]]], [[tiles[2]], [tiles[3]]]]))


@pytest.mark.parametrize(("arguments", "message"), [
    (["--steps", "3"], "its steps is 2, here it is 3"),
    (["--eta", "0.2"], "its eta is 1.0, here it is 0.2"),
    (["--solver", "heun"], "its solver is 'restart', here it is 'heun'"),
    (["--quality", "fast"], "its solver is 'restart', here it is 'sde-dpmpp-2m'"),
    (["--shards"], "its files is 'png', here it is 'npz'"),
])
def test_two_settings_never_share_a_folder(arguments, message, model_file, tmp_path):
    assert run(model_file, tmp_path / "out", "--seeds", "0-1").exit_code == 0
    before = contents(tmp_path / "out")
    result = run(model_file, tmp_path / "out", "--seeds", "0-3", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.count("\n") == 1
    assert contents(tmp_path / "out") == before
    assert run(model_file, tmp_path / "out", "--seeds", "5", "--force", *arguments).exit_code == 0
    assert len(contents(tmp_path / "out")) == 1   # the images of the other run are gone


def test_another_model_is_another_setting(model_file, tmp_path):
    assert run(model_file, tmp_path / "out", "--seeds", "0").exit_code == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    record["settings"]["model"] = "0" * 64
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    assert "its model is '0000" in run(model_file, tmp_path / "out", "--seeds", "1").output


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_record_is_refused(text, model_file, tmp_path):
    run(model_file, tmp_path / "out", "--seeds", "0")
    (tmp_path / "out" / "run.json").write_text(text)
    result = run(model_file, tmp_path / "out", "--seeds", "1")
    assert result.exit_code == 1
    assert "run.json" in result.output


def test_images_of_unknown_origin_are_kept(model_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "000007.png").write_text("precious")
    (tmp_path / "out" / "notes.txt").write_text("precious")
    result = run(model_file, tmp_path / "out", "--seeds", "0")
    assert result.exit_code == 1
    assert "holds 000007.png of a run that left no run.json" in result.output
    assert run(model_file, tmp_path / "out", "--seeds", "0", "--force").exit_code == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "precious"


def test_an_animation_cannot_be_resumed(model_file, tmp_path):
    run(model_file, tmp_path / "out", "--seeds", "0")
    result = run(model_file, tmp_path / "out", "--seeds", "0", "--gif", tmp_path / "a.gif")
    assert result.exit_code == 1
    assert "an animation needs the steps of all of them" in result.output


def test_that_an_animation_cannot_be_resumed_is_said_before_the_work(model_file, tmp_path):
    run(model_file, tmp_path / "out", "--seeds", "4-5")
    result = run(model_file, tmp_path / "out", "--seeds", "0-5", "--batch-size", 2, "--gif", tmp_path / "a.gif")
    assert result.exit_code == 1
    assert len(finished(tmp_path / "out")) == 2


def test_a_run_that_ended_before_its_first_image_holds_nothing(model_file, tmp_path):
    run(model_file, tmp_path / "out", "--seeds", "0")
    (tmp_path / "out" / "000000.png").rename(tmp_path / "out" / ".000000.0123abcd.png")   # unfinished
    assert run(model_file, tmp_path / "out", "--seeds", "0", "--rho", "5").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.png", "run.json"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["rho"] == 5


class StoppedError(Exception):
    pass


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX's locks")
@pytest.mark.parametrize(("is_shard", "ends_by"), [(False, None), (True, None), (False, StoppedError)])
def test_the_last_to_finish_removes_what_killed_processes_have_left(is_shard, ends_by, tmp_path):
    """A shard does not, nor a run that was stopped: processes of other machines may be at work on it still."""
    scraps = [tmp_path / "out" / name for name in (".000052.a1696ea3.png", ".run.0123abcd.json")]
    with suppress(StoppedError), FolderRun(tmp_path / "out", shards=False, force=False).begun(
            {}, seeds=[0], batch_size=1, depends_on_batch=False, is_shard=is_shard):
        for path in scraps:
            path.touch()
        if ends_by is not None:
            raise ends_by
    assert [path.exists() for path in scraps] == [is_shard or ends_by is not None] * 2
    assert not (tmp_path / "out" / ".run.lock").exists()


def test_a_run_that_is_refused_removes_nothing(tmp_path):
    run = FolderRun(tmp_path / "out", shards=False, force=False)
    with run.begun({}, seeds=[0], batch_size=1, depends_on_batch=False):
        pass
    left = [tmp_path / "out" / name for name in (".000052.a1696ea3.png", "000000.png")]
    for path in left:
        path.touch()
    with pytest.raises(OutputError, match="images of another run"), run.begun(
            {"eta": 1}, seeds=[0], batch_size=1, depends_on_batch=False):
        pass
    assert all(path.exists() for path in [*left, tmp_path / "out" / "run.json"])


def test_what_cannot_be_removed_does_not_spoil_a_finished_run(tmp_path, monkeypatch):
    """It may be another user's."""
    def refuse(path):
        raise OutputError(f"{path} cannot be removed")

    monkeypatch.setattr("sde_onnx.generate.folder.remove", refuse)
    with FolderRun(tmp_path / "out", shards=False, force=False).begun(
            {}, seeds=[0], batch_size=1, depends_on_batch=False):
        (tmp_path / "out" / ".000052.a1696ea3.png").touch()
    assert not (tmp_path / "out" / ".run.lock").exists()


def test_what_is_there_binds_where_no_lock_tells(model_file, tmp_path, monkeypatch):
    """Another machine's run may have made its record a moment ago, and no image yet."""
    run(model_file, tmp_path / "out", "--seeds", "0")
    (tmp_path / "out" / "000000.png").unlink()
    monkeypatch.setattr("sde_onnx.generate.claims.fcntl", None)
    result = run(model_file, tmp_path / "out", "--seeds", "0", "--rho", "5")
    assert "holds images of another run: its rho is 7.0, here it is 5.0" in result.output


def test_a_folder_in_a_pictures_place_is_told(model_file, tmp_path):
    (tmp_path / "out" / "000001.png").mkdir(parents=True)
    run(model_file, tmp_path / "other", "--seeds", "0")
    (tmp_path / "other" / "run.json").rename(tmp_path / "out" / "run.json")
    result = run(model_file, tmp_path / "out", "--seeds", "0-1")
    assert (result.exit_code, result.output) == (1, f"Error: {tmp_path / 'out' / '000001.png'} is no file: remove it\n")


def test_replacing_removes_nothing_where_it_cannot_remove_all(model_file, tmp_path):
    run(model_file, tmp_path / "out", "--seeds", "0")
    (tmp_path / "out" / "000001.png").mkdir()
    before = sorted((tmp_path / "out").iterdir())
    result = run(model_file, tmp_path / "out", "--seeds", "0-1", "--force")
    line = f"Error: {tmp_path / 'out' / '000001.png'} is a folder: remove it\n"
    assert (result.exit_code, result.output) == (1, line)
    assert sorted((tmp_path / "out").iterdir()) == before


def test_other_files_and_folders_are_left_alone(model_file, tmp_path):
    """A file that is named as a subfolder of seeds, a folder of another name with pictures in it."""
    run(model_file, tmp_path / "out", "--seeds", "0", "--subdirs")
    (tmp_path / "out" / "001000").write_text("precious")
    (tmp_path / "out" / "more").mkdir()
    (tmp_path / "out" / "more" / "000001.png").write_text("precious")
    result = run(model_file, tmp_path / "out", "--seeds", "0-1", "--subdirs", "--force")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "001000").read_text() == (tmp_path / "out" / "more" / "000001.png").read_text()


def test_the_lock_is_everybodys(model_file, tmp_path, monkeypatch):
    """Another user who may write into the folder takes part; one who may not open the file removes nobody's lock."""
    lock = tmp_path / ".run.lock"
    with Claims(lock).at_work():
        assert lock.stat().st_mode & 0o777 == 0o666
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
            with pytest.raises(OutputError, match=r"cannot be opened \(Permission denied\)"), Claims(lock).at_work():
                pass
        assert lock.exists()
    assert not lock.exists()
    theirs = tmp_path / "private"
    theirs.touch(mode=0o600)
    lock.symlink_to(theirs)   # someone else's, in a folder for all
    with pytest.raises(OutputError, match="opened: Too many levels of symbolic links"), Claims(lock).at_work():
        pass
    assert theirs.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("dependent", [("--solver", "pc", "--langevin-norm", "batch"),
                                       ("--solver", "rk45", "--rtol", 0.1, "--atol", 0.1)], ids=["norm", "rk45"])
def test_where_images_depend_on_their_batch_other_batches_are_another_run(dependent, model_file, tmp_path):
    first = run(model_file, tmp_path / "out", "--seeds", "0-1", *dependent)
    assert first.exit_code == 0, first.output
    for arguments, message in ((("--seeds", "0-2"), "its seeds is '0-1', here it is '0-2'"),
                               (("--seeds", "0-1", "--batch-size", 1), "its batch_size is 64, here it is 1")):
        assert message in run(model_file, tmp_path / "out", *arguments, *dependent).output
    assert "2 of 2 images were there already" in run(model_file, tmp_path / "out", "--seeds", "0-1", *dependent).output


@pytest.mark.parametrize("kind", [[], ["--shards"]], ids=["png", "npz"])
def test_other_seeds_and_another_batch_size_go_on(kind, model_file, tmp_path):
    """What an image depends on is the same, so each seed is sampled once, whatever batch it comes in."""
    out = tmp_path / "out"
    asked = [(("--seeds", "0-9", "--batch-size", 4), None), (("--seeds", "2-3"), "2 of 2 images"),
             (("--seeds", "5-12", "--batch-size", 3), "5 of 8 images"), (("--seeds", "20,1"), None),
             (("--seeds", "0-12,20", "--rho", 7, "--eta", 1, "--grid"), "14 of 14 images")]
    for arguments, there in asked:
        result = run(model_file, out, *arguments, *kind)
        assert result.exit_code == 0, result.output
        assert there is None or f"{there} were there already" in result.output
    assert json.loads((out / "run.json").read_text())["seeds"] == "0-12,20"
    assert run(model_file, tmp_path / "whole", "--seeds", "0-12,20", "--grid", *kind).exit_code == 0
    sheets = [np.asarray(Image.open(folder.with_suffix(".png"))).astype(int) for folder in (out, tmp_path / "whole")]
    assert np.abs(sheets[0] - sheets[1]).max() <= 1   # batches round apart
    if kind:
        seeds = np.concatenate([np.load(path)["seeds"] for path in finished(out) if path.suffix == ".npz"])
        assert sorted(seeds.tolist()) == [*range(13), 20]


def test_the_folder_of_an_older_version_is_refused(model_file, tmp_path):
    (tmp_path / "out").mkdir()
    old = {"sde_onnx": "0.1.0", "model": "0" * 64, "solver": "pc", "steps": 2, "options": {}, "batch_size": 4}
    (tmp_path / "out" / "run.json").write_text(json.dumps(old))
    (tmp_path / "out" / "000000.png").write_bytes(b"precious")
    result = run(model_file, tmp_path / "out", "--seeds", "0")
    assert result.exit_code == 1
    assert "a run of run.json format 1, this sde-onnx resumes format 2: choose another folder" in result.output


@pytest.mark.parametrize("damage", [{"seeds": "many"}, {"seeds": None}, {"settings": 5}], ids=str)
def test_a_record_that_makes_no_sense_is_refused(damage, model_file, tmp_path):
    run(model_file, tmp_path / "out", "--seeds", "0")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    (tmp_path / "out" / "run.json").write_text(json.dumps(record | damage))
    result = run(model_file, tmp_path / "out", "--seeds", "1")
    assert result.exit_code == 1
    assert result.output.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
@pytest.mark.parametrize(("images", "batch", "kind"), [
    pytest.param(100, 5, [], marks=pytest.mark.thorough),
    pytest.param(2000, 64, [], marks=pytest.mark.slow), pytest.param(2000, 64, ["--shards"], marks=pytest.mark.slow),
])
def test_a_killed_run_resumes_to_exactly_the_same_images(images, batch, kind, tmp_path):
    """Killed twice in the middle."""
    command = [sys.executable, "-m", "sde_onnx", "sample", "--seeds", f"0-{images - 1}", "--batch-size", str(batch),
               "--provider", "cpu", "--steps", "8", *kind, "-o"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    whole, folder = contents(tmp_path / "whole"), tmp_path / "killed"
    for part in (0.2, 0.5):
        process = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not folder.is_dir() or len(finished(folder)) < part * len(whole):
            assert process.poll() is None, "it was too quick to be killed"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(finished(folder)) < len(whole)
    result = subprocess.run([*command, str(folder)], check=True, capture_output=True, text=True)
    print(result.stdout)
    assert f"of {images} images were there already" in result.stdout
    assert contents(folder) == whole   # and nothing half written beside them


def in_background(folder, *arguments):
    command = [sys.executable, "-m", "sde_onnx", "sample", "--provider", "cpu", "--threads", "1", "--steps", "40",
               *arguments, "-o", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def images_made(text):
    return sum(int(count) for count in re.findall(r"^(\d+) images", text, re.MULTILINE))


@pytest.mark.skipif(sys.platform == "win32", reason="no locks: images are made twice")
@pytest.mark.parametrize("kind", [[], ["--shards"]], ids=["png", "npz"])
def test_two_processes_share_a_folder(kind, tmp_path):
    arguments = ["--seeds", "0-119", "--batch-size", "4", *kind]   # enough for the second to come in time
    both = [in_background(tmp_path / "out", *arguments) for _ in range(2)]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    made = [images_made(output) for output, _ in told]
    assert sum(made) == 120   # none twice
    if not kind:
        assert min(made) > 0, "one of them came too late to share"
    assert in_background(tmp_path / "alone", *arguments).wait() == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*contents(tmp_path / "alone"), "run.json"}


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_what_another_process_is_writing_is_not_replaced(tmp_path, model_file):
    process = in_background(tmp_path / "out", "--seeds", "0-199", "--batch-size", "4")
    try:
        while not (tmp_path / "out" / "000000.png").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        unfinished = tmp_path / "out" / ".000150.0123abcd.png"
        unfinished.write_bytes(b"half")
        forced = subprocess.run([sys.executable, "-m", "sde_onnx", "sample", "--force", "-o", str(tmp_path / "out")],
                                capture_output=True, text=True)
        assert forced.returncode == 1
        assert forced.stderr == f"Error: another process is writing into {tmp_path / 'out'}: wait for it, or stop it\n"
        assert unfinished.exists()
    finally:
        process.kill()   # dead, it claims nothing
        process.communicate()
    resumed = in_background(tmp_path / "out", "--seeds", "0-7", "--batch-size", "4")
    assert resumed.wait() == 0
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


def test_subfolders_of_a_thousand_seeds_are_resumed_and_replaced(tmp_path, model_file):
    """EDM's layout."""
    out = tmp_path / "out"
    assert run(model_file, out, "--seeds", "998-1001", "--subdirs").exit_code == 0
    paths = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    assert paths == {"000000/000998.png", "000000/000999.png", "001000/001000.png", "001000/001001.png"}
    (out / "001000" / "001001.png").unlink()
    again = run(model_file, out, "--seeds", "998-1001", "--subdirs", "--batch-size", "2")
    assert "3 of 4 images were there already" in again.output
    assert {str(path.relative_to(out)) for path in out.rglob("*.png")} == paths
    other = run(model_file, out, "--seeds", "998-1001")
    assert "its files is 'png in subfolders', here it is 'png'" in other.output
    foreign = out / "000000" / "777777.png"   # of nobody's layout
    foreign.write_text("precious")
    (out / "000000" / ".000999.0123abcd.png").write_text("unfinished")
    assert run(model_file, out, "--seeds", "5", "--force").exit_code == 0
    assert [str(path.relative_to(out)) for path in sorted(out.rglob("*.png"))] == ["000000/777777.png", "000005.png"]
    assert run(model_file, out, "--shards", "--subdirs").exit_code == 2
    assert run(model_file, tmp_path / "s.png", "--subdirs").exit_code == 2


@pytest.mark.parametrize("text", ['{"my": "precious settings"}', '{"settings": {"lr": 0.1}}'])
def test_a_record_of_somebody_else_is_kept(text, model_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(text)
    result = run(model_file, tmp_path / "out", "--seeds", "0")
    assert result.exit_code == 1
    assert "run.json is not of sde-onnx: choose another folder" in result.output
    assert (tmp_path / "out" / "run.json").read_text() == text
    assert run(model_file, tmp_path / "out", "--seeds", "0", "--force").exit_code == 0


def test_an_empty_picture_is_made_again(model_file, tmp_path):
    """A machine that loses its power may leave one."""
    run(model_file, tmp_path / "out", "--seeds", "0-2")
    whole = (tmp_path / "out" / "000001.png").read_bytes()
    (tmp_path / "out" / "000001.png").write_bytes(b"")
    result = run(model_file, tmp_path / "out", "--seeds", "0-2")
    assert "2 of 3 images were there already" in result.output
    assert (tmp_path / "out" / "000001.png").read_bytes() == whole


def test_the_grid_of_the_folder_above_stands_beside_it(model_file, tmp_path, monkeypatch):
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    assert run(model_file, "..", "--seeds", "0", "--grid").exit_code == 0
    assert (tmp_path / "above.png").exists()
    assert list((tmp_path / "above" / "here").iterdir()) == []

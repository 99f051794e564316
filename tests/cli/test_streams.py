"""The command line where its standard streams are closed or full, and file names are unusual."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sde_onnx
from sde_onnx.golden import write_golden
from sde_onnx.models import bundled_model

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(sys.platform == "win32", reason="POSIX's streams and names")]
COMMAND = [sys.executable, "-m", "sde_onnx"]
SAMPLE = ["sample", "--provider", "cpu", "--steps", "2", "--seeds", "0", "-o"]


def shell(line, *arguments, **options):
    """A line of sh in which "$@" is our command with arguments."""
    return subprocess.run(["sh", "-c", line, "sh", *COMMAND, *arguments], capture_output=True, **options)


@pytest.mark.parametrize("arguments", [["info", str(bundled_model())], ["--version"], ["sample", "--help"]], ids=str)
def test_a_full_disk_under_standard_output_is_one_line(arguments):
    result = shell('"$@" > /dev/full', *arguments)
    assert result.returncode == 1
    assert result.stderr == b"Error: standard output cannot be written: No space left on device\n"


def test_an_onnxruntime_that_another_package_has_broken_is_one_line(tmp_path):
    """Of two packages with one folder the second was removed, and its files with it."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("from onnxruntime.capi import onnxruntime_pybind11_state\n")
    result = shell('"$@"', "info", env={**os.environ, "PYTHONPATH": str(tmp_path)}, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ONNX Runtime cannot be imported (No module named 'onnxruntime.capi'): of")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "2>&- >&- <&-"])
def test_closed_streams_lose_nothing(closed, tmp_path):
    assert shell(f'"$@" {closed}', *SAMPLE, str(tmp_path / "s.png")).returncode == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_onnxruntime_sends_nothing_and_leaves_nothing_behind(tmp_path):
    """Its telemetry writes files into the home folder; without one it warns, and writes into the working folder."""
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME")}
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    for folder in (home, Path("/proc/none")):
        result = subprocess.run([*COMMAND, *SAMPLE, "s.png", "--force", "--quiet"], cwd=work,
                                env=environment | {"HOME": str(folder)}, capture_output=True)
        assert (result.returncode, result.stderr) == (0, b"")
    assert list(home.iterdir()) == []
    assert [path.name for path in work.iterdir()] == ["s.png"]


def test_a_reader_that_goes_away_is_no_error():
    result = shell('"$@" | head -n 1', "info", str(bundled_model()))
    assert result.stdout.startswith(b"file")
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("name", [b"caf\xe9.png", "\N{SNOWMAN}".encode() * 83 + b".png"], ids=["latin-1", "253 bytes"])
def test_any_name_that_the_system_takes_is_one(name, tmp_path):
    path = os.fsencode(tmp_path) + b"/" + name
    result = subprocess.run([*COMMAND, *SAMPLE, path], capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    assert path in result.stdout
    assert [os.fsencode(path.name) for path in tmp_path.iterdir()] == [name]


def test_a_name_that_is_too_long_is_refused_before_the_work(tmp_path):
    result = subprocess.run([*COMMAND, *SAMPLE, str(tmp_path / ("n" * 252 + ".png"))], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.endswith("cannot be written: File name too long\n")
    assert result.stderr.count("\n") == 1
    assert list(Path(tmp_path).iterdir()) == []


@pytest.fixture(scope="module")
def golden_values(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    model = sde_onnx.load(bundled_model(), "cpu")
    write_golden(model, path, sde_onnx.resolve(model.metadata, solver="dpmpp-2m", steps=2))
    return path


@pytest.mark.parametrize("arguments", [
    ["sample", "--steps", "2", "-o", "folder"], ["verify", "sampler.onnx", "pipe.npz"],
    ["encode", "pipe.png", "-o", "c.npz"],
    ["decode", "pipe.npz", "-o", "d"], ["restore", "pipe.png", "--operator", "gray", "-o", "r"],
    ["restore", "a.png", "--operator", "mask:pipe.png", "--degrade", "-o", "r"], ["info", "pipe.onnx"],
    ["gradient", "pipe.onnx", "-o", "g.onnx", "--of", "y", "--at", "x"], ["verify", "pipe.onnx", "golden.npz"],
    ["sample", "pipe.onnx", "-o", "b.png"], ["sample", "--classifier", "pipe.onnx", "--label", "3", "-o", "b.png"],
    ["export", "pipe.pth", "--config", "cifar10_ncsnpp", "-o", "m.onnx"], ["export", "pipe.pkl", "-o", "m.onnx"],
    ["export", "a.pth", "--config", "pipe.json", "-o", "m.onnx"],
], ids=lambda arguments: " ".join(arguments[:2]))
def test_a_pipe_that_nobody_writes_into_is_refused(arguments, golden_values, tmp_path):
    """Its end would never come."""
    (tmp_path / "folder").mkdir()
    for name in ("folder/run.json", "pipe.npz", "pipe.png", "pipe.onnx", "pipe.pth", "pipe.pkl", "pipe.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "a.pth").touch()
    (tmp_path / "sampler.onnx").write_bytes(bundled_model().read_bytes())
    shell('"$@"', *SAMPLE, "a.png", cwd=tmp_path)
    shutil.copy(golden_values, tmp_path)
    result = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("Error: ")
    assert "a pipe or a device" in result.stderr
    assert result.stderr.count("\n") == 1

"""Progress in the log of a job, on a terminal, and none."""

import inspect
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from commands import done
from faults.subjects import COMMAND

import sde_onnx
from sde_onnx import codes, likelihood, progress


@pytest.fixture
def often(monkeypatch):
    """A line as often as there is something to say."""
    monkeypatch.setattr(progress, "SECONDS", 0.0)


def test_a_job_writes_lines_that_say_how_far_it_is(often, tmp_path):
    result = done("sample", "--provider", "cpu", "--seeds", "0-15", "--steps", 4, "--batch-size", 4, "-o",
                  tmp_path / "out")
    lines = result.stderr.splitlines()
    assert len(lines) >= 4
    assert all(re.fullmatch(r"\d+ of 16 images, (\? images/s|[\d.e+]+ (images/s|s an image)), \S+ left", line)
               for line in lines), lines
    assert lines[-1].startswith("16 of 16 images")
    done("sample", "--provider", "cpu", "--seeds", "0-3", "--steps", 4, "-o", tmp_path / "quick.png")


def test_restorations_in_steps_of_their_own_count_when_they_are_finished(often, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("sample", "--provider", "cpu", "--seeds", 0, "--steps", 2, "-o", "p")
    lines = done("restore", "p", "--provider", "cpu", "--operator", "gray", "--degrade", "--method", "null-space",
                 "--solver", "rk45", "--rtol", 0.5, "--atol", 0.5, "--seeds", "0-1", "--batch-size", 1,
                 "-o", "r").stderr.splitlines()
    counts = [line.partition(" images")[0] for line in lines if " images, " in line]
    assert set(counts) == {"0 of 2", "1 of 2", "2 of 2"}, lines


def test_images_that_were_there_say_nothing_of_the_pace(often, capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    with progress.ImagesBar(100) as bar:
        monkeypatch.setattr(bar, "_time", lambda: clock.now)
        bar.start_t = 0.0
        bar.skip(60)
        clock.now = 10.0
        list(bar.over([SimpleNamespace()] * 5, images=20, count=5))
        assert bar.n == pytest.approx(80)
        assert bar.format_dict["pace"] == "2 images/s"
        clock.now = 80.0
        assert bar.format_dict["pace"] == "4 s an image"
    assert "80 of 100 images, 4 s an image, 01:20 left" in capsys.readouterr().err


def test_the_pace_of_one_image(monkeypatch):
    with progress.ImagesBar(100) as bar:
        monkeypatch.setattr(bar, "_time", lambda: 0.5)
        bar.start_t = 0.0
        assert bar.format_dict["pace"] == "? images/s"
        bar.update(1)
        assert bar.format_dict["pace"] == "2 images/s"


def test_a_run_that_is_over_soon_says_nothing(tmp_path):
    assert done("sample", "--provider", "cpu", "--steps", 2, "-o", tmp_path / "s.png").stderr == ""


def test_a_program_without_a_console_samples(model, monkeypatch):
    """Python gives it no standard error at all."""
    monkeypatch.setattr(sys, "stderr", None)
    assert len(sde_onnx.sample(model, [0], 2, progress=True)) == 1


@pytest.mark.parametrize(("module", "count", "work"), [
    (likelihood, 6, lambda model, x: sde_onnx.log_likelihood(model, x, steps=4, dequantizations=2, batch_size=2,
                                                             progress=True)),
    (codes, 3, lambda model, x: sde_onnx.encode(model, x, steps=4, batch_size=2, progress=True)),
], ids=["likelihood", "encode"])
def test_the_bar_is_full_when_all_is_done(module, count, work, monkeypatch, rng):
    """By parts of images, of each batch again."""
    seen = []

    class Bar(progress.ImagesBar):
        def update(self, n=1):
            seen.append(n)
            return super().update(n)

    monkeypatch.setattr(module, "ImagesBar", Bar)
    model = sde_onnx.load(sde_onnx.bundled_gradient(), "cpu")
    work(model, rng.integers(0, 256, (3, 3, 16, 16), np.uint8))
    assert len(seen) > count and min(seen) >= 0
    assert sum(seen) == pytest.approx(count)


@pytest.mark.parametrize("function", [
    sde_onnx.sample, sde_onnx.restore, sde_onnx.encode, sde_onnx.decode, sde_onnx.interpolate, sde_onnx.edit,
    sde_onnx.log_likelihood,
], ids=lambda function: function.__name__)
def test_functions_show_nothing_unasked(function):
    assert inspect.signature(function).parameters["progress"].default is False


def test_a_terminal_shows_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.ImagesBar(4) as bar:
        list(bar.over([SimpleNamespace()] * 2, images=4, count=0))   # how many steps is not known before
    assert "| 4.0 of 4 images [" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [
    ["sample", "--steps", 3, "-o", "s.png"],
    ["restore", "p", "--operator", "gray", "--degrade", "--seeds", 0, "-o", "r"],
    ["encode", "p", "-o", "c.npz"], ["likelihood", "p", "-o", "l.csv", "--steps", 2],
], ids=lambda arguments: arguments[0])
def test_quiet_commands_say_nothing_on_standard_error(arguments, often, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("sample", "--provider", "cpu", "--seeds", 0, "--steps", 2, "--quiet", "-o", "p")
    assert "images" in done(*arguments, "--provider", "cpu").stderr
    assert done(*arguments, "--provider", "cpu", "--force", "--quiet").stderr == ""


@pytest.mark.parametrize("arguments", [
    ["sample", "--seeds", "0-3"], ["restore", "p/000000.png", "--operator", "gray", "--degrade", "--seeds", "0-1"],
], ids=lambda arguments: arguments[0])
def test_a_quiet_run_goes_on_as_well(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("sample", "--provider", "cpu", "--seeds", 0, "--steps", 2, "-o", "p")
    command = [*arguments, "--provider", "cpu", "--steps", 2, "--quiet", "-o", "run"]
    done(*command)
    again = done(*command)
    assert "images were there already" in again.stdout
    assert again.stderr == ""


def test_a_variable_that_tqdm_refuses_is_told_in_one_line(tmp_path):
    """It reads its variables when it is imported."""
    result = subprocess.run([*COMMAND, "sample", "--seeds", "0", "-o", "x.png"], cwd=tmp_path, capture_output=True,
                            text=True, env={**os.environ, "TQDM_MININTERVAL": "often"})
    assert result.returncode == 1
    assert result.stderr.startswith("Error: an environment variable TQDM_* has a value that tqdm refuses: ")
    assert result.stderr.count("\n") == 1

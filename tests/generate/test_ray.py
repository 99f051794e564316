"""Sampling on a Ray of this machine."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import done, refuses

import sde_onnx
from sde_onnx import extras
from sde_onnx.images import to_uint8

pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("ray")]
ray = pytest.importorskip("ray")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def samplers():
    """The processes of Ray's actors, by their names."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::FolderSampler"):
                found.add(int(path.parent.name))
        except OSError:   # it has ended
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_an_actor_that_dies_loses_no_image(tmp_path):
    """A Ray of its own, in a process of its own, whose actors are these."""
    arguments = ["sample", "--seeds", "0-119", "--steps", "12", "--batch-size", "4", "--provider", "cpu"]
    before = samplers()
    code = ("import ray, sys; from sde_onnx.cli import main; ray.init(num_cpus=2, include_dashboard=False, "
            "log_to_driver=False, logging_level='ERROR'); main(sys.argv[1:])")
    run = subprocess.Popen([sys.executable, "-c", code, *arguments, "--ray", "-o", str(tmp_path / "ray")],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("ray/*.png"))) < 12 and run.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    actors = samplers() - before
    assert len(actors) == 2
    os.kill(min(actors), signal.SIGKILL)
    told, problems = run.communicate(timeout=300)
    assert run.returncode == 0, problems
    assert re.search(r"1[12]\d images(, seeds 0-119)?, restart, 12 steps", told)   # a batch may be there, and untold
    assert samplers() == before
    done(*arguments, "-o", tmp_path / "one")
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


@pytest.fixture(scope="module")
def local():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_a_run_goes_on_and_errors_are_lines(local, tmp_path):
    arguments = ["sample", "--seeds", "0-9", "--steps", "3", "--provider", "cpu", "--ray", "-o", tmp_path / "ray"]
    done("sample", "--seeds", "0-3", "--steps", "3", "--provider", "cpu", "--batch-size", "2", "-o", tmp_path / "ray")
    told = done(*arguments, "--grid").stdout   # batches as they were cut, of two
    assert "4 of 10 images were there already" in told
    assert "6 images, restart, 3 steps" in told
    done(*arguments[:-5], "--batch-size", "2", "-o", tmp_path / "one", "--grid", "--provider", "cpu")
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    assert (tmp_path / "ray.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    assert "10 of 10 images were there already" in done(*arguments).stdout
    for folder, how in (("ray-shards", ["--ray"]), ("one-shards", [])):
        done(*arguments[:5], "--provider", "cpu", "--batch-size", "2", "--shards", *how, "-o", tmp_path / folder)
    assert contents(tmp_path / "ray-shards") == contents(tmp_path / "one-shards")
    refuses("expected x, sigma, v to logits, vjp", *arguments[:-1], tmp_path / "labels", "--label", "3", "--classifier",
            sde_onnx.bundled_model())
    refuses("goes with a folder", *arguments[:-1], tmp_path / "s.png", status=2)
    refuses("goes with a folder", *arguments, "--shard", "0/2", status=2)
    with pytest.MonkeyPatch.context() as patch:   # as in a script of SLURM, in which Ray runs
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", "2")
        assert "10 of 10 images were there already" in done(*arguments).stdout
    refuses("which needs 3 CPU: the largest has 2 CPU", *arguments[:-1], tmp_path / "many", "--threads", "3")


def test_the_class_is_what_map_batches_takes(local):
    from sde_onnx.generate.ray import Sampler

    sampler = Sampler(str(sde_onnx.bundled_model()), provider="cpu", steps=3)
    batch = sampler({"seed": np.array([3, 8]), "kept": np.array(["a", "b"])})
    expected = to_uint8(sde_onnx.sample(sde_onnx.load(sde_onnx.bundled_model(), "cpu"), [3, 8], 3))
    np.testing.assert_array_equal(batch["image"], expected)
    assert batch["kept"].tolist() == ["a", "b"]


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    refuses(r"sampling on Ray needs ray, not installed here: pip install 'sde-onnx[ray]'", "sample", "--ray", "-o",
            tmp_path / "s")

"""Files under WebGPU, in an environment that has it, against this one's CPU. `make webgpu-test` makes it and runs this.

SDE_ONNX_WEBGPU names the Python of that environment. Where no GPU is, VK_DRIVER_FILES names a Vulkan in software, which
takes seconds an evaluation, so the files are small.
"""

import json
import os
import subprocess

import numpy as np
import pytest

import sde_onnx
from sde_onnx.export.embedding.loop import embed
from sde_onnx.golden import write_golden

from networks import noisy_images, worst_relative_error

PYTHON = os.environ.get("SDE_ONNX_WEBGPU")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="no environment with WebGPU: make webgpu-test")
SIGMAS = (0.01, 1.0, 50.0)
SCORES = """
import sys, numpy as np, sde_onnx
model = sde_onnx.load(sys.argv[1], "webgpu")
given = np.load(sys.argv[2])
np.save(sys.argv[3], model(given["x"], given["sigma"]) if "v" not in given else model.vjp(**given)[1])
"""


def there(*arguments):
    """Runs the other environment's Python; gives what it prints."""
    result = subprocess.run([PYTHON, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("bundled", [sde_onnx.bundled_model, sde_onnx.bundled_gradient])
def test_scores_and_gradients_are_those_of_the_cpu(bundled, rng, tmp_path):
    x, sigma = noisy_images(rng, SIGMAS, (3, 16, 16))
    model = sde_onnx.load(bundled(), "cpu")
    given = {"x": x, "sigma": sigma}
    if model.metadata.gradient:
        given["v"] = rng.standard_normal(x.shape).astype(np.float32)
    np.savez(tmp_path / "given.npz", **given)
    there("-c", SCORES, bundled(), tmp_path / "given.npz", tmp_path / "scores.npy")
    expected = model.vjp(**given)[1] if model.metadata.gradient else model(x, sigma)
    got = np.load(tmp_path / "scores.npy")
    errors = [worst_relative_error(one, wanted) for one, wanted in zip(got, expected, strict=True)]
    print(f"relative errors at sigma {SIGMAS}: {errors}")
    assert max(errors) < 1e-5


@pytest.mark.parametrize("kind", ["sampler", "evaluation"])
def test_files_with_the_loop_give_the_pictures_of_the_cpu(kind, tmp_path):
    model = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    sampling = sde_onnx.resolve(model.metadata, solver="sde-dpmpp-2m", steps=4)
    embed(model.path, tmp_path / "file.onnx", sampling, kind=kind)
    write_golden(model, tmp_path / "golden.npz", sampling)
    told = there("-m", "sde_onnx", "verify", tmp_path / "file.onnx", tmp_path / "golden.npz", "--provider", "webgpu")
    print(told)   # status 1 where a value is off by two levels, or more than 1% of them by one
    assert float(told.split("%")[0]) >= 99


def test_the_command_samples_and_says_where(tmp_path):
    told = there("-m", "sde_onnx", "sample", "--provider", "webgpu", "--seeds", "0-1", "--steps", 3, "-o",
                 tmp_path / "there.npz")
    assert "webgpu fp32" in told
    expected = sde_onnx.sample(sde_onnx.load(sde_onnx.bundled_model(), "cpu"), range(2), 3)
    assert np.abs(np.load(tmp_path / "there.npz")["images"] - expected).max() < 1 / 255


def test_auto_takes_a_gpu_and_not_one_in_software():
    providers = dict(line.split(maxsplit=1) for line in there("-m", "sde_onnx", "info", "--providers").splitlines())
    print(json.dumps(providers, indent=1))
    assert providers["webgpu"].startswith("runs in fp32")
    assert providers["auto"] == ("cpu" if os.environ.get("VK_DRIVER_FILES") else "webgpu")

import dataclasses
import subprocess
import sys
import warnings

import pytest
from click.testing import CliRunner

import sde_onnx
from sde_onnx import generation, memory
from sde_onnx.cli import main
from sde_onnx.errors import InputError

PEAK = """
import sys, numpy, sde_onnx
from pathlib import Path
model = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
batch = int(sys.argv[1])
for _ in range(2):
    model(numpy.zeros((batch, *model.metadata.image_shape), numpy.float32), numpy.ones(batch, numpy.float32))
[line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(line.split()[1]) * 1024)
"""


@pytest.fixture
def little(monkeypatch, model):
    """Memory for two images and a half."""
    monkeypatch.setattr(generation, "available_memory", lambda: memory.image_memory(model.metadata) * 5 // 2)


@pytest.mark.skipif(not memory.MEMINFO.exists(), reason="this system tells no memory")
def test_an_image_takes_no_more_than_is_reckoned():
    peaks = [int(subprocess.run([sys.executable, "-c", PEAK, str(batch)], capture_output=True, check=True).stdout)
             for batch in (1, 129)]
    reckoned = memory.image_memory(sde_onnx.read_metadata(sde_onnx.bundled_model()))
    assert reckoned / 4 < (peaks[1] - peaks[0]) / 128 < reckoned * 1.1


def test_a_batch_that_does_not_fit_is_split_and_says_so(little, model):
    with pytest.warns(ResourceWarning, match=r"5 images at a time need about .* GiB are free: 2 at a time"):
        batches = list(sde_onnx.sample_batches(model, range(5), steps=2, batch_size=8))
    assert [batch.seeds for batch in batches] == [[0, 1], [2, 3], [4]]


def test_what_fits_says_nothing(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(sde_onnx.sample_batches(model, range(5), steps=2))) == 1


def test_a_batch_whose_images_depend_on_it_is_not_split(little, model):
    with pytest.raises(InputError, match="a smaller batch gives other images"):
        sde_onnx.sample_batches(model, range(5), steps=1, solver="pc", langevin_norm="batch")


def test_the_command_says_so_in_one_line(little, model_file, tmp_path):
    result = CliRunner().invoke(main, ["sample", str(model_file), "--seeds", "0-4", "--steps", "2", "--provider", "cpu",
                                       "-o", str(tmp_path / "s.png")])
    assert result.exit_code == 0
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Note: 5 images at a time")


def test_the_widest_layer_counts(model):
    metadata = dataclasses.replace(model.metadata, image_shape=(3, 64, 64), architecture={"channels": [8, 64, 128]})
    assert memory.image_memory(metadata) == 64 * 32 * 32 * memory.BYTES_A_VALUE


@pytest.mark.parametrize(("files", "expected"), [
    ({}, 8 << 20),
    ({"memory.max": "max", "memory.current": "5"}, 8 << 20),
    ({"memory.max": "3000", "memory.current": "1000"}, 2000),
    ({"memory/memory.limit_in_bytes": "5000", "memory/memory.usage_in_bytes": "1000"}, 4000),
    ({"memory.max": "1000", "memory.current": "3000"}, 0),
])
def test_a_containers_limit_is_respected(files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    assert memory.available_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal:  9999 kB\nMemAvailable:    8192 kB\n")
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert memory.available_memory() == expected

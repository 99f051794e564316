import dataclasses
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from click.testing import CliRunner

import sde_onnx
from sde_onnx.cli import main
from sde_onnx.errors import BatchSizeWarning, InputError
from sde_onnx.generate import sample as generation
from sde_onnx.runtime import machine

PEAK = """
import sys, numpy, sde_onnx
from pathlib import Path
model = sde_onnx.load(sys.argv[2], "cpu")
batch = int(sys.argv[1])
x, sigma = numpy.zeros((batch, *model.metadata.image_shape), numpy.float32), numpy.ones(batch, numpy.float32)
for _ in range(2):
    model.vjp(x, sigma, x) if model.metadata.gradient else model(x, sigma)
[line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(line.split()[1]) * 1024)
"""


@pytest.fixture
def little(monkeypatch, model):
    """Memory for two images and a half."""
    monkeypatch.setattr(generation, "available_memory", lambda: machine.image_memory(model.metadata) * 5 // 2)


@pytest.mark.thorough
@pytest.mark.skipif(not machine.MEMINFO.exists(), reason="this system tells no memory")
@pytest.mark.parametrize("file", [sde_onnx.bundled_model(), sde_onnx.bundled_gradient()], ids=["model", "gradient"])
def test_an_image_takes_no_more_than_is_reckoned(file):
    peaks = [int(subprocess.run([sys.executable, "-c", PEAK, str(batch), file], capture_output=True, check=True).stdout)
             for batch in (1, 129)]
    reckoned = machine.image_memory(sde_onnx.read_metadata(file))
    assert reckoned / 4 < (peaks[1] - peaks[0]) / 128 < reckoned * 1.1


def test_a_batch_that_does_not_fit_is_split_and_says_so(little, model):
    need = machine.image_memory(model.metadata)
    said = f"5 images at a time need about {5 * need / 2**30:.1f} GiB, {generation.available_memory() / 2**30:.1f} GiB"
    with pytest.warns(BatchSizeWarning, match=f"{re.escape(said)} are free: 2 at a time"):
        batches = list(sde_onnx.sample_batches(model, range(5), steps=2, batch_size=8))
    assert [batch.seeds for batch in batches] == [[0, 1], [2, 3], [4]]


def test_products_need_the_memory_of_their_file(monkeypatch, digits):
    gradient = sde_onnx.load(sde_onnx.bundled_gradient(), "cpu")
    free = machine.image_memory(gradient.metadata) * 5 // 2
    monkeypatch.setattr(generation, "available_memory", lambda: free)
    assert free > 5 * machine.image_memory(digits.metadata)
    measurement = np.zeros((3, 8, 8), np.float32)
    with pytest.warns(BatchSizeWarning, match="5 images at a time need about .*: 2 at a time"):
        sde_onnx.restore(digits, measurement, "down:2", range(5), 2, gradient=gradient)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sde_onnx.restore(digits, measurement, "down:2", range(5), 2, method="null-space")


def test_what_fits_says_nothing(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(sde_onnx.sample_batches(model, range(5), steps=2))) == 1


def test_a_batch_whose_images_depend_on_it_is_not_split(little, model):
    with pytest.raises(InputError, match="a smaller batch gives other images here: ask for one with --batch-size"):
        sde_onnx.sample_batches(model, range(5), steps=1, solver="pc", langevin_norm="batch")


def test_the_command_says_so_in_one_line(little, model_file, tmp_path):
    result = CliRunner().invoke(main, ["sample", str(model_file), "--seeds", "0-4", "--steps", "2", "--provider", "cpu",
                                       "-o", str(tmp_path / "s.png")])
    assert result.exit_code == 0
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("Note: 5 images at a time")


def test_the_widest_layer_counts(model):
    metadata = dataclasses.replace(model.metadata, image_shape=(3, 64, 64), architecture={"channels": [8, 64, 128]})
    assert machine.image_memory(metadata) == 2 * 64 * 32 * 32 * machine.BYTES_A_VALUE   # by channels
    metadata = dataclasses.replace(metadata, architecture={"channels": [8, 64, 128], "widest": 200_000})
    assert machine.image_memory(metadata) == 200_000 * machine.BYTES_A_VALUE


@pytest.mark.parametrize(("files", "expected"), [
    ({}, 8 << 20),
    ({"memory.max": "max", "memory.current": "5"}, 8 << 20),
    ({"memory.max": "3000", "memory.current": "1000"}, 2000),
    ({"memory/memory.limit_in_bytes": "5000", "memory/memory.usage_in_bytes": "1000"}, 4000),
    ({"memory.max": "1000", "memory.current": "3000"}, 0),
    ({"memory.max": "3000", "memory.current": "2900", "memory.stat": "anon 100\ninactive_file 2500"}, 2600),
    ({"memory/memory.limit_in_bytes": "5000", "memory/memory.usage_in_bytes": "4000",
      "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 3000"}, 4000),
    ({"job/memory.max": "max", "job/memory.current": "7", "memory.max": "3000", "memory.current": "1000"}, 2000),
    ({"job/step/memory.max": "900", "job/step/memory.current": "100", "memory.max": "3000", "memory.current": "1000"},
     800),
    ({"memory/uid/memory.limit_in_bytes": "5000", "memory/uid/memory.usage_in_bytes": "1000"}, 4000),
])
def test_a_containers_limit_is_respected(files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("4:memory:/uid/job\n0::/job/step\n")
    assert machine.available_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal:  9999 kB\nMemAvailable:    8192 kB\n")
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert machine.available_memory() == expected


@pytest.fixture
def cores(monkeypatch, tmp_path):
    """A machine of four hyper-threads on two cores, all of them allowed, without a quota."""
    monkeypatch.setattr(machine, "CPUS", tmp_path / "cpu")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("1:cpu,cpuacct:/user/job\n0::/user/job\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    (tmp_path / "cgroup" / "cpu").mkdir(parents=True)
    return tmp_path


def test_hyper_threads_of_a_core_count_once(cores):
    assert machine.available_cores() == 2


def test_the_affinity_is_respected(cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2})
    assert machine.available_cores() == 1


@pytest.mark.parametrize(("text", "expected"), [("max 100000", 2), ("150000 100000", 2), ("100000 100000", 1),
                                             ("50000 100000", 1), ("800000 100000", 2)])
def test_a_containers_quota_is_respected(text, expected, cores):
    (cores / "cgroup" / "cpu.max").write_text(text + "\n")
    assert machine.available_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 2), ("100000", 1), ("350000", 2)])
def test_a_quota_of_the_old_control_groups_is_respected(quota, expected, cores):
    (cores / "cgroup" / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (cores / "cgroup" / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.available_cores() == expected


@pytest.mark.parametrize("group", ["", "user", "user/job"])
def test_the_least_quota_of_the_groups_around_counts(group, cores):
    (cores / "cgroup" / "user" / "job").mkdir(parents=True)
    (cores / "cgroup" / "user" / "job" / "cpu.max").write_text("max 100000\n")
    (cores / "cgroup" / group / "cpu.max").write_text("100000 100000\n")
    assert machine.available_cores() == 1


def test_without_the_kernels_topology_each_cpu_counts(cores, monkeypatch):
    monkeypatch.setattr(machine, "CPUS", cores / "nothing")
    assert machine.available_cores() == 4


def test_other_systems_leave_the_choice_to_the_runtime(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert machine.available_cores() is None


def test_metadata_that_leave_sizes_open_are_no_error(model_file, tmp_path):
    metadata = sde_onnx.read_metadata(model_file)
    open_sizes = dataclasses.replace(metadata, architecture={"widest": None, "kept": None, "channels": []})
    assert machine.image_memory(open_sizes) > 0

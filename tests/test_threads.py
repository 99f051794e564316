import os

import pytest

from sde_onnx import threads


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of four hyper-threads on two cores, all of them allowed, without a quota."""
    monkeypatch.setattr(threads, "CPUS", tmp_path / "cpu")
    monkeypatch.setattr(threads, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    (tmp_path / "cgroup" / "cpu").mkdir(parents=True)
    return tmp_path


def test_hyper_threads_of_a_core_count_once(machine):
    assert threads.available_cores() == 2


def test_the_affinity_is_respected(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2})
    assert threads.available_cores() == 1


@pytest.mark.parametrize(("text", "cores"), [("max 100000", 2), ("150000 100000", 2), ("100000 100000", 1),
                                             ("50000 100000", 1), ("800000 100000", 2)])
def test_a_containers_quota_is_respected(text, cores, machine):
    (machine / "cgroup" / "cpu.max").write_text(text + "\n")
    assert threads.available_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 2), ("100000", 1), ("350000", 2)])
def test_a_quota_of_the_old_control_groups_is_respected(quota, cores, machine):
    (machine / "cgroup" / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (machine / "cgroup" / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert threads.available_cores() == cores


def test_without_the_kernels_topology_each_cpu_counts(machine, monkeypatch):
    monkeypatch.setattr(threads, "CPUS", machine / "nothing")
    assert threads.available_cores() == 4


def test_other_systems_leave_the_choice_to_the_runtime(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert threads.available_cores() is None

"""How many threads a network should run on: the cores that this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["available_cores"]

CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int | None:
    """Physical cores that this process may use: those of its CPU affinity, and no more than its container's quota.

    Two hyper-threads of a core share the vector units that a network keeps busy, so they count once.

    Returns:
        At least 1; ``None`` where the system does not tell (not Linux): the runtime's own choice is right there.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = os.sched_getaffinity(0)
    cores = len({_siblings(cpu) for cpu in allowed})
    return max(1, math.ceil(min(cores, _quota())))


def _siblings(cpu: int) -> str:
    """The hyper-threads of a CPU's core, as the kernel writes them; the CPU alone where it does not."""
    path = CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    return path.read_text().strip() if path.exists() else str(cpu)


def _quota() -> float:
    """CPUs that the control group may use on average; infinity without a limit."""
    both = CGROUPS / "cpu.max"   # version 2: "max 100000" or "150000 100000"
    if both.exists():
        quota, period = both.read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    old = CGROUPS / "cpu"        # version 1: -1 is no limit
    files = old / "cpu.cfs_quota_us", old / "cpu.cfs_period_us"
    if all(path.exists() for path in files):
        quota_us, period_us = (int(path.read_text()) for path in files)
        return quota_us / period_us if quota_us > 0 else math.inf
    return math.inf

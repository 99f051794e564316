"""What this machine has for a network: cores that this process may use, and images that fit into memory."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

import numpy as np

from sde_onnx.runtime.metadata import ModelMetadata

__all__ = ["available_cores", "available_memory", "image_memory", "processor"]

CPUS = Path("/sys/devices/system/cpu")
CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
# Bytes that an evaluation needs for each value of the widest layer. Measured under the CPU provider, as the growth of
# the resident set with the batch: 33 to 90 for digits and networks of 32x32 to 128x128, the first by
# tests/runtime/test_machine.py. Of files that name channels alone, by whose levels layers are half as wide: twice that.
BYTES_A_VALUE = 100


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


def processor() -> str:
    """The name of the processor, as the system tells it."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _siblings(cpu: int) -> str:
    """The hyper-threads of a CPU's core, as the kernel writes them; the CPU alone where it does not."""
    path = CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    return path.read_text().strip() if path.exists() else str(cpu)


def _control_groups(controller: str) -> list[Path]:
    """The folders of this process's control group and of those that it lies in: each has limits of its own.

    Args:
        controller: whose folders version 1 has; version 2 has one folder for all.
    """
    groups: dict[str, str] = {}
    for line in OWN_GROUPS.read_text(encoding="utf-8").splitlines() if OWN_GROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)   # "0::/system.slice/job.scope", "4:cpu,cpuacct:/job"
        groups |= dict.fromkeys(controllers.split(","), path.strip("/"))
    found = []
    for base, own in ((CGROUPS, groups.get("", "")), (CGROUPS / controller, groups.get(controller, ""))):
        found += [base / own, *(base / parent for parent in Path(own).parents)] if own else [base]
    return found


def _quota() -> float:
    """CPUs that the control group may use on average; infinity without a limit."""
    quota = math.inf
    for group in _control_groups("cpu"):
        both = group / "cpu.max"   # version 2: "max 100000" or "150000 100000"
        files = group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"   # version 1: -1 is no limit
        text = both.read_text().split() if both.exists() else [path.read_text() for path in files if path.exists()]
        if len(text) == 2 and text[0] != "max" and int(text[0]) > 0:
            quota = min(quota, int(text[0]) / int(text[1]))
    return quota


def image_memory(metadata: ModelMetadata) -> int:
    """Bytes that the activations of one image take, at most: by the values of the network's widest layer.

    And of a gradient file by those that are held for the product.
    """
    _, height, width = metadata.image_shape
    # Files of before name the channels of each level alone.
    channels: list[int] = metadata.architecture.get("channels", [])
    levels = (count * (height >> level) * (width >> level) for level, count in enumerate(channels))
    widest: int = metadata.architecture.get("widest") or 2 * max(levels, default=height * width)
    kept: int = metadata.architecture.get("kept") or 0
    return widest * BYTES_A_VALUE + kept * np.dtype(np.float32).itemsize


def available_memory() -> int | None:
    """Bytes that this process, in its container, may still take; ``None`` where that is not told (not Linux)."""
    if not MEMINFO.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for group in _control_groups("memory"):
        for limit_name, used_name, cached in (
            ("memory.max", "memory.current", "inactive_file"),                                    # version 2
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),            # version 1
        ):
            limit, used, about = group / limit_name, group / used_name, group / "memory.stat"
            if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
                counts = dict(line.split() for line in about.read_text().splitlines()) if about.exists() else {}
                kept = int(counts.get(cached, 0))   # of files that were read: the kernel gives it up when it must
                free = min(free, max(0, int(text) - int(used.read_text()) + kept))
    return free

"""How many images fit into memory at a time."""

from __future__ import annotations

from pathlib import Path

from sde_onnx.metadata import ModelMetadata

__all__ = ["available_memory", "image_memory"]

MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
# Bytes that an evaluation needs for each value of the widest layer. Measured under the CPU provider, as the growth of
# the resident set with the batch: 120 to 190 for digits, 32x32 and 256x256 (tests/test_memory.py repeats the first).
BYTES_A_VALUE = 200


def image_memory(metadata: ModelMetadata) -> int:
    """Bytes that the activations of one image take, at most: by the values of the network's widest layer."""
    _, height, width = metadata.image_shape
    channels: list[int] = metadata.architecture["channels"]
    widest = max(count * (height >> level) * (width >> level) for level, count in enumerate(channels))
    return widest * BYTES_A_VALUE


def available_memory() -> int | None:
    """Bytes that this process may still take: what is free, and no more than its container's limit.

    Returns:
        ``None`` where the system does not tell (not Linux).
    """
    if not MEMINFO.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit_name, used_name in (("memory.max", "memory.current"),                       # version 2
                                  ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):   # version 1
        limit, used = CGROUPS / limit_name, CGROUPS / used_name
        if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
            free = min(free, max(0, int(text) - int(used.read_text())))
    return free

"""What a result depends on: the commit, the machine, the versions."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import sde_onnx
from sde_onnx.runtime.machine import available_cores, processor

__all__ = ["RESULTS", "ROOT", "environment"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
if importlib.util.find_spec("sde_onnx.export") is None:   # a checkout that is on the path, and not installed
    sde_onnx.__path__.append(str(ROOT))
PACKAGES = {"onnxruntime": "onnxruntime-gpu", "openvino plugin": "onnxruntime-ep-openvino", "torch": "torch",
            "diffusers": "diffusers", "numpy": "numpy"}


def environment(command: str) -> dict[str, object]:
    """Describes the run of a command."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return {
        "command": command,
        "commit": _git("rev-parse", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "cpu": processor(),
        "cpu_features": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "cores": os.cpu_count(),
        "threads": available_cores() or os.cpu_count(),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "versions": {name: found for name, package in PACKAGES.items() if (found := _version(package))},
    }


def _git(*arguments: str) -> str | None:
    """What git says; ``None`` of a copy that is no checkout."""
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return None if result.returncode else result.stdout.strip()


def _gpu() -> str | None:
    """The GPU and its driver."""
    try:
        told = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

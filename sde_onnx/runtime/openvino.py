"""OpenVINO's CPU plugin for ONNX Runtime: where it runs, where it is slow, what it is told.

It brings what ONNX Runtime's own CPU provider has not: convolutions in bfloat16, which pay on the matrix units (AMX) of
the processors that have them. The package ``onnxruntime-ep-openvino`` is an extra; without it nothing here is used. It
runs on Intel's processors alone, though OpenVINO itself would not mind others (microsoft/onnxruntime, pull request
31981).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import onnxruntime as ort

from sde_onnx.files import cache_folder
from sde_onnx.runtime.machine import available_cores

__all__ = ["PRECISIONS", "openvino_options", "why_not", "why_slow"]

INTEL = 0x8086   # vendor number
CPUINFO = Path("/proc/cpuinfo")   # Linux alone tells the processor's instructions
# Our names of what the network computes in, and OpenVINO's.
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


def why_not() -> str | None:
    """Why this processor is none for OpenVINO, or ``None`` if nothing is known that would stop it."""
    processors = [entry.device for entry in ort.get_ep_devices() if entry.device.type == ort.OrtHardwareDeviceType.CPU]
    if not any(processor.vendor_id == INTEL for processor in processors):
        vendors = ", ".join(sorted({processor.vendor for processor in processors}))
        return f"its plugin takes Intel's processors only, this one is of {vendors}"
    return None


def why_slow(precision: str) -> str | None:
    """Why a precision is slower here than float32, or ``None`` if nothing is known that would make it so.

    Without matrix units: benchmarks/results/cpu.json has a processor with AVX512_BF16 alone.
    """
    if precision == "bf16" and CPUINFO.exists() and "amx_bf16" not in CPUINFO.read_text():
        return "bf16 is slower than fp32 on this processor, which has no matrix units for it (AMX)"
    return None


def openvino_options(*, precision: str, threads: int | None, cached: bool, **_: Any) -> dict[str, str]:
    """Options of OpenVINO's provider on the CPU.

    Args:
        precision: a key of PRECISIONS. Inputs and outputs stay float32.
        threads: of a network evaluation; the cores that this process may use if not given.
        cached: keep the compiled network in the user's cache folder, where the next session finds it.
    """
    threads = threads or available_cores()
    config: dict[str, str | int] = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    if cached:
        folder = cache_folder() / "openvino"
        folder.mkdir(parents=True, exist_ok=True)
        config["CACHE_DIR"] = os.fspath(folder)
    return {"load_config": json.dumps({"CPU": config})}

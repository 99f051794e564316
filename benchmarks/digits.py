"""Times a predictor-corrector run of the bundled digits: diffusers' pipeline and ours, interleaved in one process.

    python benchmarks/digits.py [--output benchmarks/results/digits.json]

Both draw the same noise from a torch generator, so that their pictures can be compared: the largest difference stands
beside the speed. One uncounted run of each warms up; then they take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from diffusers import ScoreSdeVePipeline as Reference

import sde_onnx

ROOT = Path(__file__).parents[1]
STEPS = 20
REPETITIONS = 7


def run(pipe: Callable[..., tuple[np.ndarray]], batch: int) -> tuple[float, np.ndarray]:
    """Seconds and images of one call."""
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    (images,) = pipe(batch_size=batch, num_inference_steps=STEPS, generator=generator, output_type="np",
                     return_dict=False)
    return time.perf_counter() - start, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    arguments = parser.parse_args()
    subjects = {
        "diffusers": Reference.from_pretrained(str(ROOT / "examples" / "digits" / "checkpoint")),
        "sde-onnx": sde_onnx.ScoreSdeVePipeline.from_pretrained(sde_onnx.bundled_model(), provider="cpu"),
    }
    rows = []
    for pipe in subjects.values():
        pipe.set_progress_bar_config(disable=True)
    for batch in (1, 16):
        first = {name: run(pipe, batch)[1] for name, pipe in subjects.items()}
        difference = float(abs(first["sde-onnx"] - first["diffusers"]).max())
        seconds: dict[str, list[float]] = {name: [] for name in subjects}
        for _ in range(REPETITIONS):
            for name, pipe in subjects.items():
                seconds[name].append(run(pipe, batch)[0])
        median = {name: statistics.median(times) for name, times in seconds.items()}
        ratio = median["diffusers"] / median["sde-onnx"]
        rows.append({"batch": batch, "steps": STEPS, "ratio": ratio, "largest_difference": difference,
                     "seconds": seconds})
        print(f"batch {batch}, {STEPS} steps: diffusers {median['diffusers']:.3f} s, sde-onnx "
              f"{median['sde-onnx']:.3f} s, ratio {ratio:.2f}; largest difference {difference:.1e}")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


def environment() -> dict[str, object]:
    """What a result depends on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "command": "python benchmarks/digits.py",
        "commit": commit.stdout.strip(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {"onnxruntime": ort.__version__, "torch": torch.__version__, "diffusers": version("diffusers"),
                     "numpy": np.__version__},
    }


if __name__ == "__main__":
    main()

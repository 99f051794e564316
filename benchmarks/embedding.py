"""Times a sampler file against the host's loop, side by side, and compares their images.

    python benchmarks/embedding.py --output benchmarks/results/embedding.json

The 32x32 network is that of benchmarks/evaluations.py, which makes it; the digits are the bundled model. Both run on
the CPU provider with the same number of threads; they take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import sde_onnx
from sde_onnx.export.embedding.loop import embed
from sde_onnx.images import to_uint8
from sde_onnx.runtime.machine import available_cores

from environment import environment
from evaluations import prepare

# Network, solver, steps, images at a time.
CASES = [
    ("digits", "pc", 100, 1), ("digits", "pc", 100, 16), ("digits", "sde-dpmpp-2m", 25, 1),
    ("digits", "sde-dpmpp-2m", 25, 16), ("32", "pc", 10, 1), ("32", "sde-dpmpp-2m", 20, 1),
]


def measure(path: Path, solver: str, steps: int, batch: int, turns: int) -> dict[str, Any]:
    """Seconds an evaluation of both, and how many 8-bit values of their images are equal."""
    model = sde_onnx.load(path, "cpu")
    sampling = sde_onnx.resolve(model.metadata, solver=solver, steps=steps)
    evaluations = sampling.evaluations or 0   # of these solvers it is known
    with tempfile.TemporaryDirectory() as folder:
        sampler = Path(folder) / "sampler.onnx"
        embed(path, sampler, sampling)
        options = ort.SessionOptions()
        options.intra_op_num_threads = available_cores() or 0
        # The host's session has gone to sleep when this one runs, and the other way round.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = ort.InferenceSession(sampler, options, providers=["CPUExecutionProvider"])
    seeds = list(range(batch))
    seconds: dict[str, list[float]] = {"host": [], "graph": []}
    images = {}
    for turn in range(turns + 1):
        for name in seconds if turn % 2 else reversed(seconds):
            time.sleep(0.1)
            start = time.perf_counter()
            if name == "host":
                images[name] = to_uint8(sde_onnx.sample(model, seeds, steps, solver=solver))
            else:
                [images[name]] = session.run(["image"], {"seed": np.array(seeds)})
            if turn:   # the first one warms up
                seconds[name].append((time.perf_counter() - start) / evaluations)
    difference = np.abs(images["host"].astype(int) - images["graph"])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds_an_evaluation": seconds, "ratio": medians["graph"] / medians["host"],
            "equal": float((difference == 0).mean()), "largest": int(difference.max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="samples of each")
    parser.add_argument("--output", type=Path, help="the result as JSON")
    arguments = parser.parse_args()
    rows = []
    for name, solver, steps, batch in CASES:
        path = sde_onnx.bundled_model() if name == "digits" else prepare(name, [1]) / "model.onnx"
        found = measure(path, solver, steps, batch, arguments.turns)
        rows.append({"network": name, "solver": solver, "steps": steps, "batch": batch} | found)
        print(f"{name}, {solver}, {steps} steps, batch {batch}: an evaluation takes {found['ratio']:.3f} of the host "
              f"loop's time, {100 * found['equal']:.4f}% equal, largest difference {found['largest']}", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(
            {"environment": environment(f"python benchmarks/embedding.py --turns {arguments.turns}"), "rows": rows},
            indent=1) + "\n")


if __name__ == "__main__":
    main()

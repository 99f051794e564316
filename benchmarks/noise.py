"""Measures how fast the host draws noise, and how long a device would wait for it, as JSON.

    python benchmarks/noise.py --output benchmarks/results/noise.json

The device is simulated: an evaluation is a sleep, in the package's own loop on the CPU's buffers. Its idle time is what
a run takes beyond its evaluations. Measured in turns as it is, and as it was: one array ahead, chunks of 2^14 blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sde_onnx
from sde_onnx.runtime import device_loop
from sde_onnx.runtime.device_loop import DeviceLoop, room_for
from sde_onnx.runtime.machine import available_cores
from sde_onnx.solvers import noise
from sde_onnx.solvers.noise import PortableNoise

from environment import environment

CORES = available_cores() or 1
ARRAYS = 8   # a turn
SHAPES = {"3x1024x1024": (1, 3, 1024, 1024), "16 of 3x256x256": (16, 3, 256, 256)}
WAYS = {"before": (1, 1 << 14), "now": (device_loop.AHEAD, noise.CHUNK)}   # arrays ahead, blocks a chunk
SOLVERS = {"sde-dpmpp-2m": {}, "restart, eta 0": {"eta": 0.0}}   # noise in every evaluation, and in a few
STEPS = 50


class SimulatedDevice:
    """In place of ONNX Runtime's session: an evaluation takes its time and leaves the buffers as they are."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def io_binding(self) -> Any:
        return SimpleNamespace(bind_ortvalue_input=lambda *_: None, bind_ortvalue_output=lambda *_: None)

    def run_with_iobinding(self, *_: Any) -> None:
        time.sleep(self._seconds)


def drawing(turns: int) -> list[dict[str, Any]]:
    """Arrays a second, by size, threads and way, which take turns."""
    sources = {(name, threads, way): PortableNoise(range(shape[0]), shape[1:], threads=threads)
               for (name, shape), threads, way in product(SHAPES.items(), sorted({1, CORES}), WAYS)}
    taken: dict[tuple[str, int, str], list[float]] = {key: [] for key in sources}
    for _ in range(turns):
        for key, source in sources.items():
            noise.CHUNK = WAYS[key[2]][1]
            begin = time.perf_counter()
            for _ in range(ARRAYS):
                source()
            taken[key].append((time.perf_counter() - begin) / ARRAYS)
    return [{"arrays": name, "threads": threads, "way": way, "a_second": 1 / statistics.median(seconds),
             "seconds": seconds} for (name, threads, way), seconds in taken.items()]


def waiting(milliseconds: list[float], turns: int) -> list[dict[str, Any]]:
    """The share of a run in which the device waits, by solver, time of an evaluation and way, in turns."""
    shape = SHAPES["16 of 3x256x256"]
    metadata = sde_onnx.read_metadata(sde_onnx.bundled_model())
    plans = {name: sde_onnx.resolve(metadata, solver=name.split(",")[0], steps=STEPS, options=options).plan
             for name, options in SOLVERS.items()}
    cases = list(product(plans, milliseconds, WAYS))
    shares: dict[tuple[str, float, str], list[float]] = {case: [] for case in cases}
    for _ in range(turns):
        for case in cases:
            name, each, way = case
            plan = plans[name]
            device_loop.AHEAD, noise.CHUNK = WAYS[way]
            loop = DeviceLoop(SimulatedDevice(each / 1e3), "cpu", shape, room_for(len(plan.evaluations)))
            source = PortableNoise(range(shape[0]), shape[1:], threads=CORES)
            # A bound method draws one array after another, all threads at each, as the loop did before.
            steps = loop.run(plan, source if way == "now" else source.__call__)
            next(steps)   # after it, the noise that lies ready has been drawn
            begin = time.perf_counter()
            evaluations = max(step.nfe for step in steps) - 1
            shares[case].append(1 - evaluations * each / 1e3 / (time.perf_counter() - begin))
    return [{"solver": name, "evaluations": len(plans[name].evaluations),
             "draws": sum(item.draws for item in plans[name].evaluations), "milliseconds": each, "way": way,
             "idle": statistics.median(found), "samples": found}
            for (name, each, way), found in shares.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the result as JSON")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[20, 50, 100], help="of an evaluation")
    arguments = parser.parse_args()
    about = environment(f"python benchmarks/noise.py --turns {arguments.turns}")
    rows = {"drawing": drawing(2 * arguments.turns + 1), "waiting": waiting(arguments.milliseconds, arguments.turns)}
    for row in rows["drawing"]:
        print(f"{row['arrays']}, {row['threads']} threads, {row['way']}: {row['a_second']:.1f} arrays a second",
              flush=True)
    for row in rows["waiting"]:
        print(f"{row['solver']}, {row['draws']} draws in {row['evaluations']} evaluations of "
              f"{row['milliseconds']:g} ms, {row['way']}: {100 * row['idle']:.1f}% idle", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps({"environment": about, **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Measures images a second by processes, threads and batch size, and on Ray, as JSON.

    python benchmarks/scale.py --output benchmarks/results/scale.json

Every way has all cores: one process with a thread a core, or a process a core with one thread. Processes load, sample a
batch and wait for each other before the clock runs. On Ray, actors of one thread write into a folder; the clock runs
from the end of the first round of batches to the end of the last. Ways take turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import sde_onnx
from sde_onnx.runtime.machine import available_cores

from environment import environment
from evaluations import prepare

CORES = available_cores() or 1
SOLVER = "sde-dpmpp-2m"
# By network: evaluations an image, images a turn, batch sizes.
WORK = {"digits": (10, 256, (1, 16, 64)), "32": (4, 8 * CORES, (1, 4)), "256": (2, 2 * CORES, (1,))}
RAY = {"digits": 16, "32": 1, "256": 1}   # images a batch: some batches for each actor
PATIENCE = 600   # seconds for a process to begin, or to end


def sampling(path: str, threads: int, seeds: range, steps: int, batch: int, barrier: Barrier) -> None:
    """A process: its share of the seeds."""
    model = sde_onnx.load(path, "cpu", threads=threads)
    sde_onnx.sample(model, seeds[:batch], 2, solver=SOLVER, batch_size=batch)
    barrier.wait()
    sde_onnx.sample(model, seeds, steps, solver=SOLVER, batch_size=batch)
    barrier.wait()


def by_processes(path: str, processes: int, steps: int, images: int, batch: int) -> float:
    """Images a second."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes + 1)
    shares = [range(index * images // processes, (index + 1) * images // processes) for index in range(processes)]
    workers = [context.Process(target=sampling, args=(path, CORES // processes, share, steps, batch, barrier))
               for share in shares]
    for worker in workers:
        worker.start()
    barrier.wait(PATIENCE)
    begin = time.perf_counter()
    barrier.wait(PATIENCE)
    seconds = time.perf_counter() - begin
    for worker in workers:
        worker.join()
    return images / seconds


def by_ray(path: str, steps: int, images: int, batch: int) -> float:
    """The same on Ray, from the end of the first round of batches to the end of the last."""
    from sde_onnx.generate.ray import Cluster, sample_into

    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    seeds = list(range(images + CORES * batch))
    batches = [seeds[first : first + batch] for first in range(0, len(seeds), batch)]
    made, begin = 0, 0.0
    try:
        for place, (count, *_) in enumerate(sample_into(folder, batches, Cluster("auto", 1, "cpu"),
                                                       form={"shards": False, "subdirs": False}, model=path,
                                                       solver=SOLVER, steps=steps)):
            if place < CORES:
                begin = time.perf_counter()
            else:
                made += count
        return made / (time.perf_counter() - begin)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the result as JSON")
    arguments = parser.parse_args()
    networks = " ".join(arguments.networks)
    about = environment(f"python benchmarks/scale.py --networks {networks} --turns {arguments.turns}")
    rows = []
    for network in arguments.networks:
        steps, images, sizes = WORK[network]
        path = str(sde_onnx.bundled_model() if network == "digits" else prepare(network, [1]) / "model.onnx")
        ways: dict[tuple[str, int], Any] = {}
        for size in sizes:
            ways["one process", size] = (by_processes, path, 1, steps, images, size)
            if size * CORES <= images:
                ways["a process a core", size] = (by_processes, path, CORES, steps, images, size)
        ways["Ray", RAY[network]] = (by_ray, path, steps, images, RAY[network])
        found: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
        for _ in range(arguments.turns):
            for way, (function, *given) in ways.items():
                found[way].append(function(*given))
        for (way, size), rates in found.items():
            rows.append({"network": network, "way": way, "batch": size, "images_a_second": statistics.median(rates),
                         "least": min(rates), "most": max(rates), "evaluations": steps})
            print(f"{network}, {way}, batch {size}: {statistics.median(rates):.3g} images/s "
                  f"({min(rates):.3g} to {max(rates):.3g})", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps({"environment": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

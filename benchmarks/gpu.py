"""Times full predictor-corrector steps on an NVIDIA GPU: diffusers in PyTorch, torch.compile, a plain export, ours.

    python benchmarks/gpu.py --output benchmarks/results/cuda.json

Every subject (gpu_subjects.py) makes whole steps with its own loop: two evaluations, noise, norms, updates. Subjects
take turns, each in a process of its own (timing.py), and clocks are read with the device idle, after a first step in
which everything is set up. Beside the speed stand the time of an evaluation alone, the relative error of the score
against float32 without TensorFloat-32, the device's memory, and with --idle the share of a run in which the device
does nothing (from the times of all kernels, as CUPTI tells).

Few subjects are loaded at a time, so that memory suffices; the two that others are compared with are in every group. A
subject that fails is a row that says how. The output is written after each group: --resume goes on with those that it
does not have, and --seconds ends a call in time for another.

--device cpu runs the same with kernels emulated, to try the script where no GPU is; nothing it says is a result.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sde_onnx

from environment import environment
from evaluations import inputs, make_once, prepare, stamp_of_exports
from gpu_subjects import ORACLE, REFERENCE, subjects
from timing import Subject, compare, ratio

BATCHES = {"digits": (16,), "32": (1, 4, 16), "256": (1, 4, 16), "1024": (1,)}
PRECISIONS = ("fp32", "fp16", "mixed")   # of files for CUDA
GROUP = 4   # subjects at a time, beside the oracle and the reference
Array = NDArray[np.float32]


def export_for_cuda(folder: Path) -> None:
    """Makes ``cuda-PRECISION.onnx`` of a prepared network's checkpoint, for each of PRECISIONS."""
    for precision in PRECISIONS:
        make_once(folder / f"cuda-{precision}.onnx", stamp_of_exports(), _export, folder, precision)


def _export(folder: Path, precision: str) -> None:
    from sde_onnx.export import export, from_diffusers

    export(from_diffusers(str(folder / "checkpoint")), folder / f"cuda-{precision}.onnx", target="cuda",
           precision=precision, force=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--batches", nargs="+", type=int, help="these alone")
    parser.add_argument("--turns", type=int, default=5, help="samples of each subject")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--prepare", action="store_true", help="only make the files")
    parser.add_argument("--output", type=Path, help="the result as JSON")
    parser.add_argument("--subjects", nargs="+", help="these alone, beside the two that they are compared with")
    parser.add_argument("--idle", action="store_true", help="also profile how long the device does nothing")
    parser.add_argument("--seconds", type=float, help="begin no group after so long")
    parser.add_argument("--resume", action="store_true", help="keep the subjects that the output has")
    arguments = parser.parse_args()
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    if arguments.resume and arguments.output and arguments.output.exists():
        rows = json.loads(arguments.output.read_text())["rows"]
    for name in arguments.networks:
        batches = [batch for batch in BATCHES[name] if batch in (arguments.batches or BATCHES[name])]
        folder = prepare(name, batches)
        export_for_cuda(folder)
        for batch in batches if not arguments.prepare else []:
            known = [row for row in rows if (row["network"], row["batch"]) == (name, batch)]
            row = known[0] if known else _row(name, folder, batch, arguments)
            if not known:
                rows.append(row)
            for group in groups_of(subjects(folder, batch, arguments.device), set(row["subjects"]), arguments.subjects):
                if arguments.seconds and time.monotonic() - start > arguments.seconds:
                    raise SystemExit("stopped in time: --resume goes on")
                row["subjects"] |= _compare(row, group, inputs(folder, batch, np.random.default_rng(0)), arguments)
                if arguments.output:
                    arguments.output.parent.mkdir(parents=True, exist_ok=True)
                    arguments.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def groups_of(chosen: list[Subject], known: set[str], asked: list[str] | None) -> list[list[Subject]]:
    """Subjects that are loaded together: the oracle and the reference, and a few that are asked for and not known."""
    names = {subject.name for subject in chosen}
    if unknown := set(asked or ()) - names:
        raise SystemExit(f"no subject is named {', '.join(sorted(unknown))}: there are {', '.join(sorted(names))}")
    always = [subject for subject in chosen if subject.name in (ORACLE, REFERENCE)]
    others = [subject for subject in chosen if subject not in always and subject.name not in known
              and subject.name in (asked or names)]
    return [[*always, *others[first:first + GROUP]] for first in range(0, len(others), GROUP)]


def _row(name: str, folder: Path, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    num_scales = sde_onnx.read_metadata(folder / "model.onnx").schedule.num_scales
    return {"network": name, "batch": batch, "num_scales": num_scales, "reference": REFERENCE, "oracle": ORACLE,
            "environment": environment(_command(arguments)), "subjects": {}}


def _compare(row: dict[str, Any], chosen: list[Subject], cases: dict[str, tuple[Array, Array]],
             arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What a group's turns give, by subject; of the two that are in every group what the first has given."""
    batch = row["batch"]
    print(f"{row['network']}, batch {batch}", flush=True)
    extras: dict[str, tuple[Any, ...]] = {"evaluation_seconds": (batch,)}
    if arguments.idle:
        extras["idle_share"] = (batch,)
    x, sigma = list(cases.values())[1]
    measured = compare(chosen, x, sigma, cases, reference=ORACLE, turns=arguments.turns, extras=extras,
                       tell=lambda line: print("   ", line, flush=True))
    found = {}
    for subject, result in measured.items():
        if subject in row["subjects"]:
            continue
        found[subject] = {key: value for key, value in asdict(result).items() if value == value}
        if result.failure:
            continue
        found[subject] |= {"median": result.median, "ratio": ratio(measured, subject, REFERENCE)
                           if not measured[REFERENCE].failure else None,
                           "images_per_second_1000_steps": batch / (1000 * result.median)}
        print(f"    {subject:32} {result.median * 1e3:9.2f} ms a step, error {max(result.errors.values()):.1e}, "
              + ", ".join(f"{name} {value}" for name, value in result.extras.items()), flush=True)
    return found


def _command(arguments: argparse.Namespace) -> str:
    words = ["python benchmarks/gpu.py --networks", *arguments.networks]
    for option in ("batches", "subjects"):
        if getattr(arguments, option):
            words += [f"--{option}", *(json.dumps(value) for value in getattr(arguments, option))]
    return " ".join([*words, "--turns", str(arguments.turns), "--device", arguments.device])


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path("build/inductor").resolve()))
    main()

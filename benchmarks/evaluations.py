"""Times one network evaluation: diffusers in PyTorch, a plain export, ours. Interleaved, the accuracy beside the speed.

    python benchmarks/evaluations.py                          digits and 32x32, a few minutes
    python benchmarks/evaluations.py --networks digits 32 256 1024 --batches 1 4 \
        --output benchmarks/results/cpu.json                  everything, over an hour

Networks have random weights from a fixed seed, all of them non-zero. What was prepared (checkpoints, exported files) is
kept in build/bench and made again when the code that makes it changes. A comparison is one network at one batch size;
it carries the commit and the machine that it was run on. With --resume those that the output has are not run again, so
that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import shlex
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from environment import ROOT, environment
from subjects import diffusers_compiled, diffusers_eager, ours, plain_export
from timing import Measurement, Subject, compare, ratio

REFERENCE = "diffusers eager fp32"
NETWORK_NAMES = ("digits", "32", "256", "1024", "plain32", "plain64")
COMPILE_LIMIT = 600.0     # seconds; a compiler that takes longer is stopped, and the result says so
APART = ("1024",)         # eight processes side by side pass 24 GiB there, and a plain export takes 10 of them
LARGER_BATCHES = ("digits", "32")   # networks that are timed at more than one image: patience, at 256x256 memory too
COMPILED_BATCHES = (1,)   # compilers run once more for every batch size


def subjects(folder: Path, batch: int) -> list[Subject]:
    """Everything that is compared, for a prepared network."""
    unet, model, for_cpu, plain = (str(folder / name) for name in ("checkpoint/unet", "model.onnx", "cpu.onnx",
                                                                   f"plain{batch}.onnx"))
    chosen = [
        Subject(REFERENCE, diffusers_eager, (unet,)),
        Subject("diffusers eager bf16", diffusers_eager, (unet, True)),
        Subject("torch.compile fp32", diffusers_compiled, (unet,), COMPILE_LIMIT),
        Subject("torch.compile bf16", diffusers_compiled, (unet, True), COMPILE_LIMIT),
        Subject("torch.onnx.export, ONNX Runtime", plain_export, (plain,)),
        Subject("sde-onnx fp32", ours, (model, "cpu")),
        Subject("sde-onnx fp32, --target cpu", ours, (for_cpu, "cpu")),
        Subject("sde-onnx OpenVINO fp32", ours, (model, "openvino")),
        Subject("sde-onnx OpenVINO bf16", ours, (model, "openvino", "bf16")),
    ]
    return [subject for subject in chosen if batch in COMPILED_BATCHES or subject.make is not diffusers_compiled]


def prepare(name: str, batches: list[int]) -> Path:
    """Makes a network's checkpoint and its exported files, unless the same code has made them before."""
    folder = ROOT / "build" / "bench" / name
    stamp = stamp_of([ROOT / "benchmarks" / "random_unets.py"])
    for batch in batches:
        make_once(folder / f"plain{batch}.onnx", stamp, _make_plain_export, name, folder, batch)
    for file, target in (("model.onnx", "any"), ("cpu.onnx", "cpu")):
        make_once(folder / file, stamp_of_exports(), _make_model, folder, file, target)
    return folder


def stamp_of_exports() -> str:
    """The stamp of files that the export package makes of random networks."""
    return stamp_of([*sorted((ROOT / "export").rglob("*.py")), ROOT / "benchmarks" / "random_unets.py"])


def stamp_of(sources: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def make_once(path: Path, stamp: str, make: Callable[..., None], *arguments: Any) -> None:
    """Makes a file in a process of its own, whose memory goes with it, unless it bears the stamp already."""
    mark = path.with_suffix(".stamp")
    if path.exists() and mark.exists() and mark.read_text() == stamp:
        return
    print(f"making {path.relative_to(ROOT)}", flush=True)
    process = multiprocessing.get_context("spawn").Process(target=make, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{path} could not be made")
    mark.write_text(stamp)


def _make_plain_export(name: str, folder: Path, batch: int) -> None:
    """The checkpoint, and diffusers' module as torch.onnx.export writes it for a fixed batch."""
    import torch
    from diffusers import UNet2DModel

    from random_unets import NETWORKS, random_unet, save_pipeline

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint"
    if name == "digits":
        if not checkpoint.exists():
            checkpoint.symlink_to(ROOT / "examples" / "digits" / "checkpoint")
        unet = UNet2DModel.from_pretrained(checkpoint / "unet", low_cpu_mem_usage=False).eval()
    else:
        network = NETWORKS[name]
        unet = random_unet(network.size, network.channels, layers=network.layers, attention=network.attention,
                           kind=network.kind)
        save_pipeline(checkpoint, unet, sigma_max=network.sigma_max, snr=0.075)
    x, sigma = torch.rand(batch, 3, *2 * [unet.config.sample_size]), torch.ones(batch)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(unet, (x, sigma), folder / f"plain{batch}.onnx", dynamo=True, verbose=False)


def _make_model(folder: Path, file: str, target: str) -> None:
    from sde_onnx.export import export, from_diffusers

    export(from_diffusers(str(folder / "checkpoint")), folder / file, target=target, force=True)


def inputs(folder: Path, batch: int, generator: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Smooth images plus noise at the smallest, the middle (in log) and the largest sigma, by name."""
    import sde_onnx

    metadata = sde_onnx.read_metadata(folder / "model.onnx")
    schedule, (channels, size, _) = metadata.schedule, metadata.image_shape   # square
    corners = generator.random((batch, channels, 2, 2))
    ramps = np.stack([1 - np.linspace(0, 1, size), np.linspace(0, 1, size)])
    images = np.einsum("ncij,ih,jw->nchw", corners, ramps, ramps)
    cases = {}
    for sigma in (schedule.sigma_min, (schedule.sigma_min * schedule.sigma_max) ** 0.5, schedule.sigma_max):
        noisy = images + sigma * generator.standard_normal(images.shape)
        cases[f"sigma {sigma:.4g}"] = noisy.astype(np.float32), np.full(batch, sigma, np.float32)
    return cases


def groups(name: str, chosen: list[Subject]) -> list[list[Subject]]:
    """What runs side by side: everything, or where memory is short three groups, the reference in each."""
    if name not in APART:
        return [chosen]
    reference, *others = chosen
    kinds = (diffusers_eager, diffusers_compiled), (plain_export,), (ours,)
    return [[reference, *members] for kind in kinds if (members := [other for other in others if other.make in kind])]


def values(measurements: dict[str, Measurement]) -> dict[str, dict[str, Any]]:
    """Measurements as JSON values, each with the reference that took turns with it."""
    found = {}
    for name, measurement in measurements.items():
        found[name] = {key: value for key, value in asdict(measurement).items() if value == value}   # no NaN
        if not measurement.failure:
            found[name]["median"] = measurement.median
            found[name]["ratio"] = ratio(measurements, name, REFERENCE)
            found[name]["reference_seconds"] = measurements[REFERENCE].seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORK_NAMES, default=["digits", "32"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--turns", type=int, default=5, help="samples of each subject")
    parser.add_argument("--prepare", action="store_true", help="only make the files")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these subjects alone, and the reference")
    parser.add_argument("--output", type=Path, help="the result as JSON")
    parser.add_argument("--resume", action="store_true", help="keep the comparisons that the output has")
    arguments = parser.parse_args()
    only = ["--only", *arguments.only] if arguments.only else []
    about = environment(shlex.join([
        "python", "benchmarks/evaluations.py", "--networks", *arguments.networks, "--batches",
        *map(str, arguments.batches), "--turns", str(arguments.turns), *only]))
    rows: list[dict[str, Any]] = []
    if arguments.resume and arguments.output and arguments.output.exists():
        rows = json.loads(arguments.output.read_text())["rows"]
    for name in arguments.networks:
        batches = [batch for batch in arguments.batches if batch == 1 or name in LARGER_BATCHES]
        folder = prepare(name, batches)
        for batch in batches if not arguments.prepare else []:
            if any((row["network"], row["batch"]) == (name, batch) for row in rows):
                continue
            print(f"{name}, batch {batch}", flush=True)
            cases = inputs(folder, batch, np.random.default_rng(0))
            x, sigma = list(cases.values())[1]
            chosen = [subject for subject in subjects(folder, batch)
                      if not arguments.only or subject.name in (REFERENCE, *arguments.only)]
            found: dict[str, dict[str, Any]] = {}
            for group in groups(name, chosen):
                measured = compare(group, x, sigma, cases, reference=REFERENCE, turns=arguments.turns,
                                   tell=lambda line: print("   ", line, flush=True))
                found = values(measured) | found   # of the references the first
            for subject, result in found.items():
                if not result["failure"]:
                    print(f"    {subject:32} {result['median'] * 1e3:9.1f} ms {result['ratio']:6.2f}x "
                          f"error {max(result['errors'].values()):.1e} peak {result['peak_mb'] or 0:.0f} MB",
                          flush=True)
            rows.append({"network": name, "batch": batch, "environment": about, "reference": REFERENCE,
                         "subjects": {subject.name: found[subject.name] for subject in chosen}})
            if arguments.output:
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

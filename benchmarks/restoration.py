"""Restoration: methods x tasks x evaluations, on images that the model has not seen.

    python benchmarks/restoration.py --output benchmarks/results/restoration.json
    python benchmarks/restoration.py --model celebahq.onnx --gradient celebahq-gradient.onnx --images celebahq/ \
        --operators box:64,64,128,128 bicubic:4 --output celebahq.json

Of each case: PSNR and SSIM of a sample of each image, the share that shows the same digit (of the bundled model, by the
bundled classifier, which has not seen these digits), how far A x is from y in standard deviations of the noise
(without noise, in levels of 8 bits), evaluations of the network and vector-Jacobian products. Cases that the output
holds already are not run again. At the end the seconds of an image are measured for all cases in turns, with nothing
else running: at 25 steps, times their number.

Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", for SSIM.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

import sde_onnx
from sde_onnx.files import sha256
from sde_onnx.guidance.measuring import degrade, hidden_by
from sde_onnx.guidance.methods import METHODS
from sde_onnx.image_files import in_data_units, read_images
from sde_onnx.images import psnr
from sde_onnx.operators.given import operator_for
from sde_onnx.restoration import Restoration, resolve_restoration, restore_batches
from sde_onnx.runtime.score_model import ScoreModel

from environment import environment
from fidelity import real_digits
from plots import method_name

IMAGES = 32
DIGITS = ("box:5,5,6,6", "random:0.7", "down:2", "blur:1", "gray")
NOISES = (0.0, 0.05)
SEED = 1000       # of the first sample; measurements have the seeds from 0 on
LEVEL = 1 / 255
LOOK_SIGMA = 0.02   # that the classifier is told of finished images
TURNS, TIMED = 5, 25   # of the timing: turns, and steps


@dataclass(frozen=True)
class Case:
    """A method with its options, under a solver."""

    method: str
    steps: int
    options: dict[str, Any] = field(default_factory=dict)
    solver: str = "sde-dpmpp-2m"
    images: int = IMAGES   # fewer of what takes hours; the first of them


CASES = [
    Case("null-space", 25, {"eta": 2.0}),
    Case("null-space", 100, {"eta": 4.0}),
    Case("posterior", 25, {"iterations": 1, "eta": 2.0}),
    Case("posterior", 25, {"iterations": 2, "eta": 2.0}),
    Case("posterior", 100, {"iterations": 2, "eta": 4.0}),
    Case("posterior", 100, {"iterations": 4, "eta": 16.0}),
    Case("daps", 25, {"ode_steps": 4}),
    Case("replacement", 100, solver="ancestral"),
    Case("dps", 1000, {"zeta": 0.15}, solver="ancestral", images=12),
]


def measure(
    restored: NDArray[np.float32], clean: NDArray[np.float32], y: NDArray[np.float32], noise: float, operator: Any,
    recognised: Callable[[NDArray[np.float32]], float] | None,
) -> dict[str, Any]:
    """Figures of restorations of images, ``[N, C, H, W]`` each, with measurements ``[N, ...]``."""
    missed = (operator.A(restored) - y)[:, ~hidden_by(operator, clean.shape[1:])]
    residual = np.sqrt((missed**2).mean())
    decibels = psnr(restored, clean)
    return {
        "psnr": float(decibels.mean()), "psnr_standard_error": float(decibels.std(ddof=1) / len(decibels) ** 0.5),
        "psnr_of_each": [round(float(value), 3) for value in decibels],
        "ssim": float(np.mean([structural_similarity(a, b, channel_axis=0, data_range=1.0)
                               for a, b in zip(restored, clean, strict=True)])),
        "recognised": None if recognised is None else recognised(restored),
        "residual": float(residual / (noise or LEVEL)),
    }


def _unseen_digits(count: int) -> tuple[NDArray[np.float32], Callable[[NDArray[np.float32]], float]]:
    """Digits that the model has not seen, and the share in which the bundled classifier sees the same ones."""
    pixels, labels = real_digits(count, held_out=True, seed=2)
    classifier = sde_onnx.load_classifier(sde_onnx.bundled_classifier(), "cpu")

    def recognised(images: NDArray[np.float32]) -> float:
        found = classifier(images, np.full(len(images), LOOK_SIGMA, np.float32)).argmax(axis=1)
        return float((found == labels[: len(images)]).mean())

    return (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32), recognised


def _figures(
    model: ScoreModel, gradient: ScoreModel | None, clean: NDArray[np.float32], text: str, noise: float, case: Case,
    recognised: Callable[[NDArray[np.float32]], float] | None,
) -> dict[str, Any]:
    """Figures of a case on a task: clean images that went through the operator, restored."""
    operator = operator_for(text, model.metadata.image_shape)
    y = degrade(clean, operator, range(len(clean)), noise=noise)
    restoration = _resolved(model, gradient, case, case.steps)
    batch, = restore_batches(model, y, operator, range(SEED, SEED + len(clean)), restoration, noise=noise,
                             gradient=gradient, batch_size=len(clean))
    *_, step = batch.steps
    restored = np.clip(step.x_mean, 0, 1)
    return {**measure(restored, clean, y, noise, operator, recognised), "evaluations": step.nfe,
            "products": step.nfe * restoration.products, "commit": environment("")["commit"]}


def _resolved(model: ScoreModel, gradient: ScoreModel | None, case: Case, steps: int) -> Restoration:
    return resolve_restoration(model.metadata, has_gradient=gradient is not None, method=case.method,
                               solver=case.solver, steps=steps, options=case.options)


def _seconds(
    model: ScoreModel, gradient: ScoreModel | None, clean: NDArray[np.float32], cases: list[Case]
) -> dict[str, float]:
    """Seconds an image of each case, all in turns: the median of those of TIMED steps, times the number of steps."""
    operator = operator_for("down:2", model.metadata.image_shape)
    y = degrade(clean, operator, range(len(clean)))
    taken: dict[str, list[float]] = {}
    for _, case in product(range(TURNS), cases):
        start = time.perf_counter()
        sde_onnx.restore(model, y, operator, range(len(clean)), gradient=gradient,
                         restoration=_resolved(model, gradient, case, TIMED))
        seconds = (time.perf_counter() - start) / len(clean) * case.steps / TIMED
        taken.setdefault(method_name(asdict(case)), []).append(seconds)
    return {name: float(np.median(values)) for name, values in taken.items()}


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model file; the bundled digits if not given")
    parser.add_argument("--gradient", type=Path, help="its gradient file; without one, methods that need none")
    parser.add_argument("--images", type=Path, help="clean images, or a folder of them; unseen digits if not given")
    parser.add_argument("--count", type=int, default=IMAGES, help="images")
    parser.add_argument("--operators", nargs="+", default=DIGITS, help="as `sde-onnx restore --operator` takes them")
    parser.add_argument("--noise", nargs="+", type=float, default=NOISES, help="standard deviations")
    parser.add_argument("--methods", nargs="+", help="these alone")
    parser.add_argument("--provider", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--output", type=Path, required=True, help="the result as JSON; added to if it exists")
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.images is None):
        parser.error("--model and --images go together")

    model_path = arguments.model or sde_onnx.bundled_model()
    gradient_path = arguments.gradient or (None if arguments.model else sde_onnx.bundled_gradient())
    where: dict[str, Any] = {"provider": arguments.provider, "threads": arguments.threads}
    model = sde_onnx.load(model_path, **where)
    gradient = None if gradient_path is None else sde_onnx.load(gradient_path, **where)
    recognised = None
    if arguments.images is None:
        clean, recognised = _unseen_digits(arguments.count)
    else:
        _, images = read_images([arguments.images], model.metadata.image_shape, resize=True)
        clean = in_data_units(images)[: arguments.count]

    cases = [case for case in CASES if not arguments.methods or case.method in arguments.methods]
    cases = [case for case in cases if gradient is not None or not METHODS[case.method].needs_gradient]
    rows = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    about = {"model": sha256(model_path), "environment": environment(
        "python benchmarks/restoration.py --output benchmarks/results/restoration.json")}
    for text, noise, case in product(arguments.operators, arguments.noise, cases):
        chosen = clean[: case.images]
        key = {"operator": text, "noise": noise, **asdict(case), "images": len(chosen)}
        if any(key.items() <= row.items() for row in rows):
            continue
        row = key | _figures(model, gradient, chosen, text, noise, case, recognised)
        rows.append(row)
        print(f"{text:12} noise {noise:<5g} {method_name(row)}: {row['psnr']:.2f} dB, ssim {row['ssim']:.3f}, "
              f"recognised {row['recognised']}, residual {row['residual']:.2f}", flush=True)
        _write(arguments.output, about | {"rows": rows})
    _write(arguments.output, about | {"rows": rows, "seconds_an_image": _seconds(model, gradient, clean, cases)})


if __name__ == "__main__":
    main()

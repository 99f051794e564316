"""Quality against cost: solvers over a range of evaluations, on the bundled digits.

    python benchmarks/quality.py --output benchmarks/results/quality.json

For each point: the Fréchet distance to real digits in the features of judges that were trained on digits the model has
not seen, how many images they recognise with p > 0.9, their mean confidence, how far the distribution of the classes
is from that of real digits, and seconds an image (its evaluations, by the time of one as `sde-onnx bench`
measures it).

A Fréchet distance depends on the number of images, so it is taken of parts of PART images each; the figure is their
mean and its standard error theirs, and points of different numbers of images compare. As many real digits, the model's
own training set in other colours, say what is left where nothing is wrong; real digits that it has not seen, what
another hand makes. Images are kept in build/samples: a run that was stopped goes on where it was, and points can be
added.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sde_onnx
from sde_onnx.benchmark import benchmark

from environment import environment
from fidelity import Judge, frechet_distance, in_deviations, real_digits
from samples import cached_samples

PART = 512         # images of which a Fréchet distance is taken
REAL = 8192        # real digits that they are compared with
JUDGES = 3         # whose figures are averaged: one alone has features of its own
REFERENCE = "pc"


@dataclass(frozen=True)
class Curve:
    """A solver with options, over numbers of steps."""

    solver: str
    steps: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    count: int | None = None   # images, if not as many as of the others: what is decided by, and what takes hours


MEASURED = {"measure_noise": True}
CURVES = [
    Curve("pc", (50,)),
    Curve("pc", (1000,)),
    Curve("pc", (2000,), count=1024),
    Curve("sde-dpmpp-2m", (8, 12, 16, 50)),
    Curve("sde-dpmpp-2m", (25,), count=4096),
    Curve("sde-dpmpp-2m", (8, 12, 25), {"eta": 0.5}),
    Curve("sde-dpmpp-2m", (16, 50), {"eta": 2.0}),
    Curve("sde-dpmpp-2m", (25,), {"eta": 2.0}, count=4096),
    Curve("sde-dpmpp-2m", (25,), {"rho": 3.0}),
    Curve("sde-dpmpp-2m", (25,), {"schedule": "geometric"}),
    Curve("sde-dpmpp-3m", (25,)),
    Curve("ancestral", (25, 50)),
    Curve("stochastic-heun", (13,)),
    Curve("dpmpp-2m", (12, 25)),
    Curve("dpmpp-2m", (12, 25), MEASURED),
    Curve("heun", (13,)),
    Curve("heun", (13,), MEASURED),
]


class Measure:
    """Judges and the real digits that images are compared with."""

    def __init__(self) -> None:
        self.judges = [Judge(seed) for seed in range(JUDGES)]
        pixels, labels = real_digits(REAL, held_out=False)
        looks = [judge.look(pixels) for judge in self.judges]
        self.features = [features for features, _ in looks]
        self.classes = np.bincount(labels, minlength=10) / REAL
        self.accuracy = float(np.mean([(p.argmax(axis=1) == labels).mean() for _, p in looks]))

    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """What the judges say of pictures, ``[N, H, W, C]`` with N a multiple of PART; the mean of all."""
        looks = [judge.look(pixels) for judge in self.judges]
        parts = np.mean([self._distances(features, real)
                         for (features, _), real in zip(looks, self.features, strict=True)], axis=0)
        p = np.mean([probabilities for _, probabilities in looks], axis=0)
        classes = np.bincount(p.argmax(axis=1), minlength=10) / len(pixels)
        return {
            "frechet": float(parts.mean()),
            "frechet_standard_error": float(parts.std(ddof=1) / len(parts) ** 0.5),
            "frechet_of_parts": parts.tolist(),
            "recognised": float((p.max(axis=1) > 0.9).mean()),
            "confidence": float(p.max(axis=1).mean()),
            "classes": classes.tolist(),
            "class_distance": float(np.abs(classes - self.classes).sum() / 2),   # total variation
        }

    @staticmethod
    def _distances(features: NDArray[np.float64], real: NDArray[np.float64]) -> list[float]:
        """The Fréchet distance of each part."""
        parts = np.split(in_deviations(features, real), len(features) // PART)
        reference = in_deviations(real, real)
        return [frechet_distance(part, reference) for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4 * PART, help=f"images a point, a multiple of {PART}")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--solvers", nargs="+", choices=[curve.solver for curve in CURVES], help="these alone")
    parser.add_argument("--output", type=Path, help="the result as JSON")
    arguments = parser.parse_args()
    if arguments.count < 2 * PART or arguments.count % PART:
        parser.error(f"--count {arguments.count} is not a multiple of {PART}, and at least {2 * PART}")
    measure = Measure()
    model = sde_onnx.load(sde_onnx.bundled_model(), arguments.provider)
    speed = benchmark(model, seconds=5)
    seconds = 1 / (speed.images_per_second * speed.nfe)   # an evaluation of one image, the loop with it
    rows = []
    for curve in CURVES:
        for steps in curve.steps if not arguments.solvers or curve.solver in arguments.solvers else ():
            count = curve.count or arguments.count
            samples = cached_samples(count, solver=curve.solver, steps=steps, provider=arguments.provider,
                                     **curve.options)
            row = {"solver": curve.solver, "options": curve.options, "steps": steps, "images": count,
                   "nfe": samples.nfe,
                   "model_steps": steps == model.metadata.schedule.num_scales,
                   "seconds_an_image": samples.nfe * seconds} | measure(samples.pixels)
            rows.append(row)
            print({key: value for key, value in row.items() if key not in ("classes", "frechet_of_parts")}, flush=True)
    command = " ".join(["python benchmarks/quality.py --count", str(arguments.count), "--provider",
                        arguments.provider, *(["--solvers", *arguments.solvers] if arguments.solvers else [])])
    result = {
        "environment": environment(command), "reference": REFERENCE,
        "images": arguments.count, "part": PART, "compared_with": REAL,
        "judges": JUDGES, "judge_accuracy_on_real": measure.accuracy,
        "real": measure(real_digits(arguments.count, held_out=False, seed=1)[0]),
        "unseen": measure(real_digits(arguments.count, held_out=True, seed=1)[0]),
        "rows": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Quality against cost: solvers over a range of evaluations, on the bundled digits.

    python benchmarks/quality.py --output benchmarks/results/quality.json

For each point: the Fréchet distance to real digits in the features of judges that were trained on digits the model has
not seen, how many images they recognise with p > 0.9, their mean confidence, how far the distribution of the classes
is from that of real digits, and seconds an image (its evaluations, by the time of one as `sde-onnx bench`
measures it).

A Fréchet distance depends on the number of images, so it is extrapolated to infinitely many, and points of different
numbers compare. As many real digits, the model's own training set in other colours, say what is left where nothing is
wrong; real digits that it has not seen, what another hand makes. Images are kept in build/samples: a run that was
stopped goes on where it was, and points can be added.
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
from sde_onnx.guidance.measured_noise import measured_noise

from environment import environment
from fidelity import Judge, extrapolated_distance, in_deviations, real_digits
from samples import cached_samples

IMAGES = 2048      # a point, if it does not say otherwise
REAL = 8192        # real digits that they are compared with
JUDGES = 3         # whose figures are averaged: one alone has features of its own
LEAST_IMAGES = 512   # of which quarters still have some images for each of a judge's features
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
    Curve("pc", (2000,), count=768),
    Curve("sde-dpmpp-2m", (8, 12, 16, 50), {"eta": 1.0}),
    Curve("sde-dpmpp-2m", (25,), {"eta": 1.0}, count=4096),
    Curve("sde-dpmpp-2m", (8, 12, 25), {"eta": 0.5}),
    Curve("sde-dpmpp-2m", (16, 50), {"eta": 2.0}),
    Curve("sde-dpmpp-2m", (25,), {"eta": 2.0}, count=4096),
    Curve("sde-dpmpp-2m", (25,), {"eta": 1.0, "rho": 3.0}, count=4096),
    Curve("sde-dpmpp-2m", (25,), {"eta": 1.0, "schedule": "geometric"}),
    Curve("sde-dpmpp-3m", (25,)),
    Curve("ancestral", (25, 50)),
    Curve("stochastic-heun", (13,)),
    Curve("dpmpp-2m", (12, 25)),
    Curve("dpmpp-2m", (12, 25), MEASURED),
    Curve("heun", (13,)),
    Curve("heun", (13,), MEASURED),
]


class Measure:
    """Judges and the real images that others are compared with.

    Args:
        data: that the model was trained on, see examples/digits/data.py.
    """

    def __init__(self, data: str = "digits") -> None:
        self.judges = [Judge(seed, data) for seed in range(JUDGES)]
        pixels, labels = real_digits(REAL, held_out=False, data=data)
        looks = [judge.look(pixels) for judge in self.judges]
        self.features = [features for features, _ in looks]
        self.references = [in_deviations(features, features) for features in self.features]
        self.classes = np.bincount(labels, minlength=10) / REAL
        self.accuracy = float(np.mean([(p.argmax(axis=1) == labels).mean() for _, p in looks]))

    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, Any]:
        """What the judges say of pictures, ``[N, H, W, C]``; the mean of all."""
        looks = [judge.look(pixels) for judge in self.judges]
        sets = [in_deviations(features, real) for (features, _), real in zip(looks, self.features, strict=True)]
        distance, error = extrapolated_distance(sets, self.references)
        p = np.mean([probabilities for _, probabilities in looks], axis=0)
        classes = np.bincount(p.argmax(axis=1), minlength=10) / len(pixels)
        grain = measured_noise(pixels.transpose(0, 3, 1, 2).astype(np.float32))
        return {
            "frechet": distance,
            "frechet_standard_error": error,
            "recognised": float((p.max(axis=1) > 0.9).mean()),
            "confidence": float(p.max(axis=1).mean()),
            "grain": float(np.median(grain)), "grain_90": float(np.percentile(grain, 90)),   # levels of 255
            "classes": classes.tolist(),
            "class_distance": float(np.abs(classes - self.classes).sum() / 2),   # total variation
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=IMAGES, help="images a point, if it does not say otherwise")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--solvers", nargs="+", choices=[curve.solver for curve in CURVES], help="these alone")
    parser.add_argument("--output", type=Path, help="the result as JSON")
    arguments = parser.parse_args()
    if arguments.count < LEAST_IMAGES:
        parser.error(f"--count {arguments.count} is too few, expected at least {LEAST_IMAGES}")
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
            print({key: value for key, value in row.items() if key != "classes"}, flush=True)
    command = " ".join(["python benchmarks/quality.py --count", str(arguments.count), "--provider",
                        arguments.provider, *(["--solvers", *arguments.solvers] if arguments.solvers else [])])
    result = {
        "environment": environment(command), "reference": REFERENCE,
        "images": arguments.count, "compared_with": REAL,
        "judges": JUDGES, "judge_accuracy_on_real": measure.accuracy,
        "real": measure(real_digits(arguments.count, held_out=False, seed=1)[0]),
        "unseen": measure(real_digits(arguments.count, held_out=True, seed=1)[0]),
        "rows": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

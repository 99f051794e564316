"""Quality against cost: solvers, steps and options on the bundled digits, or on another model.

    python benchmarks/quality.py --output benchmarks/results/quality.json
    python benchmarks/quality.py --data fashion --model MODEL --output benchmarks/results/quality_fashion.json

For each point: the Fréchet distance to real images in the features of judges that were trained on images the model has
not seen; how many they recognise with p > 0.9, and their mean confidence; the noise that finished images carry,
measured in their finest differences; and how far the distribution of the classes is from that of real images.

A Fréchet distance depends on the number of images, so it is extrapolated to infinitely many, and points of different
numbers compare. As many real images, the model's own training set in other colours, say what is left where nothing is
wrong; real images that it has not seen, what another hand makes.

Points that the output holds already are not run again, and images are kept in build/samples: a run that was stopped
goes on where it was, and points can be added. An output of other judges than benchmarks/judges/ holds is refused. What
takes hours is measured in parts, each of its own seeds, and its figures are means of theirs. MODEL is the export of
what `python examples/digits/train.py --data fashion` writes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sde_onnx
from sde_onnx.files import sha256
from sde_onnx.guidance.measured_noise import measured_noise
from sde_onnx.solvers.catalogue import QUALITIES
from sde_onnx.solvers.plan import Plan

from environment import environment
from fidelity import extrapolated_distance, in_deviations, real_digits
from judge import JUDGES, kept_judges, weights_of
from plots import plot_qualities
from samples import cached_samples
from variants import VARIANTS

IMAGES = 4096      # a point, if it does not say otherwise
REAL = 8192        # real images that they are compared with
LEAST_IMAGES = 512   # of which quarters still have some images for each of a judge's features
PICTURED = 16      # seeds of the picture
POINT = ("solver", "steps", "options")   # what a row is of


@dataclass(frozen=True)
class Curve:
    """A solver with options, over numbers of steps."""

    solver: str
    steps: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    part: int | None = None   # images that are sampled and measured at a time, of what takes hours


def _curves(solver: str, steps: tuple[int, ...], **options: tuple[Any, ...]) -> list[Curve]:
    """A curve for each combination of the values of options."""
    return [Curve(solver, steps, dict(zip(options, values, strict=True))) for values in product(*options.values())]


CURVES = [
    *_curves("restart", (50,), eta=(2.0, 3.0)),
    *_curves("restart", (25,), eta=(1.0, 2.0, 0.0)),
    *_curves("sde-dpmpp-2m", (25,), eta=(0.5, 1.0, 2.0, 3.0)),
    *_curves("sde-dpmpp-2m", (8, 12, 16), eta=(0.25, 0.5, 1.0, 2.0)),
    *_curves("restart", (12,), eta=(0.5, 1.0), restarts=(1,), restart_steps=(3,)),
    *_curves("restart", (50,), eta=(1.0,), restarts=(8,)),
    *_curves("restart", (100,), eta=(2.0,)),
    *_curves("restart", (50, 100), eta=(1.0,)),
    *_curves("restart", (100,), eta=(4.0,)),
    *_curves("restart", (100,), eta=(2.0,), restart_max=(1.0,)),
    *_curves("sde-dpmpp-2m", (100,), eta=(4.0, 7.0)),
    *_curves("sde-dpmpp-3m", (50,), eta=(2.0,)),
    *_curves("stochastic-heun", (50,), churn=(40.0,), churn_noise=(1.003,)),
    *_curves("sde-dpmpp-2m", (100,), eta=(4.0,), schedule=("geometric",)),
    Curve("pc", (50,)),
    *_curves("sde-dpmpp-2m", (50,), eta=(2.0, 3.0, 4.0)),
    *_curves("restart", (25,), eta=(1.0,), restart_max=(0.08, 0.3)),
    *_curves("restart-heun", (26,), restarts=(2,)),
    Curve("dpmpp-2m", (12, 25)),
    *_curves("dpmpp-2m", (25,), measure_noise=(True,)),
    Curve("heun", (13,)),
    Curve("stochastic-heun", (13,)),
    Curve("ancestral", (50,)),
    Curve("sde-dpmpp-3m", (25,)),
    Curve("pc", (1000,), part=1024),
]


class Measure:
    """Judges and the real images that others are compared with.

    Args:
        data: that the model was trained on, see examples/digits/data.py.
    """

    def __init__(self, data: str = "digits") -> None:
        self.judges = kept_judges(data)
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
        classes: NDArray[np.float64] = np.bincount(p.argmax(axis=1), minlength=10) / len(pixels)
        grain = measured_noise(pixels.transpose(0, 3, 1, 2).astype(np.float32))
        return {
            "frechet": distance,
            "frechet_standard_error": error,
            "recognised": float((p.max(axis=1) > 0.9).mean()),
            "confidence": float(p.max(axis=1).mean()),
            "grain": float(np.median(grain)), "grain_90": float(np.percentile(grain, 90)),   # levels of 255
            "classes": classes.tolist(),
            "class_distance": total_variation(classes, self.classes),
        }


def by_other_judges(result: dict[str, Any], weights: str) -> bool:
    """Whether the figures of a result are of other judges than those whose weights have this hash."""
    return bool(result["rows"]) and result.get("judge_weights") != weights


def parts_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts that a point was measured in: one, in rows of before there were any."""
    return row.get("parts") or [{name: value for name, value in row.items() if name not in POINT}]


def mean_of(parts: list[dict[str, Any]], real_classes: NDArray[np.float64]) -> dict[str, Any]:
    """The figures of a point from those of its parts, each of other seeds: means, weighted by their images."""
    images = sum(part["images"] for part in parts)
    weights = np.array([part["images"] for part in parts]) / images
    means = {name: np.average([part[name] for part in parts], axis=0, weights=weights).tolist() for name in parts[0]}
    errors = weights * [part["frechet_standard_error"] for part in parts]
    return means | {"images": images, "frechet_standard_error": float(np.linalg.norm(errors)),
                    "class_distance": total_variation(np.array(means["classes"]), real_classes)}


def total_variation(classes: NDArray[np.float64], real_classes: NDArray[np.float64]) -> float:
    """How far two distributions are from each other: the share that would have to be of another class."""
    return float(np.abs(classes - real_classes).sum() / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "fashion"), default="digits")
    parser.add_argument("--model", type=Path, help="a model of these data; the bundled digits if not given")
    parser.add_argument("--count", type=int, default=IMAGES, help="images a point, if it does not say otherwise")
    parser.add_argument("--solvers", nargs="+", choices=[*(curve.solver for curve in CURVES), *VARIANTS],
                        help="these alone, and these of variants.py")
    parser.add_argument("--steps", nargs="+", type=int, help="these numbers of steps alone")
    parser.add_argument("--output", type=Path, required=True, help="the result as JSON")
    parser.add_argument("--picture", type=Path, help="a picture of the same seeds under each quality, when all is done")
    arguments = parser.parse_args()
    if arguments.count < LEAST_IMAGES:
        parser.error(f"--count {arguments.count} is too few, expected at least {LEAST_IMAGES}")
    model = arguments.model or sde_onnx.bundled_model()
    metadata = sde_onnx.read_metadata(model)
    result = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"rows": []}
    weights = sha256(weights_of(arguments.data))
    if result.get("data", arguments.data) != arguments.data:
        parser.error(f"{arguments.output} is of --data {result['data']}: choose another --output")
    if by_other_judges(result, weights):
        parser.error(f"{arguments.output} was measured by other judges than those of {weights_of(arguments.data)}: "
                     "choose another --output, or bring theirs back")
    measure = Measure(arguments.data)
    result |= {
        "environment": environment(f"python benchmarks/quality.py --data {arguments.data}"), "data": arguments.data,
        "images": arguments.count, "compared_with": REAL,
        "judges": JUDGES, "judge_weights": weights, "judge_accuracy_on_real": measure.accuracy,
        "model_steps": metadata.schedule.num_scales,
    } | {name: measure(real_digits(arguments.count, held_out=held_out, seed=1, data=arguments.data)[0])
         for name, held_out in (("real", False), ("unseen", True))}
    points: list[tuple[Curve, int | None, Plan | None]] = [
        (curve, steps, None) for curve in CURVES for steps in curve.steps
        if curve.solver in (arguments.solvers or [curve.solver]) and steps in (arguments.steps or [steps])]
    if not arguments.steps:
        points += [(Curve(name, ()), None, make(metadata.schedule)) for name, make in VARIANTS.items()
                   if name in (arguments.solvers or VARIANTS)]
    for curve, steps, variant in points:
        request = ({"solver": "sde-dpmpp-2m", "variant": (curve.solver, variant)} if variant else
                   {"solver": curve.solver, **curve.options})
        point = dict(zip(POINT, (curve.solver, steps, curve.options), strict=True))
        held = next((row for row in result["rows"] if point.items() <= row.items()), None)
        parts = [] if held is None else parts_of(held)
        while (sampled := sum(part["images"] for part in parts)) < arguments.count:
            size = curve.part or arguments.count - sampled
            samples = cached_samples(size, first=sampled, steps=steps, provider="cpu", model_file=model, **request)
            parts.append({"images": size, "nfe": samples.nfe, **measure(samples.pixels)})
            row = point | mean_of(parts, measure.classes) | {"parts": parts}
            result["rows"] = [other for other in result["rows"] if not point.items() <= other.items()] + [row]
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")
            print({name: value for name, value in row.items() if name not in ("classes", "parts")}, flush=True)
    if arguments.picture:
        plot_qualities({name: cached_samples(PICTURED, solver=solver, steps=steps, provider="cpu", model_file=model,
                                             **options) for name, (solver, steps, options) in QUALITIES.items()},
                       arguments.picture)


if __name__ == "__main__":
    main()

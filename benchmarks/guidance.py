"""Classifier guidance on the bundled digits: how often the asked class is hit, and how good its images are.

    python benchmarks/guidance.py --output benchmarks/results/guidance.json

Of each weight and class: the share of samples in which judges, trained on digits that neither the model nor the
classifier has seen, see the asked one; and the Fréchet distance to real digits of that class in their features,
extrapolated to infinitely many images. As many real digits of the class in other colours say what is left where nothing
is wrong.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sde_onnx
from sde_onnx.files import sha256
from sde_onnx.images import to_uint8

from environment import environment
from fidelity import extrapolated_distance, in_deviations, real_digits
from judge import kept_judges, weights_of

WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0)
COUNT = 512    # of each class
REAL = 20_000  # real digits, of all classes


class ClassMeasure:
    """Judges, and the real digits of each class that images are compared with."""

    def __init__(self) -> None:
        self.judges = kept_judges()
        pixels, self.labels = real_digits(REAL, held_out=False)
        self.features = [judge.look(pixels)[0] for judge in self.judges]

    def __call__(self, pixels: NDArray[np.uint8], label: int) -> dict[str, float]:
        """What the judges say of pictures ``[N, H, W, C]`` that should show a class."""
        real = [features[self.labels == label] for features in self.features]
        looks = [judge.look(pixels) for judge in self.judges]
        sets = [in_deviations(features, of) for (features, _), of in zip(looks, real, strict=True)]
        distance, error = extrapolated_distance(sets, [in_deviations(of, of) for of in real])
        p = np.mean([probabilities for _, probabilities in looks], axis=0)
        return {"hit": float((p.argmax(axis=1) == label).mean()), "frechet": distance, "frechet_standard_error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT, help="images of each class")
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--output", type=Path, help="the result as JSON")
    arguments = parser.parse_args()
    measure = ClassMeasure()
    model = sde_onnx.load(sde_onnx.bundled_model(), arguments.provider)
    classifier = sde_onnx.load_classifier(sde_onnx.bundled_classifier(), arguments.provider)
    rows: list[dict[str, Any]] = []
    pixels, labels = real_digits(20 * arguments.count, held_out=False, seed=1)
    rows.append({"weight": "real digits", "classes": [
        measure(pixels[labels == label][: arguments.count], label) for label in range(10)]})
    for weight in arguments.weights:
        classes, start = [], time.perf_counter()
        for label in range(10):
            seeds = range(label * arguments.count, (label + 1) * arguments.count)
            images = sde_onnx.sample(model, seeds, labels=label, classifier=classifier, guidance=weight)
            classes.append(measure(to_uint8(images), label))
        seconds = (time.perf_counter() - start) / arguments.count / 10
        rows.append({"weight": weight, "seconds_per_image": seconds, "classes": classes})
    for row in rows:
        row |= {name: float(np.mean([each[name] for each in row["classes"]])) for name in ("hit", "frechet")}
        row["frechet_standard_error"] = float(np.sqrt(np.sum(
            [each["frechet_standard_error"] ** 2 for each in row["classes"]])) / 10)
        print(f"weight {row['weight']}: {row['hit']:.3f} show the asked class, Fréchet distance within it "
              f"{row['frechet']:.3f} ± {row['frechet_standard_error']:.3f}")
    if arguments.output:
        about = environment("python benchmarks/guidance.py --output benchmarks/results/guidance.json")
        result = {"environment": about, "judge_weights": sha256(weights_of("digits")), "count": arguments.count,
                  "rows": rows}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

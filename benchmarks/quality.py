"""Quality against cost: every solver over a range of evaluations, on the bundled digits.

    python benchmarks/quality.py --output benchmarks/results/quality.json

For each point: the Fréchet distance to real digits in the features of a judge that was trained on digits the model has
not seen (with its standard error over disjoint parts), how many images the judge recognises with p > 0.9, how its
classes are distributed, and seconds an image. Points that are sampled already are not sampled again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from environment import environment
from fidelity import Judge, frechet_distance, real_digits
from samples import cached_samples

PARTS = 4   # of which the standard error is taken
# Solver, its options, and its numbers of steps.
POINTS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("sde-dpmpp-2m", {}, (8, 12, 16, 20, 25, 35, 50)),
    ("sde-dpmpp-2m", {"schedule": "geometric"}, (12, 25, 50)),
    ("sde-dpmpp-2m", {"eta": 0.5}, (12, 25, 50)),
    ("sde-dpmpp-3m", {}, (12, 16, 20, 25, 35, 50)),
    ("ancestral", {}, (12, 25, 50, 100, 200)),
    ("stochastic-heun", {}, (13, 25, 50)),
    ("dpmpp-2m", {}, (8, 12, 16, 25, 50)),
    ("dpmpp-3m", {}, (12, 25, 50)),
    ("heun", {}, (6, 9, 13, 18, 25)),
    ("pc", {}, (50, 100, 250, 500, 1000)),
]
EVALUATIONS = {"pc": (2, 0), "heun": (2, -1), "stochastic-heun": (2, -1)}   # a step and in all; else one a step


def measure(judge: Judge, pixels: NDArray[np.uint8], real_features: NDArray[np.float64]) -> dict[str, Any]:
    """The judge's numbers of one set of images."""
    features, probabilities = judge.look(pixels)
    parts = [frechet_distance(part, real_features) for part in np.array_split(features, PARTS)]
    return {
        "frechet": frechet_distance(features, real_features),
        "frechet_standard_error": float(np.std(parts, ddof=1) / PARTS**0.5),
        "recognised": float((probabilities.max(axis=1) > 0.9).mean()),
        "classes": np.bincount(probabilities.argmax(axis=1), minlength=10).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--provider", default="openvino")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--solvers", nargs="+", help="these alone")
    parser.add_argument("--most", type=int, default=2000, help="evaluations; points above are left out")
    parser.add_argument("--output", type=Path, help="the result as JSON")
    arguments = parser.parse_args()
    judge = Judge()
    real, _ = real_digits(8192, held_out=False)
    real_features, real_p = judge.look(real)
    other, _ = real_digits(arguments.count, held_out=True, seed=1)
    rows = []
    for solver, options, counts in POINTS:
        for steps in counts:
            each, extra = EVALUATIONS.get(solver, (1, 0))
            nfe = each * steps + extra
            if nfe > arguments.most or (arguments.solvers and solver not in arguments.solvers):
                continue
            pixels = cached_samples(arguments.count, solver=solver, steps=steps, provider=arguments.provider,
                                    precision=arguments.precision, **options)
            rows.append({"solver": solver, "options": options, "steps": steps, "nfe": nfe}
                        | measure(judge, pixels, real_features))
            print({key: value for key, value in rows[-1].items() if key != "classes"}, flush=True)
    result = {
        "environment": environment("python benchmarks/quality.py"),
        "images": arguments.count, "provider": arguments.provider, "precision": arguments.precision,
        "real": {"recognised": float((real_p.max(axis=1) > 0.9).mean())},
        "held_out": measure(judge, other, real_features),   # real digits that the model has not seen
        "rows": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

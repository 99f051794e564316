"""What the qualities were chosen by: solvers, steps and options, tried on two models.

    python benchmarks/trials.py --output benchmarks/results/trials.json
    python benchmarks/trials.py --data fashion --model MODEL --output benchmarks/results/trials_fashion.json

Figures and judges are those of benchmarks/quality.py. Points that the output holds already are not run again, and the
images of a point are kept in build/samples, so a run that was stopped goes on where it was. MODEL is the export of what
`python examples/digits/train.py --data fashion` writes.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import sde_onnx

from environment import environment
from fidelity import real_digits
from quality import Curve, Measure
from samples import cached_samples

IMAGES = 4096


def _curves(solver: str, steps: tuple[int, ...], **options: tuple[Any, ...]) -> list[Curve]:
    """A curve for each combination of the values of options."""
    return [Curve(solver, steps, dict(zip(options, values, strict=True))) for values in product(*options.values())]


CURVES = [
    *_curves("sde-dpmpp-2m", (25,), eta=(0.5, 1.0, 2.0, 3.0)),
    *_curves("restart", (25,), eta=(2.0, 1.0, 0.0)),
    *_curves("sde-dpmpp-2m", (100,), eta=(4.0, 2.0, 6.0)),
    *_curves("sde-dpmpp-2m", (12,), eta=(0.5, 1.0, 0.25, 2.0)),
    *_curves("sde-dpmpp-2m", (8,), eta=(0.25, 0.5, 1.0)),
    *_curves("sde-dpmpp-2m", (16,), eta=(0.5, 1.0, 2.0)),
    *_curves("restart", (25,), eta=(2.0,), restarts=(1,), restart_steps=(4, 6)),
    *_curves("restart", (25,), eta=(2.0,), restarts=(3,), restart_steps=(2, 3)),
    *_curves("restart", (25,), eta=(2.0,), restart_max=(0.08, 0.3, 0.6)),
    *_curves("restart-heun", (26,), restarts=(2, 3)),
    *_curves("restart", (12,), eta=(1.0, 2.0), restarts=(1,), restart_steps=(3,)),
    *_curves("sde-dpmpp-2m", (36,), eta=(1.0, 2.0, 3.0, 4.0)),
    *_curves("sde-dpmpp-2m", (50,), eta=(1.0, 2.0, 3.0, 4.0, 6.0)),
    *_curves("restart", (50,), eta=(2.0, 3.0), restarts=(2, 4)),
    *_curves("restart", (100,), eta=(4.0,), restarts=(4,), restart_steps=(6,)),
    *_curves("sde-dpmpp-2m", (100,), eta=(1.0,)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "fashion"), default="digits")
    parser.add_argument("--model", type=Path, help="a model of these data; the bundled digits if not given")
    parser.add_argument("--count", type=int, default=IMAGES, help="images a point")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    model = arguments.model or sde_onnx.bundled_model()
    measure = Measure(arguments.data)
    result = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"rows": []}
    result |= {
        "environment": environment(f"python benchmarks/trials.py --data {arguments.data}"), "images": arguments.count,
        "judge_accuracy_on_real": measure.accuracy,
        "real": measure(real_digits(arguments.count, held_out=False, seed=1, data=arguments.data)[0]),
    }
    held = {json.dumps([row[name] for name in ("solver", "steps", "options", "images")]) for row in result["rows"]}
    for curve, steps in ((each, steps) for each in CURVES for steps in each.steps):
        point = {"solver": curve.solver, "steps": steps, "options": curve.options, "images": arguments.count}
        if json.dumps(list(point.values())) in held:
            continue
        samples = cached_samples(arguments.count, solver=curve.solver, steps=steps, provider="cpu", model_file=model,
                                 **curve.options)
        row = point | {"nfe": samples.nfe} | measure(samples.pixels)
        result["rows"].append(row)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        print({name: value for name, value in row.items() if name != "classes"}, flush=True)


if __name__ == "__main__":
    main()

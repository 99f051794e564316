"""What the qualities were chosen by: solvers, steps and options, tried on two models.

    python benchmarks/trials.py --output benchmarks/results/trials.json
    python benchmarks/trials.py --data fashion --model MODEL --output benchmarks/results/trials_fashion.json

Beside solvers of the catalogue, variants of DPM-Solver++ that were tried and are none of its options: eta that changes
with sigma, another last noise level, and Langevin corrections at small sigmas.

Figures and judges are those of benchmarks/quality.py. Points that the output holds already are not run again, and the
images of a point are kept in build/samples, so a run that was stopped goes on where it was. MODEL is the export of what
`python examples/digits/train.py --data fashion` writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import sde_onnx
from sde_onnx.solvers import multistep
from sde_onnx.solvers.plan import Evaluation, Langevin, Memory, Plan, Updated
from sde_onnx.solvers.protocols import Array
from sde_onnx.solvers.schedule import VeSchedule

from environment import environment
from fidelity import real_digits
from quality import Curve, Measure
from samples import cached_samples

IMAGES = 4096
KEY = ("solver", "steps", "options", "images")   # what a row is of


def _curves(solver: str, steps: tuple[int, ...], **options: tuple[Any, ...]) -> list[Curve]:
    """A curve for each combination of the values of options."""
    return [Curve(solver, steps, dict(zip(options, values, strict=True))) for values in product(*options.values())]


CURVES = [
    *_curves("sde-dpmpp-2m", (25,), eta=(0.5, 1.0, 2.0, 3.0)),
    *_curves("restart", (25,), eta=(2.0, 1.0, 0.0)),
    *_curves("sde-dpmpp-2m", (12,), eta=(0.5, 1.0, 0.25, 2.0)),
    *_curves("sde-dpmpp-2m", (8,), eta=(0.25, 0.5, 1.0)),
    *_curves("sde-dpmpp-2m", (16,), eta=(0.5, 1.0, 2.0)),
    *_curves("restart", (25,), eta=(1.0,), restarts=(1,), restart_steps=(4, 6)),
    *_curves("restart", (25,), eta=(1.0,), restarts=(3,), restart_steps=(2, 3)),
    *_curves("restart", (25,), eta=(1.0,), restart_max=(0.08, 0.3, 0.6)),
    *_curves("restart-heun", (26,), restarts=(2, 3)),
    *_curves("restart", (12,), eta=(0.5, 1.0), restarts=(1,), restart_steps=(3,)),
    *_curves("sde-dpmpp-2m", (36,), eta=(1.0, 2.0, 3.0, 4.0)),
    *_curves("sde-dpmpp-2m", (50,), eta=(1.0, 2.0, 3.0, 4.0, 6.0)),
    *_curves("restart", (50,), eta=(1.0, 2.0), restarts=(2, 4)),
    *_curves("restart", (100,), eta=(2.0,), restarts=(4,), restart_steps=(6,)),
    *_curves("sde-dpmpp-2m", (100,), eta=(4.0, 2.0, 6.0, 1.0)),
]


def eta_by_sigma(ve: VeSchedule, steps: int, *, eta: Callable[[float], float]) -> Plan:
    """DPM-Solver++ whose eta depends on the noise level of the step."""
    plan = multistep.plan(ve, steps, order=2, eta=1.0)
    return replace(plan, evaluations=tuple(
        replace(evaluation, update=partial(evaluation.update, eta=eta(float(evaluation.sigma))))
        for evaluation in plan.evaluations))


def last_level(ve: VeSchedule, steps: int, *, sigma: float, eta: float) -> Plan:
    """DPM-Solver++ whose last step starts from another noise level than the model's sigma_min."""
    return multistep.plan(replace(ve, sigma_min=sigma), steps, order=2, eta=eta)


def corrected(ve: VeSchedule, steps: int, *, below: float, snr: float, eta: float) -> Plan:
    """DPM-Solver++ with a Langevin correction at each noise level below a sigma."""
    plan = multistep.plan(ve, steps, order=2, eta=eta)
    evaluations: list[Evaluation] = []
    for evaluation in plan.evaluations:
        if evaluation.sigma < below:
            evaluations.append(Evaluation(evaluation.sigma, _correction, draws=True, langevin=Langevin(snr, "image")))
        evaluations.append(evaluation)
    return replace(plan, evaluations=tuple(evaluations))


def _correction(x: Array, score: Array, z: Array | None, memory: Memory) -> Updated:
    assert z is not None
    return x + score + z, x + score, memory


VARIANTS: dict[str, Callable[[VeSchedule], Plan]] = {
    f"sigma_last {sigma}, eta 2, {steps} steps": partial(last_level, steps=steps, sigma=sigma, eta=2.0)
    for steps, sigma in ((25, 0.005), (25, 0.02), (25, 0.03))
} | {
    f"eta {high} above {middle}, {low} below, 25 steps": partial(
        eta_by_sigma, steps=25, eta=lambda sigma, high=high, low=low, middle=middle: high if sigma > middle else low)
    for high, middle, low in ((1.0, 0.5, 3.0), (1.0, 0.5, 2.0), (2.0, 0.5, 1.0), (1.0, 0.1, 4.0))
} | {
    f"corrected below {below}, snr {snr}, eta {eta}, {steps} steps": partial(
        corrected, steps=steps, below=below, snr=snr, eta=eta)
    for steps, below, snr, eta in ((21, 0.1, 0.16, 2.0), (21, 0.1, 0.1, 2.0), (21, 0.1, 0.16, 1.0))
}


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
    held = {json.dumps([row[name] for name in KEY]) for row in result["rows"]}
    points: list[tuple[str, int | None, dict[str, Any], Plan | None]] = [
        (curve.solver, steps, curve.options, None) for curve in CURVES for steps in curve.steps]
    points += [(name, None, {}, make(sde_onnx.read_metadata(model).schedule)) for name, make in VARIANTS.items()]
    for solver, steps, options, plan in points:
        point = dict(zip(KEY, (solver, steps, options, arguments.count), strict=True))
        if json.dumps(list(point.values())) in held:
            continue
        request = {"solver": "sde-dpmpp-2m", "variant": (solver, plan)} if plan else {"solver": solver, **options}
        samples = cached_samples(arguments.count, steps=steps, provider="cpu", model_file=model, **request)
        row = point | {"nfe": samples.nfe} | measure(samples.pixels)
        result["rows"].append(row)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        print({name: value for name, value in row.items() if name != "classes"}, flush=True)


if __name__ == "__main__":
    main()

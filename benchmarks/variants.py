"""Variants of DPM-Solver++ that were tried and are none of its options: quality.py measures them beside the solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from sde_onnx.solvers import multistep, restart
from sde_onnx.solvers.plan import Evaluation, Langevin, Memory, Plan, Update, Updated
from sde_onnx.solvers.protocols import Array
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["VARIANTS"]


def restarting(ve: VeSchedule, steps: int, *, eta: float, restarts: int) -> Plan:
    """DPM-Solver++ with restarts as in the solver of that name, or none."""
    return restart.multistep_plan(ve, steps, schedule="karras", rho=7.0, order=2, eta=eta, restarts=restarts,
                                  restart_steps=4, restart_min=0.03, restart_max=0.15)


def eta_by_sigma(ve: VeSchedule, steps: int, *, eta: Callable[[float], float], restarts: int = 0) -> Plan:
    """DPM-Solver++ whose eta depends on the noise level of the step."""
    plan = restarting(ve, steps, eta=1.0, restarts=restarts)
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


def noisier(ve: VeSchedule, steps: int, *, scale: float, eta: float, restarts: int = 0) -> Plan:
    """DPM-Solver++ whose noise is scaled, as by S_noise of Karras et al. 2022, section 4: x holds more than it says."""
    plan = restarting(ve, steps, eta=eta, restarts=restarts)

    def scaled(x: Array, score: Array, z: Array | None, memory: Memory, *, update: Update) -> Updated:
        return update(x, score, None if z is None else scale * z, memory)

    return replace(plan, evaluations=tuple(
        replace(evaluation, update=partial(scaled, update=evaluation.update)) for evaluation in plan.evaluations))


def _correction(x: Array, score: Array, z: Array | None, memory: Memory) -> Updated:
    assert z is not None
    return x + score + z, x + score, memory


VARIANTS: dict[str, Callable[[VeSchedule], Plan]] = {
    f"sigma_last {sigma}, eta 2, {steps} steps": partial(last_level, steps=steps, sigma=sigma, eta=2.0)
    for steps, sigma in ((25, 0.005), (25, 0.02), (25, 0.03))
} | {
    f"eta {high} above {middle}, {low} below, {steps} steps" + (f", {restarts} restarts" if restarts else ""): partial(
        eta_by_sigma, steps=steps, restarts=restarts,
        eta=lambda sigma, high=high, low=low, middle=middle: high if sigma > middle else low)
    for high, middle, low, steps, restarts in (
        (1.0, 0.5, 3.0, 25, 0), (1.0, 0.5, 2.0, 25, 0), (2.0, 0.5, 1.0, 25, 0), (1.0, 0.1, 4.0, 25, 0),
        (0.5, 0.5, 2.0, 12, 0), (0.5, 0.2, 2.0, 12, 0), (0.5, 0.2, 4.0, 12, 0),
        (1.0, 1.0, 4.0, 50, 4), (0.25, 1.0, 3.0, 50, 4))
} | {
    f"corrected below {below}, snr {snr}, eta {eta}, {steps} steps": partial(
        corrected, steps=steps, below=below, snr=snr, eta=eta)
    for steps, below, snr, eta in ((21, 0.1, 0.16, 2.0), (21, 0.1, 0.1, 2.0), (21, 0.1, 0.16, 1.0),
                                    (50, 20.0, 0.16, 2.0), (50, 20.0, 0.16, 1.0))
} | {
    f"noise times {scale}, eta {eta}, {steps} steps" + (f", {restarts} restarts" if restarts else ""): partial(
        noisier, steps=steps, scale=scale, eta=eta, restarts=restarts)
    for scale, eta, steps, restarts in ((1.01, 2.0, 50, 0), (1.01, 2.0, 50, 4), (1.02, 2.0, 50, 0),
                                        (1.005, 4.0, 100, 0))
}

"""Restart: after a small noise level, noise is put in again up to a larger one, and the way down repeated, K times.

    x(sigma_hi) = x(sigma_lo) + sqrt(sigma_hi^2 - sigma_lo^2) z      then the solver's own steps back to sigma_lo

What earlier steps got wrong is contracted by the noise, as it is in a stochastic solver, but at few noise levels and
with steps as long as those of an ODE. Any solver of this package that goes along a list of noise levels can do it.

Source: Xu et al. 2023, "Restart Sampling for Improving Generative Processes", section 3.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from sde_onnx.errors import InputError
from sde_onnx.solvers import heun, multistep
from sde_onnx.solvers.plan import Plan
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["heun_plan", "multistep_plan", "way"]

SHARE = 3   # one step of so many is a restart's, if not told how many restarts


def multistep_plan(
    ve: VeSchedule, steps: int, *, schedule: str, rho: float, order: int, eta: float, restarts: int | None,
    restart_steps: int, restart_min: float, restart_max: float,
) -> Plan:
    """The plan of multistep DPM-Solver++ with restarts; an evaluation a step.

    Args:
        ve, schedule, rho, order, eta: see :func:`sde_onnx.solvers.multistep.plan`.
        steps, restarts, restart_steps, restart_min, restart_max: see :func:`way`.
    """
    taken = way(ve, steps, schedule, rho, restarts, restart_steps, restart_min, restart_max)
    return replace(multistep.along(taken, order=order, eta=eta), restarts=_restarts(taken))


def heun_plan(
    ve: VeSchedule, steps: int, *, schedule: str, rho: float, restarts: int | None, restart_steps: int,
    restart_min: float, restart_max: float,
) -> Plan:
    """The plan of Heun's method with restarts, the paper's own; two evaluations a step, one in the last.

    Arguments: :func:`multistep_plan`.
    """
    taken = way(ve, steps, schedule, rho, restarts, restart_steps, restart_min, restart_max)
    return replace(heun.along(taken), restarts=_restarts(taken))


def _restarts(taken: list[tuple[float, float]]) -> int:
    """How often a step starts above the end of the last."""
    return sum(end < start for (_, end), (start, _) in pairwise(taken))


def way(
    ve: VeSchedule, steps: int, schedule: str, rho: float, restarts: int | None, restart_steps: int,
    restart_min: float, restart_max: float,
) -> list[tuple[float, float]]:
    """The noise levels that each step goes from and to. Where one starts above the end of the last, noise is put in.

    Args:
        ve: the model's noise levels.
        steps: of all, with those of the restarts.
        schedule, rho: see :meth:`sde_onnx.VeSchedule.spaced`; of the restarts' own steps too.
        restarts: K, how often noise is put in; ``None``: as often as a third of the steps allows, and not at all where
            no noise level is below restart_max.
        restart_steps: steps from restart_max down again.
        restart_min: after the noise level nearest to it, in ratio, the restarts begin; of those below restart_max.
        restart_max: the noise level that they reach, or the model's sigma_max if that is less.

    Raises:
        InputError: a restart that goes nowhere.
    """
    if not restart_min < restart_max:
        raise InputError(f"restart_max is {restart_max:g}, expected more than restart_min, {restart_min:g}")
    top = min(restart_max, ve.sigma_max)
    count = steps // (SHARE * restart_steps) if restarts is None else restarts
    sigmas = ve.spaced(steps - count * restart_steps, schedule, rho)
    below = [sigma for sigma in sigmas[:-1] if sigma < top]
    if count == 0 or (restarts is None and not below):
        return list(pairwise(ve.spaced(steps, schedule, rho)))
    if not below:
        raise InputError(f"restart_max is {restart_max:g}, expected more than the last noise level, {sigmas[-2]:g}")
    low = min(below, key=lambda sigma: max(sigma, restart_min) / min(sigma, restart_min))
    again = VeSchedule(low, top).spaced(restart_steps + 1, schedule, rho)[:-1]
    after = sigmas.index(low) + 1
    return [*pairwise(sigmas[:after]), *count * list(pairwise(again)), *pairwise(sigmas[after - 1 :])]

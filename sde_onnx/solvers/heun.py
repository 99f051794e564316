"""Heun's method on the probability-flow ODE, with noise put in before each step if there is churn.

    dx / dsigma = -sigma s(x, sigma)

    guess    x' = x + (sigma' - sigma) d                      d  the slope at x
    step     x <- x + (sigma' - sigma) (d + d') / 2           d' the slope at the guess

Two evaluations a step, one in the last. The noise of a step is put in at the end of the step before.

Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithms 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from itertools import pairwise

from sde_onnx.solvers.plan import Evaluation, Memory, Plan, Updated, denoise, denoised
from sde_onnx.solvers.protocols import Array
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["along", "churned_levels", "euler_guess", "heun_step", "plan"]


def euler_guess(x: Array, score: Array, z: Array | None, memory: Memory, *, sigma: float, sigma_next: float) -> Updated:
    """The guess, with x and its score remembered for the step.

    Source: Karras et al. 2022, algorithm 1, lines 4 and 5.
    """
    return x + (sigma_next - sigma) * _slope(score, sigma), denoised(x, score, sigma), (x, score)


def heun_step(
    guess: Array, score: Array, z: Array | None, memory: Memory, *, sigma: float, sigma_next: float, deviation: float
) -> Updated:
    """The step from x, which is remembered, with the score at the guess; ``x_mean`` is D at x.

    Args:
        guess, score, z, memory: see :data:`sde_onnx.solvers.plan.Update`. The guess and what is remembered, x and its
            score, are those of :func:`euler_guess`; z is the next step's noise.
        sigma, sigma_next: the noise levels that the step goes from and to.
        deviation: of the next step's noise.

    Source: Karras et al. 2022, algorithm 1, lines 7 and 8; the noise is algorithm 2, line 6.
    """
    x, first = memory
    stepped = x + (sigma_next - sigma) * (_slope(first, sigma) + _slope(score, sigma_next)) / 2
    return (stepped if z is None else stepped + deviation * z), denoised(x, first, sigma), ()


def plan(
    ve: VeSchedule,
    steps: int,
    *,
    schedule: str = "karras",
    rho: float = 7.0,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float | None = None,
    churn_noise: float = 1.0,
) -> Plan:
    """The plan of Heun's method.

    Args:
        ve: the model's noise levels.
        steps: at least 2.
        schedule, rho: see :meth:`sde_onnx.VeSchedule.spaced`.
        churn, churn_min, churn_max, churn_noise: see :data:`sde_onnx.solvers.options.OPTIONS`; the paper's S_churn,
            S_tmin, S_tmax and S_noise.

    Source: Karras et al. 2022, algorithms 1 and 2.
    """
    return along(pairwise(ve.spaced(steps, schedule, rho)), churn=churn, churn_min=churn_min, churn_max=churn_max,
                 churn_noise=churn_noise)


def along(
    way: Iterable[tuple[float, float]], *, churn: float = 0.0, churn_min: float = 0.0, churn_max: float | None = None,
    churn_noise: float = 1.0,
) -> Plan:
    """The plan of steps from one noise level to another, ``(sigma, sigma_next)`` each.

    Args:
        way: the steps. Where one starts above the end of the last, noise is put in.
        churn, churn_min, churn_max, churn_noise: see :func:`plan`.
    """
    way = list(way)
    levels = churned_levels(way, churn, churn_min, math.inf if churn_max is None else churn_max, churn_noise)
    evaluations = []
    for index, (sigma, _, sigma_next) in enumerate(levels):
        if sigma_next == 0:
            evaluations.append(Evaluation(sigma, partial(denoise, sigma=sigma), ends=index))
            continue
        deviation = levels[index + 1][1]
        step = partial(heun_step, sigma=sigma, sigma_next=sigma_next, deviation=deviation)
        evaluations += [
            Evaluation(sigma, partial(euler_guess, sigma=sigma, sigma_next=sigma_next)),
            Evaluation(sigma_next, step, draws=deviation > 0, ends=index),
        ]
    start = (way[0][0], levels[0][1]) if levels[0][1] > 0 else (way[0][0],)
    return Plan(start, tuple(evaluations), tuple(sigma for sigma, _, _ in levels))


def churned_levels(
    way: list[tuple[float, float]], churn: float, churn_min: float, churn_max: float, churn_noise: float
) -> list[tuple[float, float, float]]:
    """What noise each step puts in: the level that it reaches, the noise's deviation, and the level after the step.

    Source: Karras et al. 2022, algorithm 2, lines 4 to 6.
    """
    gamma = min(churn / len(way), math.sqrt(2) - 1)
    levels, reached = [], way[0][0]
    for sigma, sigma_next in way:
        raised = sigma * (1 + gamma) if churn_min <= sigma <= churn_max else sigma
        levels.append((raised, churn_noise * math.sqrt(raised**2 - reached**2), sigma_next))
        reached = sigma_next
    return levels


def _slope(score: Array, sigma: float) -> Array:
    return -sigma * score

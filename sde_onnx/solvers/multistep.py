"""Multistep DPM-Solver++: tens of evaluations instead of thousands, in sigma alone.

With ``D(x, sigma) = x + sigma^2 s(x, sigma)``, the denoised image, and ``lambda = -log sigma``, the process from sigma
to a smaller sigma' obeys, for any ``eta >= 0`` (0 the probability-flow ODE, 1 the reverse diffusion),

    x' = e^-a x + (1 + eta) integral of e^-(1 + eta)(lambda' - l) D(l) dl + sigma' sqrt(1 - e^-2 eta h) z
    h = lambda' - lambda,   a = (1 + eta) h

D between two levels is the polynomial through its last values, of which there are few at first. With
u = (l - lambda) / h the weights of 1, u and u^2 are 1 - e^-a, p and 1 - 2 p / a, where p = 1 - (1 - e^-a) / a.

A variance-exploding network is told sigma and does not notice that x holds more noise than that, so what a step leaves
over stays. Noise that is put in and taken out again (eta, churn) takes the left-overs with it; without it they can be
measured: see :mod:`sde_onnx.guidance.measured_noise`.

Source: Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", algorithm 2
and appendix B; with noise, appendix C ("SDE-DPM-Solver++"). Of two denoised images the algorithm weights the slope by
(1 - e^-a) / 2; here the line through them is integrated exactly, which differs from the third order on. diffusers has
it as ``solver_type="heun"``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise

from sde_onnx.solvers.plan import Evaluation, Memory, Plan, Updated, denoised
from sde_onnx.solvers.protocols import Array
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["along", "multistep", "plan"]


def multistep(
    x: Array, score: Array, z: Array | None, memory: Memory, *, sigmas: tuple[float, ...], sigma_next: float,
    raised: float, order: int, eta: float,
) -> Updated:
    """A step to the next noise level; to 0 it is the denoised image. ``memory`` holds the last values of D.

    Args:
        x, score, z, memory: see :data:`sde_onnx.solvers.plan.Update`; the newest denoised image stands first.
        sigmas: the step's own noise level, then those of the denoised images that it uses.
        sigma_next: the next noise level.
        raised: the level up to which noise is put in after the step, >= sigma_next; the same draw serves both.
        order: denoised images that a step uses where it has them, 1 to 3.
        eta: how much noise.

    Source: Lu et al. 2022, algorithm 2 and appendices B and C.
    """
    sigma = sigmas[0]
    image = denoised(x, score, sigma)
    if sigma_next == 0:
        x = image
    else:
        lambdas = [-math.log(level) for level in sigmas]
        x = _integral(x, list(zip(lambdas, (image, *memory), strict=False)), -math.log(sigma_next), eta)
        if z is not None:
            drawn = sigma_next * math.sqrt(-math.expm1(-2 * eta * math.log(sigma / sigma_next)))
            x = x + math.hypot(drawn, math.sqrt(raised**2 - sigma_next**2)) * z
    return x, image, (image, *memory)[: order - 1]


def plan(
    ve: VeSchedule, steps: int, *, schedule: str = "karras", rho: float = 7.0, order: int, eta: float
) -> Plan:
    """The plan of a solver of one evaluation a step.

    Args:
        ve: the model's noise levels.
        steps: at least ``order``, and 2.
        schedule, rho: see :meth:`sde_onnx.VeSchedule.spaced`.
        order: values of D that a step uses, 1 to 3.
        eta: 0 for the ODE, 1 for the reverse diffusion, or between or above.
    """
    return along(pairwise(ve.spaced(steps, schedule, rho)), order=order, eta=eta)


def along(way: Iterable[tuple[float, float]], *, order: int, eta: float) -> Plan:
    """The plan of steps from one noise level to another, ``(sigma, sigma_next)`` each.

    Args:
        way: the steps. Where one starts above the end of the last, noise is put in, and what is remembered is not used.
        order, eta: see :func:`plan`.
    """
    way, evaluations = list(way), []
    known: tuple[float, ...] = ()   # noise levels of the denoised images that are remembered, the newest first
    for index, (sigma, sigma_next) in enumerate(way):
        known = (sigma, *known)[:order]
        raised = way[index + 1][0] if sigma_next > 0 else 0.0
        update = partial(multistep, sigmas=known, sigma_next=sigma_next, raised=raised, order=order, eta=eta)
        evaluations.append(Evaluation(sigma, update, draws=raised > sigma_next or (eta > 0 and sigma_next > 0),
                                      ends=index))
        known = known if raised == sigma_next else ()
    return Plan((way[0][0],), tuple(evaluations), tuple(sigma for sigma, _ in way))


def _integral(x: Array, history: Sequence[tuple[float, Array]], target: float, eta: float) -> Array:
    """x at lambda ``target``, without its noise, from lambda and D of the last levels, the newest first."""
    now, newest = history[0]
    h = target - now
    a = (1 + eta) * h
    x = math.exp(-a) * x - math.expm1(-a) * newest
    p = 1 + math.expm1(-a) / a
    if len(history) == 2:
        x = x + p * _slope(history[0], history[1]) * h
    elif len(history) == 3:
        first, second = _slope(history[0], history[1]), _slope(history[1], history[2])
        curvature = (first - second) / (now - history[2][0])
        tangent = first + curvature * (now - history[1][0])
        x = x + p * h * tangent + (1 - 2 * p / a) * h**2 * curvature
    return x


def _slope(newer: tuple[float, Array], older: tuple[float, Array]) -> Array:
    return (newer[1] - older[1]) / (newer[0] - older[0])

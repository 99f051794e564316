"""Solvers on noise levels that are given: tens of evaluations instead of thousands, in sigma alone.

With ``D(x, sigma) = x + sigma^2 s(x, sigma)``, the denoised image, and ``lambda = -log sigma``, the process from sigma
to a smaller sigma' obeys, for any ``eta >= 0`` (0 the probability-flow ODE, 1 the reverse diffusion),

    x' = e^-a x + (1 + eta) integral of e^-(1 + eta)(lambda' - l) D(l) dl + sigma' sqrt(1 - e^-2 eta h) z
    h = lambda' - lambda,   a = (1 + eta) h

and solvers differ in how they take D between the evaluations that they have. A schedule is a list of sigmas that falls
to 0, where the last step returns D itself. Every solver yields after each step; ``x_mean`` is D, the denoised image.

A variance-exploding network is told sigma and does not notice that x holds more noise than that, so what a step leaves
over stays. Noise that is put in and taken out again (eta, churn) takes the left-overs with it; without it they can be
measured: see :mod:`sde_onnx.noise_level`.

Sources: Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models"; Karras et
al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithms 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_onnx.errors import InputError
from sde_onnx.noise import NoiseSource
from sde_onnx.samplers import ScoreFunction, Step, check_finite, told

__all__ = ["churned_levels", "dpm_solver", "heun", "heun_step", "multistep_weights"]

Array = Any


def dpm_solver(
    score: ScoreFunction, noise: NoiseSource, sigmas: Sequence[float], *, order: int = 2, eta: float = 1.0
) -> Iterator[Step]:
    """Multistep DPM-Solver++: D between two levels is the polynomial through its last values; one evaluation a step.

    The first steps have fewer values and so a lower order, where D hardly moves.

    Args:
        score: the score function.
        noise: returns the next standard normal array ``[N, C, H, W]``; one for the latent, and with ``eta`` one a step.
        sigmas: noise levels, falling, the last 0.
        order: values of D that a step uses, 1 to 3.
        eta: 0 for the ODE, 1 for the reverse diffusion, or between or above.

    Raises:
        InputError: an argument out of its range, or too few sigmas for the order.
        NonFiniteError: x stopped being finite.

    Source: Lu et al. 2022, algorithm 2 and appendix B; with noise, appendix C ("SDE-DPM-Solver++").
    """
    if order not in (1, 2, 3):
        raise InputError(f"order is {order!r}, expected 1, 2 or 3")
    if not (math.isfinite(eta) and eta >= 0):
        raise InputError(f"eta is {eta!r}, expected a number of 0 or more")
    _check_sigmas(sigmas, least=order)

    def run() -> Iterator[Step]:
        x = noise() * sigmas[0]
        history: list[tuple[float, Array]] = []   # of the last levels: lambda and D, the newest first
        for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            with np.errstate(all="ignore"):
                denoised = x + sigma**2 * score(x, told(x, sigma))
                history = [(-math.log(sigma), denoised), *history][:order]
                if sigma_next == 0:
                    x = denoised
                else:
                    x = _multistep(x, history, -math.log(sigma_next), eta)
                    if eta > 0:
                        x = x + _noise_deviation(sigma, sigma_next, eta) * noise()
            check_finite(x, index, len(sigmas) - 1, sigma)
            yield Step(index, sigma, x, denoised, index + 1)

    return run()


def heun(
    score: ScoreFunction,
    noise: NoiseSource,
    sigmas: Sequence[float],
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> Iterator[Step]:
    """Heun's method on the probability-flow ODE, with noise put in before each step if ``churn`` is above 0.

    Two evaluations a step, one in the last.

    Args:
        score: the score function.
        noise: returns the next standard normal array ``[N, C, H, W]``; one for the latent, one a churned step.
        sigmas: noise levels, falling, the last 0.
        churn: how much noise, spread over all steps; the paper's S_churn, >= 0.
        churn_min, churn_max: the range of sigmas in which noise is put in; S_tmin, S_tmax.
        churn_noise: standard deviation of that noise; S_noise.

    Raises:
        InputError: an argument out of its range.
        NonFiniteError: x stopped being finite.

    Source: Karras et al. 2022, algorithms 1 and 2.
    """
    _check_sigmas(sigmas, least=1)
    levels = churned_levels(sigmas, churn, churn_min, churn_max, churn_noise)

    def run() -> Iterator[Step]:
        x, nfe = noise() * sigmas[0], 0
        for index, (sigma, deviation, sigma_next) in enumerate(levels):
            with np.errstate(all="ignore"):
                if deviation > 0:
                    x = x + deviation * noise()
                x, denoised = heun_step(score, x, sigma, sigma_next)
            nfe += 2 if sigma_next > 0 else 1
            check_finite(x, index, len(levels), sigma)
            yield Step(index, sigma, x, denoised, nfe)

    return run()


def heun_step(score: ScoreFunction, x: Array, sigma: Array, sigma_next: Array) -> tuple[Array, Array]:
    """One step of Heun's method on the probability-flow ODE, ``dx / dsigma = -sigma s``; to 0 it is the denoised image.

    Returns:
        ``x`` at the next noise level, and the denoised image of the step's first evaluation.

    Source: Karras et al. 2022, algorithm 1.
    """
    gradient = score(x, told(x, sigma))
    denoised = x + sigma**2 * gradient
    if isinstance(sigma_next, float) and sigma_next == 0:
        return denoised, denoised
    slope = -sigma * gradient
    guess = x + (sigma_next - sigma) * slope
    second = -sigma_next * score(guess, told(x, sigma_next))
    return x + (sigma_next - sigma) * (slope + second) / 2, denoised


def churned_levels(
    sigmas: Sequence[float], churn: float, churn_min: float = 0.0, churn_max: float = math.inf, churn_noise: float = 1.0
) -> list[tuple[float, float, float]]:
    """What noise each step puts in: the level that it reaches, the noise's deviation, and the level after the step.

    Raises:
        InputError: ``churn`` is not a number of 0 or more.

    Source: Karras et al. 2022, algorithm 2.
    """
    if not (math.isfinite(churn) and churn >= 0):
        raise InputError(f"churn is {churn!r}, expected a number of 0 or more")
    gamma = min(churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    levels = []
    for sigma, sigma_next in pairwise(sigmas):
        raised = sigma * (1 + gamma) if churn_min <= sigma <= churn_max else sigma
        levels.append((raised, churn_noise * math.sqrt(raised**2 - sigma**2), sigma_next))
    return levels


def multistep_weights(sigmas: Sequence[float], *, order: int, eta: float) -> NDArray[np.float64]:
    """The weights of x, of the last ``order`` values of D (the newest first) and of the noise in :func:`dpm_solver`.

    A step is linear in all of them, and its weights depend on the noise levels alone: where those are fixed a table is
    all that a port needs.

    Returns:
        ``[len(sigmas) - 1, order + 2]``.
    """
    rows = []
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        known = [-math.log(sigmas[index - back]) for back in range(min(order, index + 1))]
        row = np.zeros(order + 2)
        if sigma_next == 0:
            row[1] = 1.0
        else:
            for column in range(len(known) + 1):
                unit = [float(column == place) for place in range(len(known) + 1)]
                row[column] = _multistep(unit[0], list(zip(known, unit[1:], strict=True)), -math.log(sigma_next), eta)
            row[-1] = _noise_deviation(sigma, sigma_next, eta)
        rows.append(row)
    return np.array(rows)


def _noise_deviation(sigma: float, sigma_next: float, eta: float) -> float:
    """The standard deviation of the noise that a step from ``sigma`` to ``sigma_next`` > 0 adds."""
    return sigma_next * math.sqrt(-math.expm1(-2 * eta * math.log(sigma / sigma_next)))


def _multistep(x: Array, history: Sequence[tuple[float, Array]], target: float, eta: float) -> Array:
    """x at lambda ``target``, without its noise: the integral of the polynomial through the history of D.

    With u = (l - lambda) / h the weights of 1, u and u^2 are 1 - e^-a, p and 1 - 2 p / a, where p = 1 - (1 - e^-a) / a.
    """
    now, denoised = history[0]
    h = target - now
    a = (1 + eta) * h
    x = math.exp(-a) * x - math.expm1(-a) * denoised
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


def _check_sigmas(sigmas: Sequence[float], *, least: int) -> None:
    """Refuses a schedule that does not fall to 0 in at least ``least`` steps."""
    falls = all(before > after >= 0 for before, after in pairwise(sigmas))
    if len(sigmas) < 2 or not falls or sigmas[-1] != 0 or not math.isfinite(sigmas[0]):
        raise InputError("sigmas must fall, from a finite number to 0 at the end, and only there")
    if len(sigmas) - 1 < least:
        raise InputError(f"{len(sigmas) - 1} steps are too few for a solver of order {least}: at least {least}")

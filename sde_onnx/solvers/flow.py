"""The probability-flow ODE between two noise levels, each image in steps of its own: what codes and likelihoods solve.

    dx / du = -sigma^2 s(x, sigma),   u = ln sigma

by Dormand and Prince's pair of orders 5 and 4. The step control is that of scipy's ``RK45``, but for each image alone:
so an image does not depend on those beside it. The batch goes on until its last image is done, and those that are done
wait, evaluated in vain, so that the batch keeps its size.

Source: Song et al. 2021, equation 13; Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae", table 2;
Hairer, Nørsett and Wanner 1993, "Solving Ordinary Differential Equations I", section II.4, for the step control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sde_onnx.checks import MOST_STEPS, checked_count
from sde_onnx.errors import NonFiniteError
from sde_onnx.solvers.options import FLOW_TOLERANCE, OPTIONS
from sde_onnx.solvers.protocols import Score

__all__ = ["FlowState", "Slope", "check_steps", "integrate_each", "probability_flow"]

Float64Array = NDArray[np.float64]
Slope = Callable[[Float64Array, Float64Array], Float64Array]   # of u [N] and y [N, M]: dy / du [N, M]

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)   # where the second to the sixth slope of a step are taken
STAGES = (                                   # the weights of the slopes before each of them
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
FIFTH = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
# Fifth order less fourth; the seventh slope is the first of the next step.
ERROR = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
SAFETY, SHRINK_MOST, GROW_MOST = 0.9, 0.2, 10.0   # of a step's next length
EXPONENT = -1 / 5                                 # the error of a step is of the fifth order in its length
SHORTEST_STEP = 1e-7                              # of u; below, a tolerance asks for what float32 scores cannot give


class FlowState(NamedTuple):
    """Where each image is."""

    u: Float64Array           # ``[N]``, ln sigma
    y: Float64Array           # ``[N, M]``
    nfe: NDArray[np.int64]    # ``[N]``, evaluations of the slope that the image itself needed


def probability_flow(score: Score, image_shape: tuple[int, int, int]) -> Slope:
    """The slope of the probability-flow ODE in ln sigma, for :func:`integrate_each`.

    Args:
        score: the score function.
        image_shape: ``(C, H, W)``, whose values y holds, ``[N, C * H * W]``.
    """
    return partial(_flow, score, image_shape)


def _flow(score: Score, image_shape: tuple[int, int, int], u: Float64Array, y: Float64Array) -> Float64Array:
    """``-sigma^2 s(x, sigma)``; the score takes and returns float32."""
    sigma = np.exp(u)
    gradient = score(y.reshape(len(y), *image_shape).astype(np.float32), sigma.astype(np.float32))
    slope: Float64Array = -(sigma**2)[:, None] * gradient.reshape(y.shape)
    return slope


def integrate_each(
    slope: Slope, y: Float64Array, start: float, end: float, *, rtol: float = FLOW_TOLERANCE,
    atol: float = FLOW_TOLERANCE, steps: int | None = None,
) -> Iterator[FlowState]:
    """Solves ``dy / du = slope(u, y)`` from ``start`` to ``end`` for each image by itself.

    Args:
        slope: takes u ``[N]`` and y ``[N, M]`` and returns ``[N, M]``, float64; a row depends on its own row alone.
        y: the values at ``start``, ``[N, M]`` float64.
        start, end: ln sigma; either may be the larger.
        rtol, atol: relative and absolute tolerance of a step, > 0, in the root mean square over an image's M values.
        steps: in place of tolerances: so many equal steps of the formula of fifth order, >= 1.

    Yields:
        The state at the start, and after each step that is tried; the last has every ``u`` at ``end``. A step takes six
        evaluations.

    Raises:
        InputError: a tolerance or ``steps`` out of its range; at once.
        NonFiniteError: a slope is NaN or infinite, or a step size fell to nothing.
    """
    check_steps(rtol, atol, steps)
    if steps is None:
        return _adapted_steps(slope, y, start, end, rtol, atol)
    return _equal_steps(slope, y, start, end, steps)


def check_steps(rtol: float = FLOW_TOLERANCE, atol: float = FLOW_TOLERANCE, steps: int | None = None) -> None:
    """``InputError`` where tolerances, or steps in their place, are out of their range."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        OPTIONS[name].checked(name, value)
    if steps is not None:
        checked_count("steps", steps, least=1, most=MOST_STEPS)


def _equal_steps(slope: Slope, y: Float64Array, start: float, end: float, steps: int) -> Iterator[FlowState]:
    levels = [np.full(len(y), level) for level in np.linspace(start, end, steps + 1)]
    nfe = np.zeros(len(y), np.int64)
    yield FlowState(levels[0], y, nfe)
    for u, u_next in pairwise(levels):
        h = u_next - u
        slopes = _slopes(slope, u, y, _finite_slope(slope, u, y), h)
        y, nfe = y + h[:, None] * _weighted(FIFTH, slopes), nfe + 6
        yield FlowState(u_next, y, nfe)


def _adapted_steps(
    slope: Slope, y: Float64Array, start: float, end: float, rtol: float, atol: float
) -> Iterator[FlowState]:
    forwards = 1 if end >= start else -1
    u = np.full(len(y), float(start))
    yield FlowState(u, y, np.zeros(len(y), np.int64))
    first = _finite_slope(slope, u, y)
    length = _first_length(slope, u, y, first, end - u, rtol, atol)
    nfe = np.full(len(y), 2)
    rejected = np.zeros(len(y), bool)   # whether the image's latest step was
    while (going := u != end).any():
        if (stuck := going & (length < SHORTEST_STEP)).any():
            raise NonFiniteError(f"no step at sigma {np.exp(u[stuck][0]):.4g} keeps rtol {rtol:g} and atol {atol:g}")
        # The steps of images that are done are cut to 0: there they stay, without an error.
        h = forwards * np.minimum(length, np.abs(end - u))
        u_next = np.where(length < np.abs(end - u), u + h, end)
        slopes = _slopes(slope, u, y, first, h)
        y_next = y + h[:, None] * _weighted(FIFTH, slopes)
        last = _finite_slope(slope, u_next, y_next)
        allowed = atol + rtol * np.maximum(np.abs(y), np.abs(y_next))
        error = _rms(h[:, None] * _weighted(ERROR, [*slopes, last]) / allowed)
        with np.errstate(divide="ignore"):
            factor = np.clip(SAFETY * error**EXPONENT, SHRINK_MOST, np.where(rejected, 1, GROW_MOST))
        rejected = ~(error < 1)
        length = np.where(going, np.abs(h) * factor, length)
        u, (y, first) = np.where(rejected, u, u_next), (
            np.where(rejected[:, None], old, new) for old, new in ((y, y_next), (first, last)))
        nfe = nfe + 6 * going
        yield FlowState(u, y, nfe)


def _first_length(
    slope: Slope, u: Float64Array, y: Float64Array, first: Float64Array, way: Float64Array, rtol: float, atol: float
) -> Float64Array:
    """The length of each image's first step, ``[N]``; one evaluation.

    Source: Hairer, Nørsett and Wanner 1993, section II.4, as scipy has it.
    """
    allowed = atol + rtol * np.abs(y)
    size, change = _rms(y / allowed), _rms(first / allowed)
    with np.errstate(divide="ignore", invalid="ignore"):
        trial = np.where((size < 1e-5) | (change < 1e-5), 1e-6, 0.01 * size / change)
        trial = np.minimum(trial, np.abs(way))
        h = np.copysign(trial, way)
        second = _finite_slope(slope, u + h, y + h[:, None] * first)
        bend = _rms((second - first) / allowed) / trial
        steepest = np.maximum(change, bend)
        length = np.where(steepest <= 1e-15, np.maximum(1e-6, 1e-3 * trial), (0.01 / steepest) ** -EXPONENT)
    shortest: Float64Array = np.minimum(np.minimum(100 * trial, length), np.abs(way))
    return shortest


def _slopes(
    slope: Slope, u: Float64Array, y: Float64Array, first: Float64Array, h: Float64Array
) -> list[Float64Array]:
    """The six slopes of a step of length ``h``, ``[N]``, of which the first is known."""
    slopes = [first]
    for node, weights in zip(NODES, STAGES, strict=True):
        slopes.append(_finite_slope(slope, u + node * h, y + h[:, None] * _weighted(weights, slopes)))
    return slopes


def _finite_slope(slope: Slope, u: Float64Array, y: Float64Array) -> Float64Array:
    with np.errstate(all="ignore"):   # what numpy would warn of ends the run below
        values = slope(u, y)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise NonFiniteError(f"NaN or infinity at sigma {np.exp(u[~finite][0]):.4g}: the model's weights or its sigma "
                             "range are damaged, or the image is far from what it was trained on")
    return values


def _weighted(weights: Sequence[float], slopes: Sequence[Float64Array]) -> Float64Array:
    """The weighted sum of slopes, added one by one, so that a row rounds in the same way in every batch."""
    total = weights[0] * slopes[0]
    for weight, values in zip(weights[1:], slopes[1:], strict=True):
        total += weight * values
    return total


def _rms(values: Float64Array) -> Float64Array:
    """The root mean square of each row, ``[N]``."""
    norm: Float64Array = np.sqrt(np.square(values).mean(axis=1))
    return norm

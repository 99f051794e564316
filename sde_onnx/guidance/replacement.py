"""Replacement: after every update of a solver the measured part of x is that of the measurement, with x's noise.

    x <- x + A^+ (y + sigma A z - A x),   x_mean <- x_mean + A^+ (y - A x_mean)

sigma is the noise level that x has after the update. The update itself does not know of y, so what is sampled beside
the measured part agrees with it only roughly.

Source: Song et al. 2021, appendix I.2 for masks and I.3 for gray values. In the authors' code x_mean holds noise, the
measured part gets the noise of the level before, and none at the start; here it is as the paper has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, repeat

from sde_onnx.guidance.measurement import Measurement
from sde_onnx.solvers.catalogue import Sampling
from sde_onnx.solvers.plan import Memory, Plan, Step, Update, Updated, run
from sde_onnx.solvers.protocols import Array, NoiseSource, Number, Score

__all__ = ["replaced", "replacement", "replacing"]


def replacement(score: Score, noise: NoiseSource, measurement: Measurement, *, sampling: Sampling) -> Iterator[Step]:
    """Yields the steps of a solver; nothing is computed before the first is asked for.

    Args:
        score: the model's.
        noise: the solver's own arrays, and after each of its updates one more.
        measurement: what is known of each image of a batch.
        sampling: of a solver with a plan.

    Errors: :func:`sde_onnx.solvers.plan.run_evaluations`.
    """
    plan = sampling.plan
    assert plan is not None   # resolve_restoration refuses a solver without one
    known = measurement.operator.pinv(measurement.y)
    arrays = chain([noise() + known / plan.start[0]], (noise() for _ in repeat(None)))
    sigmas = [evaluation.sigma for evaluation in plan.evaluations]
    yield from run(replacing(plan, [*sigmas[1:], 0.0], measurement, noise), score, partial(next, arrays))


def replacing(plan: Plan, levels: Sequence[Number], measurement: Measurement, noise: NoiseSource) -> Plan:
    """A plan whose updates replace what is measured.

    Args:
        plan: a solver on given noise levels.
        levels: the noise level of x after each of its evaluations.
        measurement: what is known of each image of a batch.
        noise: called once after each update.
    """
    evaluations = (
        replace(evaluation, update=partial(replaced, update=evaluation.update, measurement=measurement, noise=noise,
                                           sigma=level))
        for evaluation, level in zip(plan.evaluations, levels, strict=True)
    )
    return replace(plan, evaluations=tuple(evaluations))


def replaced(
    x: Array, score: Array, z: Array | None, memory: Memory, *, update: Update, measurement: Measurement,
    noise: NoiseSource, sigma: Number,
) -> Updated:
    """An update, and then the measured part replaced in x and in x_mean.

    Args:
        x, score, z, memory: see :data:`sde_onnx.solvers.plan.Update`.
        update: the solver's.
        measurement: what is known of each image.
        noise: gives z, standard normal.
        sigma: the noise level of x after the update.

    Source: Song et al. 2021, appendices I.2 and I.3.
    """
    x, x_mean, memory = update(x, score, z, memory)
    operator = measurement.operator
    x = x + operator.pinv(measurement.residual(x) + sigma * operator.A(noise()))
    return x, x_mean + operator.pinv(measurement.residual(x_mean)), memory

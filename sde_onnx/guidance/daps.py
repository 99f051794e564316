"""Decoupled annealing: at each noise level an estimate of x_0, a draw around it given y, and noise of the next level.

    mu = the probability-flow ODE from x at sigma
    x_0 ~ N(x_0; mu, r^2) N(y; A x_0, sigma_y^2),   r = spread sigma
    x at sigma' = x_0 + sigma' z

The draw is exact: of the prior and of the measurement one sample each, m = mu + r z_1 and y + sigma_y z_2, and then
x_0 = m + A^T (A A^T + sigma_y^2 / r^2)^-1 (y + sigma_y z_2 - A m).

Steps do not lead from one level to the next, so an error of one does not stay in those after it. But r is a guess.

Source: Zhang et al. 2024, "Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing", algorithm 1,
and section 3.2 for r; its draw is by Langevin's equation, which a linear A does not need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sde_onnx.guidance.measurement import Measurement
from sde_onnx.solvers.catalogue import Sampling
from sde_onnx.solvers.multistep import plan as multistep_plan
from sde_onnx.solvers.plan import Step, check_finite, denoised, run, sigma_of_each
from sde_onnx.solvers.protocols import Array, NoiseSource, Score
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["conditioned", "daps"]


def daps(
    score: Score, noise: NoiseSource, measurement: Measurement, *, sampling: Sampling, ode_steps: int, spread: float
) -> Iterator[Step]:
    """Yields a step for each noise level of a solver; nothing is computed before the first is asked for.

    Args:
        score: the model's.
        noise: the initial latent, and at each level an array for the draw, as many as y has values for, and one for x.
        measurement: what is known of each image of a batch.
        sampling: has the noise levels, those of its solver's plan.
        ode_steps: network evaluations for an estimate, >= 1.
        spread: r / sigma, > 0.

    Raises:
        NonFiniteError: x stopped being finite; names the step and its sigma.
    """
    assert sampling.plan is not None   # resolve_restoration refuses a solver without one
    levels, nfe = sampling.plan.levels, 0
    x = levels[0] * noise()
    for index, sigma in enumerate(levels):
        mean, count = _estimate(score, x, sigma, sampling.schedule, ode_steps)
        nfe += count
        mean, sample = conditioned(mean, spread * sigma, measurement, noise)
        x = mean if index + 1 == len(levels) else sample + levels[index + 1] * noise()
        check_finite(x, index, len(levels), sigma)
        yield Step(index, sigma, nfe, {"x": x, "x_mean": mean}.__getitem__)


def conditioned(
    mean: Array, deviation: float, measurement: Measurement, noise: NoiseSource
) -> tuple[Array, Array]:
    """The mean of images ``N(mean, deviation^2)`` given their measurement, and a sample of each, ``[N, C, H, W]``.

    Args:
        mean: before the measurement.
        deviation: r, > 0.
        measurement: what is known of each.
        noise: gives z_1 and then z_2.

    Source: Papandreou & Yuille 2010, "Gaussian sampling by local perturbations".
    """
    operator, damping = measurement.operator, (measurement.noise / deviation) ** 2
    sample = mean + deviation * noise()
    missed = measurement.residual(sample) + measurement.noise * measurement.draw(noise)
    return mean + operator.pinv(measurement.residual(mean), damping), sample + operator.pinv(missed, damping)


def _estimate(score: Score, x: Array, sigma: float, ve: VeSchedule, steps: int) -> tuple[Array, int]:
    """What the probability flow makes of x at sigma, by DPM-Solver++, and the evaluations that it took."""
    if steps == 1 or sigma <= ve.sigma_min * (1 + 1e-6):   # "pc" has its levels in float32
        return denoised(x, score(x, sigma_of_each(x, sigma)), sigma), 1
    lower = dataclasses.replace(ve, sigma_max=sigma)
    flow = multistep_plan(lower, steps, order=2, eta=0.0)
    for step in run(flow, score, lambda: x / flow.start[0]):   # noqa: B007  # the last one is the result
        pass
    return step.x_mean, step.nfe

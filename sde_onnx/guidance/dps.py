"""Diffusion posterior sampling: at the end of every step, x goes along the gradient of the distance from y.

    x <- x - zeta grad_x |y - A D(x)| = x + zeta J_D^T A^T (y - A D) / |y - A D|,   J_D^T v = v + sigma^2 J_s^T v

The gradient is taken at the step's last evaluation: with one a step that is where the step began; a correction, or
the guess of Heun's method, is left as it is. All steps together have to bring x to the measurement, so zeta goes with
their number: the paper takes 1,000.

As a change of the denoised image, which every solver could run, the same has no good zeta: a step to noise level 0
takes that image as it is, and so the whole of zeta.

Source: Chung et al. 2023, "Diffusion Posterior Sampling for General Noisy Inverse Problems", algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from sde_onnx.errors import InputError
from sde_onnx.guidance.measurement import Measurement, Product
from sde_onnx.solvers.catalogue import Sampling
from sde_onnx.solvers.plan import Memory, Step, Update, Updated, denoised, run, sigma_of_each
from sde_onnx.solvers.protocols import Array, NoiseSource, Number, Score

__all__ = ["dps", "drawn"]


def dps(
    score: Score, noise: NoiseSource, measurement: Measurement, *, sampling: Sampling, vjp: Product, zeta: float
) -> Iterator[Step]:
    """Yields the steps of a solver; nothing is computed before the first is asked for.

    Args:
        score: the model's.
        noise: the solver's own arrays.
        measurement: what is known of each image of a batch.
        sampling: of a solver with a plan.
        vjp: the score's vector-Jacobian product, one a step.
        zeta: how far x goes in a step, data units, > 0: the norm of the change where J_D is 1.

    Raises:
        InputError: a solver of corrections alone.

    Other errors: :func:`sde_onnx.solvers.plan.run_evaluations`.
    """
    plan = sampling.plan
    assert plan is not None   # resolve_restoration refuses a solver without one
    if any(evaluation.ends is not None and evaluation.langevin for evaluation in plan.evaluations):
        raise InputError(f"method dps moves x with the steps between noise levels: {sampling} has corrections alone")
    evaluations = (
        evaluation if evaluation.ends is None else
        replace(evaluation, update=partial(drawn, update=evaluation.update, measurement=measurement, vjp=vjp, zeta=zeta,
                                           sigma=evaluation.sigma))
        for evaluation in plan.evaluations
    )
    yield from run(replace(plan, evaluations=tuple(evaluations)), score, noise)


def drawn(
    x: Array, score: Array, z: Array | None, memory: Memory, *, update: Update, measurement: Measurement,
    vjp: Product, zeta: float, sigma: Number,
) -> Updated:
    """An update, and then x drawn towards the measurement.

    Args:
        x, score, z, memory: see :data:`sde_onnx.solvers.plan.Update`.
        update: the solver's.
        measurement: what is known of each image.
        vjp: the score's vector-Jacobian product.
        zeta: how far.
        sigma: what the network was told.

    Source: Chung et al. 2023, algorithm 1.
    """
    residual = measurement.residual(denoised(x, score, sigma))
    norm = np.sqrt((residual**2).sum(axis=tuple(range(1, residual.ndim)), keepdims=True))
    v = np.ascontiguousarray(measurement.operator.adjoint(residual / np.where(norm > 0, norm, 1)))
    product = vjp(x, sigma_of_each(x, sigma), v)[1]
    x_next, x_mean, memory = update(x, score, z, memory)
    return x_next + zeta * (v + sigma**2 * product), x_mean, memory

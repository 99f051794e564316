"""Diffusion posterior sampling: the denoised image moved along the gradient of its distance from the measurement.

    D' = D - zeta grad_x |y - A D(x)| = D + zeta J_D^T A^T (y - A D) / |y - A D|,   J_D^T v = v + sigma^2 J_s^T v

The paper subtracts zeta times the gradient from x after every step, so that its effect grows with their number. Here
it is part of the denoised image, and a step from sigma to sigma' takes the share 1 - sigma'^2 / sigma^2 of it. So in
geometric steps of ancestral sampling the two are the same, but for that constant factor.

Source: Chung et al. 2023, "Diffusion Posterior Sampling for General Noisy Inverse Problems", algorithm 1.
"""

from __future__ import annotations

import numpy as np

from sde_onnx.guidance.measurement import Measurement, Product, corrected
from sde_onnx.solvers.protocols import Array, Score

__all__ = ["dps"]


def dps(score: Score, measurement: Measurement, *, vjp: Product, zeta: float = 1.0) -> Score:
    """The score given a measurement, of one vector-Jacobian product.

    Args:
        score: the model's.
        measurement: what is known of each image of a batch.
        vjp: the score's vector-Jacobian product.
        zeta: the size of the step, data units, > 0.
    """
    def correction(x: Array, sigma: Array, image: Array) -> Array:
        residual = measurement.residual(image)
        axes = tuple(range(1, residual.ndim))
        norm = np.sqrt((residual**2).sum(axis=axes, keepdims=True))
        v = measurement.operator.adjoint(residual / np.where(norm > 0, norm, 1))
        product = vjp(x, sigma[:, 0, 0, 0], np.ascontiguousarray(v))[1]
        return image + zeta * (v + sigma**2 * product)

    return corrected(score, correction)

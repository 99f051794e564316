"""Null-space restoration: the denoised image with its measured part put right.

    D' = D + A^T (A A^T + d)^-1 (y - A D),   d = lambda sigma_y^2 / sigma^2

Where A A^T is a projection, as for masks, that is D + w A^+ (y - A D) with w = sigma^2 / (sigma^2 + lambda sigma_y^2).
Without noise, A D' = y, and D keeps its part in the null space of A.

It takes D for right wherever nothing is measured, so what is sampled there is less spread out than it should be.

Source: Wang et al. 2023, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", equation 13; with
noise, the proximal step of Zhu et al. 2023, "Denoising Diffusion Models for Plug-and-Play Image Restoration", eq. 13.
"""

from __future__ import annotations

from sde_onnx.guidance.measurement import Measurement, corrected
from sde_onnx.solvers.protocols import Array, Score

__all__ = ["null_space"]


def null_space(score: Score, measurement: Measurement, *, damping: float) -> Score:
    """The score given a measurement, without a gradient.

    Args:
        score: the model's.
        measurement: what is known of each image of a batch.
        damping: lambda, > 0: how much of a noisy measurement is left to the network.
    """
    def correction(x: Array, sigma: Array, image: Array) -> Array:
        d = damping * (measurement.noise / sigma) ** 2
        return image + measurement.operator.pinv(measurement.residual(image), d)

    return corrected(score, correction)

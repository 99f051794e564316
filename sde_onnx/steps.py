"""The update rules, each a pure function of arrays.

Noise comes in as an argument, and only operators and methods that numpy arrays, torch tensors and traced graphs share
are used: one source of the mathematics wherever it runs.

    langevin            eps = 2 (snr |z| / |g|)^2,   x <- x + eps g + sqrt(2 eps) z
    reverse diffusion   x_mean = x + (sigma^2 - sigma_next^2) s,   x <- x_mean + sqrt(sigma^2 - sigma_next^2) z

Source: Song et al. 2021, algorithms 2 and 4 (appendix G) and equation 46 (appendix E).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from sde_onnx.errors import InputError

__all__ = ["LangevinNorm", "check_corrector", "langevin_step", "reverse_diffusion_step"]

Array = Any
LangevinNorm = Literal["image", "batch"]


def check_corrector(snr: float, n_corrector: int) -> None:
    """Refuses what no Langevin corrector can run with.

    Raises:
        InputError: ``snr`` is not a number above 0, or ``n_corrector`` not a whole number of 0 or more.
    """
    if not isinstance(snr, int | float) or not (math.isfinite(snr) and snr > 0):
        raise InputError(f"snr is {snr!r}, expected a number above 0")
    if type(n_corrector) is not int or n_corrector < 0:
        raise InputError(f"n_corrector is {n_corrector!r}, expected a whole number of 0 or more")


def langevin_step(x: Array, score: Array, noise: Array, *, snr: float, norm: LangevinNorm = "image") -> Array:
    """One Langevin correction at a fixed noise level.

    Args:
        x: ``[N, C, H, W]``.
        score: the score at ``x``, of the same shape.
        noise: standard normal, of the same shape.
        snr: target ratio r of signal to noise, dimensionless, > 0.
        norm: ``"image"`` takes each image's own norms, as the algorithm is written; ``"batch"`` takes their mean over
            the batch, as the reference implementations do, so that an image depends on its batch-mates.

    Returns:
        The corrected x.

    Source: Song et al. 2021, algorithm 4.
    """
    score_norm, noise_norm = _norm(score), _norm(noise)
    if norm == "batch":
        score_norm, noise_norm = score_norm.mean(), noise_norm.mean()
    step_size = 2 * (snr * noise_norm / score_norm) ** 2
    return x + step_size * score + (2 * step_size) ** 0.5 * noise


def reverse_diffusion_step(
    x: Array, score: Array, noise: Array, *, sigma: Array, sigma_next: Array
) -> tuple[Array, Array]:
    """One step of the reverse diffusion predictor, from ``sigma`` down to ``sigma_next``.

    Args:
        x: ``[N, C, H, W]`` with noise of std ``sigma``.
        score: the score at ``x``, of the same shape.
        noise: standard normal, of the same shape.
        sigma: noise std of ``x``, a scalar.
        sigma_next: noise std to reach, a scalar below ``sigma``.

    Returns:
        ``x`` at ``sigma_next``, and ``x_mean``, the same before its noise is added.

    Source: Song et al. 2021, equation 46 and algorithm 2.
    """
    variance = sigma**2 - sigma_next**2
    x_mean = x + variance * score
    return x_mean + variance**0.5 * noise, x_mean


def _norm(x: Array) -> Array:
    """The Euclidean norm of each image, ``[N, 1, 1, 1]``."""
    return (x * x).sum(axis=(1, 2, 3), keepdims=True) ** 0.5

"""The update rules, each a pure function of arrays.

Noise comes in as an argument, and only operators and methods that numpy arrays, torch tensors and traced graphs share
are used: one source of the mathematics wherever it runs.

    Langevin correction     x_mean = x + eps g,           x <- x_mean + sqrt(2 eps) z
    prediction              x_mean = x + v s,             x <- x_mean + d z

    eps, annealed by norms  2 (snr |z| / |g|)^2           eps, annealed by sigma   2 (snr sigma)^2

    reverse diffusion       v = sigma^2 - sigma_next^2    d^2 = v
    Euler-Maruyama          v = 2 sigma^2 ln(sigma_max / sigma_min) / N     d^2 = v
    ancestral               v = sigma^2 - sigma_next^2    d^2 = v sigma_next^2 / sigma^2
    probability flow        v of any of them, halved      d = 0

Source: Song et al. 2021, algorithms 2 and 4 (appendix G), equations 30, 46 and 47, appendix F; the second eps is that
of Song & Ermon 2019, algorithm 1, in the original implementation's scale.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from sde_onnx.errors import InputError

__all__ = ["LangevinNorm", "annealed_step_size", "check_corrector", "langevin_step", "langevin_step_size",
           "prediction_step"]

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


def langevin_step_size(score: Array, noise: Array, *, snr: Any, norm: LangevinNorm = "image") -> Array:
    """The step size at which a Langevin correction has the signal-to-noise ratio ``snr``.

    Args:
        score: the score, ``[N, C, H, W]``.
        noise: the correction's noise, standard normal, of the same shape.
        snr: target ratio r of signal to noise, dimensionless, > 0.
        norm: ``"image"`` takes each image's own norms, as the algorithm is written; ``"batch"`` takes their mean over
            the batch, as the reference implementations do, so that an image depends on its batch-mates.

    Returns:
        eps, ``[N, 1, 1, 1]``, or a scalar for ``"batch"``.

    Source: Song et al. 2021, algorithm 4.
    """
    score_norm, noise_norm = _norm(score), _norm(noise)
    if norm == "batch":
        score_norm, noise_norm = score_norm.mean(), noise_norm.mean()
    return 2 * (snr * noise_norm / score_norm) ** 2


def annealed_step_size(sigma: Array, *, snr: float) -> Array:
    """The step size of annealed Langevin dynamics, from the noise level alone.

    Args:
        sigma: the noise level.
        snr: ratio r, dimensionless, > 0.

    Source: Song & Ermon 2019, algorithm 1, in the scale of score_sde_pytorch.
    """
    return 2 * (snr * sigma) ** 2


def langevin_step(x: Array, score: Array, noise: Array, *, step_size: Array) -> Array:
    """One Langevin correction at a fixed noise level.

    Args:
        x: ``[N, C, H, W]``.
        score: the score at ``x``, of the same shape.
        noise: standard normal, of the same shape.
        step_size: eps, a scalar or ``[N, 1, 1, 1]``.

    Returns:
        The corrected x.

    Source: Song et al. 2021, algorithm 4.
    """
    return x + step_size * score + (2 * step_size) ** 0.5 * noise


def prediction_step(x: Array, score: Array, noise: Array | None, *, variance: Array, std: Array) -> tuple[Array, Array]:
    """One step of a predictor to the next noise level.

    Args:
        x: ``[N, C, H, W]``.
        score: the score at ``x``, of the same shape.
        noise: standard normal, of the same shape; ``None`` for a deterministic step.
        variance: what the score is multiplied by, a scalar.
        std: what the noise is multiplied by, a scalar.

    Returns:
        ``x`` at the next noise level, and ``x_mean``, the same before its noise is added.

    Source: Song et al. 2021, equation 46 and algorithm 2.
    """
    x_mean = x + variance * score
    return (x_mean if noise is None else x_mean + std * noise), x_mean


def _norm(x: Array) -> Array:
    """The Euclidean norm of each image, ``[N, 1, 1, 1]``."""
    return (x * x).sum(axis=(1, 2, 3), keepdims=True) ** 0.5

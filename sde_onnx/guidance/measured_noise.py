"""How much noise an image holds, measured; and a score function that is told it.

A variance-exploding network is told sigma and takes away as much noise, no matter how much there is. A solver without
noise of its own leaves some over at every step, which then stays. But white noise shows: in the finest diagonal
differences of pixels, of which images have few and noise has everywhere the same.

    d = (x[i, j] - x[i, j + 1] - x[i + 1, j] + x[i + 1, j + 1]) / 2        over disjoint squares; deviation sigma
    estimate = median |d| / 0.6745                                          which few large d do not move

Source: Donoho and Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage", section 4.2.
"""

from __future__ import annotations

import numpy as np

from sde_onnx.solvers.protocols import Array, Score

__all__ = ["measured_noise", "tell_measured_noise"]

MEDIAN_OF_NORMAL = 0.6745   # of the absolute value of a standard normal number
TRUSTED = 1.2               # an estimate counts from this many times sigma on: below, it may be the image's own


def measured_noise(x: Array) -> Array:
    """The standard deviation of the white noise in each image, ``[N, C, H, W] -> [N]``; H and W at least 2."""
    height, width = (size // 2 * 2 for size in x.shape[2:])
    top, bottom = x[:, :, 0:height:2, :width], x[:, :, 1:height:2, :width]
    details = (top[..., ::2] - top[..., 1::2] - bottom[..., ::2] + bottom[..., 1::2]) / 2
    return np.median(np.abs(details).reshape(len(x), -1), axis=1) / MEDIAN_OF_NORMAL


def tell_measured_noise(score: Score) -> Score:
    """A score function that asks the network at the noise level that x has, where that is well above sigma.

    What it returns is a score at sigma: that which leads to the denoised image that the network gave.
    """
    def corrected(x: Array, sigma: Array) -> Array:
        level = measured_noise(x)
        asked = np.asarray(np.where(level > TRUSTED * sigma, level, sigma), np.float32)
        return score(x, asked) * ((asked / sigma) ** 2)[:, None, None, None]

    return corrected

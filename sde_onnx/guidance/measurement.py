"""A measurement, and the score that leads to images which agree with it.

    y = A x_0 + sigma_y n

A method that wraps the score replaces the denoised image D by one that agrees with y, and returns the score that leads
there, so that it runs under every solver:

    D = x + sigma^2 s(x, sigma),   D' = T(D),   s' = (D' - x) / sigma^2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sde_onnx.operators.operator import Operator
from sde_onnx.solvers.plan import denoised
from sde_onnx.solvers.protocols import Array, NoiseSource, Score

__all__ = ["Correction", "Measurement", "Product", "corrected"]

# Of x and sigma and vectors, [N, C, H, W]: the score there, and J^T v with J = ds / dx.
Product = Callable[[Array, Array, Array], tuple[Array, Array]]
# Of x, sigma [N, 1, 1, 1] and the denoised image: what is to be put in its place.
Correction = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Measurement:
    """What is known of each image."""

    y: Array             # [N, ...], data units
    operator: Operator   # that made it
    noise: float         # sigma_y, the standard deviation of its noise, data units, >= 0

    def of(self, rows: slice) -> Measurement:
        """That of some of the images."""
        return replace(self, y=self.y[rows])

    def residual(self, image: Array) -> Array:
        """``y - A image``, ``[N, ...]``."""
        return self.y - self.operator.A(image)

    def draw(self, noise: NoiseSource) -> Array:
        """Standard normal numbers in the shape of y, of as many noise arrays as that takes."""
        drawn = noise().reshape(len(self.y), -1)
        size = int(np.prod(self.y.shape[1:]))
        while drawn.shape[1] < size:
            drawn = np.concatenate([drawn, noise().reshape(len(self.y), -1)], axis=1)
        return drawn[:, :size].reshape(self.y.shape)


def corrected(score: Score, correction: Correction) -> Score:
    """The score that leads to the corrected denoised image."""
    def conditioned(x: Array, sigma: Array) -> Array:
        level = sigma[:, None, None, None]
        image = correction(x, level, denoised(x, score(x, sigma), level))
        conditional: Array = ((image - x) / level**2).astype(x.dtype, copy=False)
        return conditional

    return conditioned

"""Classifier guidance: an unconditional model samples a class that a classifier of noisy images knows.

    s'(x, sigma) = s(x, sigma) + w grad_x log p(label given x, sigma)

With w = 1 that is the score of images of the class (Bayes' rule); more makes them more typical and less varied.

Source: Song et al. 2021, section 5 and appendix I.1; Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image
Synthesis", section 4, for w.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sde_onnx.solvers.protocols import Array, Score

__all__ = ["LabelGradient", "classifier_guided"]


class LabelGradient(Protocol):
    """Gives the gradient of a label's log-probability."""

    def __call__(self, x: Array, sigma: Array, label: NDArray[np.int64], /) -> Array:
        """``grad_x log p(label given x, sigma)``, ``[N, C, H, W]``."""


def classifier_guided(score: Score, gradient: LabelGradient, label: NDArray[np.int64], *, weight: float) -> Score:
    """The score of images of a class.

    Args:
        score: the model's.
        gradient: of the classifier's log-probability.
        label: a class for each image of a batch, ``[N]``.
        weight: w, >= 0.
    """
    def guided(x: Array, sigma: Array) -> Array:
        return score(x, sigma) + np.float32(weight) * gradient(x, sigma, label)

    return guided

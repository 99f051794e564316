"""What solvers are given: arrays, a score, a source of noise."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "NoiseSource", "Number", "Score"]

# Solvers use only operators and methods that torch tensors have too, and so run on them as well.
Array = NDArray[np.floating[Any]]
Number = float | np.floating[Any]   # float32 where the reference rounds to it


class Score(Protocol):
    """The score of noisy data, ``grad_x log p_sigma(x)``: an ONNX session, a torch module, a closed form."""

    def __call__(self, x: Array, sigma: Array, /) -> Array:
        """Returns the score ``[N, C, H, W]`` of ``x`` ``[N, C, H, W]`` at noise std ``sigma`` ``[N]``."""


class NoiseSource(Protocol):
    """Draws noise."""

    def __call__(self) -> Array:
        """Returns the next standard normal array, ``[N, C, H, W]``."""

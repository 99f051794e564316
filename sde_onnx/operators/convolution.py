"""Convolution with any kernel, such as the path of a camera that moved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sde_onnx.errors import InputError
from sde_onnx.operators.operator import damped_inverse
from sde_onnx.solvers.protocols import Array

__all__ = ["Convolution", "convolve"]

@dataclass(frozen=True)
class Convolution:
    """A periodic convolution: a product for each frequency. Made by :func:`convolve`."""

    kernel: NDArray[np.float64]

    def A(self, x: Array) -> Array:   # noqa: N802
        """See :meth:`sde_onnx.operators.operator.Operator.A`."""
        return self._filtered(x, self._transfer(x))

    def adjoint(self, y: Array) -> Array:
        """See :meth:`sde_onnx.operators.operator.Operator.adjoint`."""
        return self._filtered(y, self._transfer(y).conj())

    def pinv(self, y: Array, damping: Any = 0.0) -> Array:
        """See :meth:`sde_onnx.operators.operator.Operator.pinv`."""
        return self._filtered(y, damped_inverse(self._transfer(y), damping))

    def _transfer(self, x: Array) -> NDArray[np.complexfloating[Any]]:
        """The factor of each frequency of images like x."""
        return _transfer_function(self.kernel.tobytes(), self.kernel.shape, x.shape[2:])

    @staticmethod
    def _filtered(x: Array, factors: NDArray[np.complexfloating[Any]]) -> Array:
        images: Array = np.fft.irfft2(np.fft.rfft2(x) * factors, s=x.shape[2:]).astype(x.dtype)
        return images


@lru_cache(maxsize=8)   # a solver asks for it several times an evaluation
def _transfer_function(
    kernel: bytes, shape: tuple[int, ...], size: tuple[int, ...]
) -> NDArray[np.complexfloating[Any]]:
    """The factor of each frequency of images of a size, of a kernel of float64."""
    (height, width), (rows, columns) = shape, size
    if height > rows or width > columns:
        raise InputError(f"the kernel of {width}x{height} is larger than the images of {columns}x{rows}")
    padded = np.zeros(size)
    padded[:height, :width] = np.frombuffer(kernel).reshape(shape)
    return np.fft.rfft2(np.roll(padded, (-(height // 2), -(width // 2)), (0, 1)))


def convolve(kernel: ArrayLike) -> Convolution:
    """The convolution with a kernel ``[h, w]``, whose centre is at ``[h // 2, w // 2]``; images continue periodically.

    Raises:
        InputError: another shape, NaN or infinity, or only zeros; when it is applied, images smaller than the kernel.
    """
    values = np.asarray(kernel, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all() or not values.any():
        raise InputError(f"the kernel has shape {list(values.shape)} and holds {values.min(initial=0):g} to "
                         f"{values.max(initial=0):g}, expected finite numbers [h, w], not all 0")
    return Convolution(values)

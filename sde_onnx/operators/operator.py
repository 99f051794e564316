"""What an operator is, and its pseudo-inverse by iteration.

    y = A x + sigma_y n                     x: images [N, C, H, W];  y: their measurement [N, ...];  A is linear
    <A x, y> = <x, adjoint(y)>              adjoint = A^T
    pinv(y, d) = A^T (A A^T + d)^-1 y       the pseudo-inverse A^+ y where d = 0: then A A^+ A = A

An operator takes the sizes from its argument, so that one object serves images of any size.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from sde_onnx.solvers.protocols import Array

__all__ = ["Operator", "damped_inverse", "least_squares"]

SMALLEST = 1e-4      # singular values below this share of the largest count as 0 in a pseudo-inverse without damping
ITERATIONS = 200     # of conjugate gradients, at most
TOLERANCE = 1e-6     # of its residual A^T (y - A x) - d x, relative to A^T y


class Operator(Protocol):
    """A linear map from images to measurements."""

    def A(self, x: Array, /) -> Array:   # noqa: N802  # the field's name
        """The measurement of images, ``[N, C, H, W] -> [N, ...]``.

        Raises:
            InputError: images of a size or number of channels that the operator has no meaning for.
        """

    def adjoint(self, y: Array, /) -> Array:
        """``A^T y``, ``[N, ...] -> [N, C, H, W]``."""

    def pinv(self, y: Array, /, damping: Any = 0.0) -> Array:
        """``A^T (A A^T + damping)^-1 y``, ``[N, ...] -> [N, C, H, W]``; the pseudo-inverse where ``damping`` is 0.

        Args:
            y: measurements.
            damping: a number >= 0, or one for each image, ``[N, 1, 1, 1]``.
        """


def damped_inverse(values: Any, damping: Any) -> Any:
    """``conj(s) / (|s|^2 + damping)`` of singular values or frequencies; without damping, 0 of the smallest.

    Args:
        values: s, of any shape, real or complex.
        damping: >= 0, broadcastable to them.
    """
    size, damping = np.abs(values), np.asarray(damping, np.float64)
    counts = (damping > 0) | (size > SMALLEST * size.max())
    return np.where(counts, np.conj(values) / np.where(counts, size**2 + damping, 1), 0)


def least_squares(operator: Any, y: Array, damping: Any = 0.0) -> Array:
    """``A^T (A A^T + damping)^-1 y`` by conjugate gradients on the normal equations, for each image its own.

    From 0 on they stay in the range of ``A^T``, so that without damping they lead to the shortest solution.

    Args:
        operator: whatever has ``A`` and ``adjoint``.
        y: measurements, ``[N, ...]``.
        damping: a number >= 0, or one for each image, ``[N, 1, 1, 1]``.

    Source: Hestenes & Stiefel 1952, section 10; as CGLS in Björck 1996, "Numerical Methods for Least Squares
    Problems", algorithm 7.4.1.
    """
    in_y = (-1, *[1] * (y.ndim - 1))
    residual = y
    gradient: Array = operator.adjoint(y)
    x: Array = np.zeros_like(gradient)
    direction = gradient
    in_x = (-1, *[1] * (x.ndim - 1))
    norm = first = _squares(gradient)
    for _ in range(ITERATIONS):
        if (norm <= TOLERANCE**2 * first).all():
            break
        measured = operator.A(direction)
        curvature = _squares(measured) + np.reshape(damping, -1) * _squares(direction)
        step = _ratio(norm, curvature, x)
        x = x + step.reshape(in_x) * direction
        residual = residual - step.reshape(in_y) * measured
        gradient = (operator.adjoint(residual) - damping * x).astype(x.dtype)
        norm, before = _squares(gradient), norm
        direction = gradient + _ratio(norm, before, x).reshape(in_x) * direction
    return x


def _ratio(a: Array, b: Array, like: Array) -> Array:
    """``a / b``, and 0 where b is: an image that is finished stays as it is."""
    ratio: Array = np.divide(a, b, out=np.zeros_like(a), where=b > 0).astype(like.dtype)
    return ratio


def _squares(x: Array) -> Array:
    """The squared norm of each image, ``[N]`` float64."""
    flat = x.reshape(len(x), -1)
    squares: Array = np.einsum("nk,nk->n", flat, flat, dtype=np.float64)
    return squares

"""Operators that act on channels, rows and columns apart: gray values, smaller images, blur.

    A x = (K x R x C) x,  K, R, C: a matrix for each axis

With the singular values k, r, c of the three, those of A are their products. So the pseudo-inverse costs three small
matrix products, and one operator after another is one of the same kind.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_onnx.errors import InputError
from sde_onnx.operators.operator import damped_inverse
from sde_onnx.solvers.protocols import Array

__all__ = ["Separable", "bicubic", "blur", "down", "gray"]

Matrix = NDArray[np.float64]
REACH = 4   # standard deviations at which a Gaussian kernel ends


@dataclass(frozen=True)
class Link:
    """A matrix of every size: from ``factor`` numbers to one."""

    matrix: Callable[[int], Matrix]   # of the number of inputs
    factor: int = 1


@dataclass(frozen=True)
class Axis:
    """What happens along one axis: one link after another."""

    name: str
    links: tuple[Link, ...] = ()

    @property
    def factor(self) -> int:
        """How many numbers become one."""
        return reduce(lambda product, link: product * link.factor, self.links, 1)


@dataclass(frozen=True)
class Separable:
    """A matrix for each of the three axes. Made by :func:`gray`, :func:`down`, :func:`bicubic` and :func:`blur`."""

    channels: Axis = Axis("channels")
    rows: Axis = Axis("rows")
    columns: Axis = Axis("columns")

    def then(self, following: Separable) -> Separable:
        """This one, and another after it."""
        pairs = zip(self._axes, following._axes, strict=True)
        return Separable(*(Axis(axis.name, axis.links + after.links) for axis, after in pairs))

    def A(self, x: Array) -> Array:   # noqa: N802
        """See :meth:`sde_onnx.operators.operator.Operator.A`."""
        for axis, size in zip(self._axes, x.shape[1:], strict=True):
            if axis.links and axis.name == "channels" and size != axis.factor:
                raise InputError("images of 1 channel have no colours to lose" if size == 1 else
                                 f"gray values are of {axis.factor} channels, the images have {size}")
            if size % axis.factor:
                raise InputError(f"{size} {axis.name} cannot be divided by {axis.factor}")
        return _applied([_decomposed(axis, size).matrix if axis.links else None
                         for axis, size in zip(self._axes, x.shape[1:], strict=True)], x)

    def adjoint(self, y: Array) -> Array:
        """See :meth:`sde_onnx.operators.operator.Operator.adjoint`."""
        return _applied([None if part is None else part.matrix.T for part in self._parts(y)], y)

    def pinv(self, y: Array, damping: Any = 0.0) -> Array:
        """See :meth:`sde_onnx.operators.operator.Operator.pinv`."""
        parts = self._parts(y)
        values = reduce(np.multiply.outer, [np.ones(size) if part is None else part.values
                                            for part, size in zip(parts, y.shape[1:], strict=True)])
        gains = damped_inverse(values, damping).astype(y.dtype)
        coefficients = gains * _applied([None if part is None else part.left.T for part in parts], y)
        return _applied([None if part is None else part.right for part in parts], coefficients)

    @property
    def _axes(self) -> tuple[Axis, Axis, Axis]:
        return self.channels, self.rows, self.columns

    def _parts(self, y: Array) -> list[Decomposed | None]:
        """Of each axis its matrix, by the measurement's size; None of an axis that stays as it is."""
        return [_decomposed(axis, axis.factor * size) if axis.links else None
                for axis, size in zip(self._axes, y.shape[1:], strict=True)]


def gray() -> Separable:
    """The mean of red, green and blue: ``[N, 3, H, W] -> [N, 1, H, W]``. Source: Song et al. 2021, appendix I.3."""
    return Separable(channels=Axis("channels", (Link(_means, 3),)))


def down(factor: int) -> Separable:
    """The means of blocks of ``factor`` x ``factor`` pixels, which divides height and width.

    Raises:
        InputError: a factor below 2; when it is applied, one that does not divide the size.
    """
    return _both(Link(partial(_block_means, _whole(factor)), _whole(factor)))


def bicubic(factor: int) -> Separable:
    """A smaller image as Pillow's bicubic filter makes it, with antialiasing: ``factor`` divides height and width.

    Raises:
        InputError: a factor below 2; when it is applied, one that does not divide the size.

    Source: Keys 1981, "Cubic convolution interpolation for digital image processing", equation 15, with a = -1/2.
    """
    return _both(Link(partial(_cubic, _whole(factor)), _whole(factor)))


def blur(sigma: float) -> Separable:
    """A Gaussian blur of standard deviation ``sigma`` in pixels; the image is mirrored at its borders.

    Raises:
        InputError: sigma not above 0; when it is applied, one above the image's size.
    """
    if not 0 < sigma < np.inf:
        raise InputError(f"the blur's sigma is {sigma:g}, expected a number of pixels above 0")
    return _both(Link(partial(_gaussian, sigma)))


@dataclass(frozen=True)
class Decomposed:
    """A matrix ``left diag(values) right^T``."""

    matrix: Matrix
    left: Matrix
    values: NDArray[np.float64]
    right: Matrix


@lru_cache(maxsize=64)
def _decomposed(axis: Axis, size: int) -> Decomposed:
    """The matrix of an axis of so many inputs, and its singular values."""
    matrix = np.eye(size)
    for link in axis.links:
        matrix = link.matrix(len(matrix)) @ matrix
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return Decomposed(matrix, left, values, right.T)


def _applied(matrices: list[Matrix | None], x: Array) -> Array:
    """A matrix along each of channels, rows and columns; None leaves an axis as it is."""
    channels, rows, columns = [None if matrix is None else matrix.astype(x.dtype) for matrix in matrices]
    if columns is not None:
        x = x @ columns.T
    if rows is not None:
        x = rows @ x
    if channels is not None:
        x = (channels @ x.reshape(*x.shape[:2], -1)).reshape(len(x), -1, *x.shape[2:])
    return x


def _both(link: Link) -> Separable:
    return Separable(rows=Axis("rows", (link,)), columns=Axis("columns", (link,)))


def _whole(factor: int) -> int:
    if not isinstance(factor, numbers.Integral) or factor < 2:
        raise InputError(f"the factor is {factor!r}, expected a whole number of at least 2")
    return int(factor)


def _means(size: int) -> Matrix:
    return np.full((1, size), 1 / size)


def _block_means(factor: int, size: int) -> Matrix:
    return np.kron(np.eye(size // factor), np.full((1, factor), 1 / factor))


def _cubic(factor: int, size: int) -> Matrix:
    """Each row: Keys' kernel, stretched by the factor, at the distances from the new pixel's centre; sum 1."""
    centres = (np.arange(size // factor) + 0.5) * factor - 0.5
    distance = np.abs(np.arange(size) - centres[:, None]) / factor
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    kernel = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    rows: Matrix = kernel / kernel.sum(axis=1, keepdims=True)
    return rows


def _gaussian(sigma: float, size: int) -> Matrix:
    """Each row: a Gaussian kernel around its pixel; what passes a border is mirrored there."""
    if sigma > size:
        raise InputError(f"the blur's sigma is {sigma:g} pixels, more than the {size} of the images")
    reach = int(np.ceil(REACH * sigma))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    places = (np.arange(size)[:, None] + offsets) % (2 * size)
    places = np.where(places < size, places, 2 * size - 1 - places)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], places), kernel)
    return matrix

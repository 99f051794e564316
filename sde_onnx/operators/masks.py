"""Masks: some pixels are known, the others are 0 in the measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sde_onnx.checks import is_number
from sde_onnx.errors import InputError, one_line
from sde_onnx.solvers.noise import check_seeds, portable_normals
from sde_onnx.solvers.protocols import Array

__all__ = ["Mask", "box", "mask", "random"]


@dataclass(frozen=True)
class Mask:
    """Keeps the known pixels of an image. It is its own adjoint and pseudo-inverse."""

    # Which pixels of images of (C, H, W) are known: booleans that broadcast to that; refuses another size.
    known: Callable[[tuple[int, ...]], NDArray[np.bool_]]

    def A(self, x: Array) -> Array:   # noqa: N802
        """See :meth:`sde_onnx.operators.operator.Operator.A`."""
        return np.where(self.known(x.shape[1:]), x, np.zeros((), x.dtype))

    def adjoint(self, y: Array) -> Array:
        """See :meth:`sde_onnx.operators.operator.Operator.adjoint`."""
        return self.A(y)

    def pinv(self, y: Array, damping: Any = 0.0) -> Array:
        """See :meth:`sde_onnx.operators.operator.Operator.pinv`."""
        return (self.A(y) / (1 + damping)).astype(y.dtype)   # type: ignore[no-any-return]


def mask(known: ArrayLike) -> Mask:
    """The pixels where ``known`` is 1 or True, ``[H, W]``, or ``[C, H, W]`` for each channel apart.

    Raises:
        InputError: another shape, values beside 0 and 1, or no known pixel.
    """
    values = np.asarray(known)
    if values.ndim not in (2, 3):
        raise InputError(f"the mask has shape {list(values.shape)}, expected [H, W] or [C, H, W]")
    if not np.isin(values, (0, 1)).all():
        gray = values[~np.isin(values, (0, 1))].flat[0]
        raise InputError(f"the mask holds {gray:g}: expected 1 where a pixel is known and 0 where it is missing")
    if not values.any():
        raise InputError("the mask is 0 everywhere: nothing is known")
    return Mask(partial(_those_of, values.astype(bool)))


def box(left: int, top: int, width: int, height: int) -> Mask:
    """All pixels but those of a box, which is given in pixels from the upper left corner.

    Raises:
        InputError: a negative place or an empty box; when it is applied, a box that is not inside the image.
    """
    sides = (left, top, width, height)
    if not all(is_number(side, whole=True) for side in sides) or min(left, top) < 0 or min(width, height) < 1:
        raise InputError(f"the box is {','.join(map(one_line, sides))}, expected x and y of at least 0, a width and a "
                         "height of at least 1")
    return Mask(partial(_outside, left, top, width, height))


def random(missing: float, seed: int = 0) -> Mask:
    """A share ``missing`` of the pixels is missing, chosen at random, in all channels alike. A seed chooses the same
    pixels on every machine.

    Raises:
        InputError: a seed that does not fit 64 bits, or a share that is not between 0 and 1, both excluded.
    """
    if not 0 < missing < 1:
        raise InputError(f"the share of missing pixels is {missing:g}, expected more than 0 and less than 1")
    check_seeds([seed])
    return Mask(partial(_chosen, missing, seed))


def _those_of(known: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if known.shape not in (shape, shape[1:]):
        raise InputError(f"the mask has shape {list(known.shape)}, the images {list(shape)}")
    return known


def _outside(left: int, top: int, width: int, height: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    rows, columns = shape[1:]
    if left + width > columns or top + height > rows:
        raise InputError(f"the box {left},{top},{width},{height} is not inside an image of {columns}x{rows}")
    known = np.ones((rows, columns), bool)
    known[top : top + height, left : left + width] = False
    return _something(known)


@lru_cache(maxsize=8)
def _chosen(missing: float, seed: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    rows, columns = shape[1:]
    order = np.argsort(portable_normals(np.array([seed], np.uint64), 0, rows * columns)[0], kind="stable")
    known = np.ones(rows * columns, bool)
    known[order[: round(missing * rows * columns)]] = False
    return _something(known.reshape(rows, columns))


def _something(known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if not known.any():
        raise InputError("the mask leaves no pixel of the image")
    return known

"""Operators that others wrote: an object of one's own, deepinv's physics, azula's functions.

deepinv's and azula's take torch tensors. Torch is imported by whoever made them; the runtime never imports it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sde_onnx.errors import InputError
from sde_onnx.operators.operator import Operator, least_squares
from sde_onnx.solvers.protocols import Array

__all__ = ["adapted"]


@dataclass(frozen=True)
class Adapted:
    """An operator made of functions of arrays."""

    A: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    inverse: Callable[..., Array] | None   # the pseudo-inverse, where there is one
    damped: bool = False                   # whether it takes a damping too

    def pinv(self, y: Array, damping: Any = 0.0) -> Array:
        """See :meth:`sde_onnx.operators.operator.Operator.pinv`. What the operator cannot do itself is iterated."""
        if self.inverse is not None and self.damped:
            return self.inverse(y, damping=damping)
        if self.inverse is not None and not np.any(damping):
            return self.inverse(y)
        return least_squares(self, y, damping)


def adapted(operator: Any, image_shape: tuple[int, int, int]) -> Operator:
    """An operator of this package as it is, and others as one of them.

    Args:
        operator: an object with ``A``, ``adjoint`` and, if it has one, ``pinv``, of numpy arrays; one whose ``pinv``
            names no ``damping`` serves where there is none, and is iterated where there is. Or deepinv's, with
            ``A``, ``A_adjoint`` and ``A_dagger``, of torch tensors; or a linear function of a torch tensor, as azula
            takes, whose adjoint is its vector-Jacobian product.
        image_shape: the model's ``(C, H, W)``.

    Raises:
        InputError: none of these.
    """
    if type(operator).__module__.startswith("sde_onnx.operators."):
        return operator   # type: ignore[no-any-return]
    own = [getattr(operator, name, None) for name in ("A", "adjoint", "pinv")]
    if callable(own[0]) and callable(own[1]):
        forth, back = _in_the_same_type(own[0]), _in_the_same_type(own[1])
        if not callable(own[2]):
            return Adapted(forth, back, None)
        return Adapted(forth, back, _in_the_same_type(own[2]), "damping" in inspect.signature(own[2]).parameters)
    deepinv = [getattr(operator, name, None) for name in ("A", "A_adjoint", "A_dagger")]
    if callable(deepinv[0]) and callable(deepinv[1]):
        dagger = deepinv[2]
        return Adapted(_of_arrays(deepinv[0]), _of_arrays(deepinv[1]), _of_arrays(dagger) if callable(dagger) else None)
    if callable(operator) and own[0] is None:
        return Adapted(_of_arrays(operator), _transposed(operator, image_shape), None)
    raise InputError(f"operator is {type(operator).__name__}: expected one of sde_onnx.operators, an object with A and "
                     "adjoint or A and A_adjoint, or a function of a torch tensor")


def _in_the_same_type(function: Callable[..., Any]) -> Callable[..., Array]:
    """A function whose result has its argument's type: a matrix of float64 must not change the model's input."""
    def called(x: Array, **damping: Any) -> Array:
        return np.asarray(function(x, **damping)).astype(x.dtype, copy=False)

    return called


def _of_arrays(function: Callable[[Any], Any]) -> Callable[[Array], Array]:
    """A function of torch tensors, for arrays."""
    def called(x: Array) -> Array:
        torch = _torch()
        with torch.no_grad():
            result: Array = function(torch.from_numpy(np.ascontiguousarray(x))).cpu().numpy()
        return result.astype(x.dtype, copy=False)

    return called


def _transposed(function: Callable[[Any], Any], image_shape: tuple[int, int, int]) -> Callable[[Array], Array]:
    """The adjoint of a linear function of torch tensors: its vector-Jacobian product, the same at every x."""
    def called(y: Array) -> Array:
        torch = _torch()
        with torch.enable_grad():
            cotangent = torch.from_numpy(np.ascontiguousarray(y))
            x = torch.zeros((len(y), *image_shape), dtype=cotangent.dtype, requires_grad=True)
            result, = torch.autograd.grad(function(x), x, cotangent)
        image: Array = result.numpy()
        return image

    return called


def _torch() -> Any:
    if "torch" not in sys.modules:
        raise InputError("an operator that is a function is one of torch tensors, and torch is not imported: give an "
                         "object with A, adjoint and pinv for numpy arrays")
    return sys.modules["torch"]

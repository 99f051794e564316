"""Operators one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sde_onnx.errors import InputError
from sde_onnx.operators.operator import Operator, least_squares
from sde_onnx.operators.separable import Separable
from sde_onnx.solvers.protocols import Array

__all__ = ["Composition", "compose"]


@dataclass(frozen=True)
class Composition:
    """Operators one after another: the first is applied to the image."""

    operators: tuple[Operator, ...]

    def A(self, x: Array) -> Array:   # noqa: N802
        """See :meth:`Operator.A`."""
        for operator in self.operators:
            x = operator.A(x)
        return x

    def adjoint(self, y: Array) -> Array:
        """See :meth:`Operator.adjoint`."""
        for operator in reversed(self.operators):
            y = operator.adjoint(y)
        return y

    def pinv(self, y: Array, damping: Any = 0.0) -> Array:
        """See :meth:`Operator.pinv`. The pseudo-inverse of a product is not the product of pseudo-inverses."""
        return least_squares(self, y, damping)


def compose(*operators: Operator) -> Operator:
    """Operators one after another: the first is applied to the image.

    Those that act on the axes apart become one of that kind, whose pseudo-inverse is exact; other pseudo-inverses are
    iterated.

    Raises:
        InputError: no operator.
    """
    if not operators:
        raise InputError("no operator")
    parts: list[Operator] = []
    for operator in operators:
        last = parts[-1] if parts else None
        if isinstance(operator, Separable) and isinstance(last, Separable):
            parts[-1] = last.then(operator)
        else:
            parts.append(operator)
    return parts[0] if len(parts) == 1 else Composition(tuple(parts))

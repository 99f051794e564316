"""The operator that a caller means: a text, one of this package, or another's. It is tried once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sde_onnx.errors import InputError
from sde_onnx.operators.foreign import adapted
from sde_onnx.operators.operator import Operator
from sde_onnx.operators.text import parse_operator
from sde_onnx.solvers.protocols import Array

__all__ = ["operator_for"]

ADJOINT_TOLERANCE = 1e-4   # of <A x, y> and <x, A^T y>, relative to |A x| |y|: float32, and transforms in it


def operator_for(operator: Any, image_shape: tuple[int, int, int]) -> Operator:
    """The operator that a caller means. It was applied once: it fits the model's images and its own adjoint.

    Args:
        operator: see :func:`sde_onnx.restore`.
        image_shape: the model's ``(C, H, W)``.

    Raises:
        InputError: it is none, does not fit, or fails the adjoint test; names both numbers.
    """
    linear = parse_operator(operator) if isinstance(operator, str) else adapted(operator, image_shape)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, *image_shape), np.float32)
    measured = _called("A", linear.A, x)
    if not isinstance(measured, np.ndarray) or measured.ndim < 2 or len(measured) != 2:
        raise InputError(f"the operator gives {getattr(measured, 'shape', type(measured).__name__)} of images "
                         f"{list(x.shape)}, expected a measurement for each")
    y = generator.standard_normal(measured.shape).astype(np.float32)
    back = _called("adjoint", linear.adjoint, y)
    if getattr(back, "shape", None) != x.shape:
        raise InputError(f"the operator's adjoint gives {getattr(back, 'shape', type(back).__name__)} of measurements "
                         f"{list(y.shape)}, expected {list(x.shape)}")
    forth, also = float(np.vdot(measured, y)), float(np.vdot(x, back))
    if not abs(forth - also) <= ADJOINT_TOLERANCE * float(np.linalg.norm(measured) * np.linalg.norm(y)):
        raise InputError(f"adjoint(y) is not the adjoint of A: <A x, y> is {forth:.6g} and <x, adjoint(y)> is "
                         f"{also:.6g}")
    shortest = _called("pinv", linear.pinv, y)
    if getattr(shortest, "shape", None) != x.shape:
        raise InputError(f"the operator's pinv gives {getattr(shortest, 'shape', type(shortest).__name__)} of "
                         f"measurements {list(y.shape)}, expected {list(x.shape)}")
    return linear


def _called(name: str, function: Callable[[Array], Array], argument: Array) -> Array:
    """What a function of an operator returns; its own errors, whatever they are, name it."""
    try:
        return function(argument)
    except InputError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise InputError(f"the operator's {name} fails on {list(argument.shape)}: {type(error).__name__}: {said}"
                         ) from error

"""What rules write with: nodes of the reverse pass, and what is known of the values that it differentiates."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sde_onnx.errors import GradientError
from sde_onnx.export.graph.nodes import Nodes

__all__ = ["Call", "GradientWriter", "Values"]

Size = int | str | None   # known, named, or neither


@dataclass(frozen=True)
class Call:
    """A node, as its rule sees it.

    Args:
        operator: its name.
        inputs, outputs: names of values; ``""`` for an optional one that is left out.
        attributes: Python values, by name.
        cotangents: of each output, ``None`` where nothing depends on it.
    """

    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    cotangents: list[str | None]

    @property
    def g(self) -> str:
        """The cotangent of the first output; ``GradientError`` if others are used."""
        first, *others = self.cotangents
        if first is None or any(other is not None for other in others):
            raise GradientError(f"the rule is for the first output, not for {', '.join(self.outputs[1:])}")
        return first


class Values:
    """Types, shapes and constants of a model's values, as far as ONNX infers them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        self._types = {item.name: item.type.tensor_type for item in (*graph.input, *graph.value_info, *graph.output)}
        inputs = {item.name for item in graph.input}   # whose initializers are defaults
        self._constants = {item.name: item for item in graph.initializer if item.name not in inputs}
        self._sigmoids = {(node.output[0], node.input[0]) for node in graph.node
                          if node.op_type == "Sigmoid" and node.domain in ("", "ai.onnx")}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t

    def type_of(self, name: str) -> int:
        """The element type of a value by ONNX's number; 0 if it is not known."""
        return self._constants[name].data_type if name in self._constants else self._type(name).elem_type

    def dtype(self, name: str) -> np.dtype[Any]:
        """numpy's type of a value; ``GradientError`` if it is not known."""
        if not (kind := self.type_of(name)):
            raise GradientError(f"the type of {name!r} is not known")
        return np.dtype(helper.tensor_dtype_to_np_dtype(kind))

    def shape(self, name: str) -> list[Size]:
        """The sizes of a value.

        Raises:
            GradientError: not even their number is known.
        """
        if name in self._constants:
            return list(self._constants[name].dims)
        kind = self._type(name)
        if not kind.HasField("shape"):
            raise GradientError(f"the shape of {name!r} is not known: fix the sizes of the graph's inputs")
        return [size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in kind.shape.dim]

    def sizes(self, name: str, axes: Sequence[int]) -> list[int]:
        """The sizes of some axes; ``GradientError`` if one is not fixed, or 0."""
        shape = self.shape(name)
        found = [size for size in (shape[axis] for axis in axes) if isinstance(size, int) and size > 0]
        if len(found) < len(axes):
            raise GradientError(f"{name!r} has the sizes {shape}: its gradient needs axes {list(axes)} to be fixed, "
                                "and not 0")
        return found

    def is_sigmoid_of(self, name: str, x: str) -> bool:
        """Whether a value is the sigmoid of another."""
        return (name, x) in self._sigmoids

    def is_constant(self, name: str) -> bool:
        """Whether a value is held by the graph."""
        return name in self._constants

    def constant(self, name: str) -> np.ndarray:
        """The value of a constant; ``GradientError`` if it is computed by the graph."""
        if name not in self._constants:
            raise GradientError(f"{name!r} is no constant of the graph: its gradient needs one there")
        return numpy_helper.to_array(self._constants[name])

    def _type(self, name: str) -> onnx.TypeProto.Tensor:
        return self._types.get(name, onnx.TypeProto.Tensor())


class GradientWriter(Nodes):
    """Writes the reverse pass as nodes whose names begin with one prefix.

    Args:
        prefix: of all names.
        values: of the graph that is differentiated.
        wanted: those that have a cotangent; what a rule contributes to others is dropped.
    """

    def __init__(self, prefix: str, values: Values, wanted: Collection[str]) -> None:
        super().__init__(prefix)
        self.values = values
        self._wanted = wanted
        self._spread: set[str] = set()

    def number(self, value: float, like: str) -> str:
        """A scalar constant of a value's type."""
        return self.constant(np.asarray(value, self.values.dtype(like)))

    def times(self, x: str, factor: float, like: str) -> str:
        """Adds ``x * factor``."""
        return x if factor == 1 else self.add("Mul", x, self.number(factor, like))

    def axes(self, call: Call) -> list[int]:
        """The axes that a reduction's attribute or second input names, >= 0; all if it names none.

        Raises:
            GradientError: none are named where that means that nothing is reduced, or the graph computes them.
        """
        named = call.attributes.get("axes", [])
        if len(call.inputs) > 1 and call.inputs[1]:
            named = self.values.constant(call.inputs[1]).tolist()
        if not named and call.attributes.get("noop_with_empty_axes", 0):
            raise GradientError("the rule is for axes that are named")
        rank = len(self.values.shape(call.inputs[0]))
        return sorted(axis % rank for axis in named or range(rank))

    def sum(self, x: str, axes: Sequence[int], *, keep: bool = True) -> str:
        """Adds a sum over axes."""
        return self.add("ReduceSum", x, self.constant(np.array(axes, np.int64)), keepdims=int(keep))

    def mean(self, x: str, axes: Sequence[int], like: str) -> str:
        """Adds a mean over axes of something that has a value's shape, the axes kept."""
        return self.times(self.sum(x, axes), 1 / math.prod(self.values.sizes(like, axes)), like)

    def shape_of(self, x: str) -> str:
        """The shape of a value, as a constant if it is fixed."""
        shape = self.values.shape(x)
        known = [size for size in shape if isinstance(size, int)]
        return self.constant(np.array(known, np.int64)) if len(known) == len(shape) else self.add("Shape", x)

    def reshaped(self, g: str, x: str) -> str:
        """Adds a Reshape to a value's shape; one size of it may be free."""
        shape = [size if isinstance(size, int) else -1 for size in self.values.shape(x)]
        if shape.count(-1) > 1 or 0 in shape:
            return self.add("Reshape", g, self.add("Shape", x))
        return self.reshape(g, *shape)

    def spread(self, g: str) -> str:
        """A cotangent that broadcasts to its value's shape: it is expanded only where nothing adds it to another."""
        self._spread.add(g)
        return g

    def reduced(self, g: str, call: Call, place: int, *, apart: int = 0) -> str:
        """Sums a cotangent of a node's result over the axes along which the node has broadcast an input.

        Two free sizes are taken for the same one, and a free size never for 1.

        Args:
            g: the cotangent.
            call: the node.
            place: of the input.
            apart: last axes that do not broadcast.

        Raises:
            GradientError: it cannot be told which axes those are.
        """
        if call.inputs[place] not in self._wanted:
            return g
        small, large = (shape[:len(shape) - apart]
                        for shape in map(self.values.shape, (call.inputs[place], call.outputs[0])))
        added = len(large) - len(small)
        if added:
            g = self.sum(g, range(added), keep=False)
        stretched = []
        for axis, (size, whole) in enumerate(zip(small, large[added:], strict=True)):
            if size == 1 and whole != 1:
                stretched.append(axis)
            elif size != whole and int in map(type, (size, whole)):   # two that are free are taken for one
                raise GradientError(f"{call.inputs[place]!r} {small} becomes {large}: its gradient needs fixed sizes")
        return self.sum(g, stretched) if stretched else g

    def swapped(self, x: str) -> str:
        """Adds a transposition of the last two axes; a constant is turned here.

        OpenVINO 2026.4 multiplies by a constant that a node turns as if it were another.
        """
        if self.values.is_constant(x):
            return self.constant(np.swapaxes(self.values.constant(x), -1, -2))
        rank = len(self.values.shape(x))
        return self.add("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])

    def total(self, parts: Sequence[str], x: str) -> str:
        """The sum of the contributions to a value's cotangent, in its whole shape."""
        whole = sorted(parts, key=lambda part: part in self._spread)
        if whole[0] in self._spread:
            whole[0] = self.add("Expand", whole[0], self.shape_of(x))
        result = whole[0]
        for part in whole[1:]:
            result = self.add("Add", result, part)
        return result

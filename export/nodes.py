"""Nodes of an ONNX graph, written one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["Nodes"]


class Nodes:
    """A list of nodes and constants whose names begin with one prefix.

    Args:
        prefix: of all names; one that nothing else in the graph begins with.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Adds a node of one result and returns the result's name."""
        name = output or f"{self.prefix}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"{self.prefix}/{operator}{len(self.nodes)}",
                                           **attributes))
        return name

    def constant(self, value: np.ndarray | np.generic) -> str:
        """Returns the name of a constant, which is added unless an equal one is there."""
        value = np.asarray(value)
        key = value.dtype.str, value.shape, value.tobytes()
        if key not in self._names:
            self._names[key] = f"{self.prefix}/constant{len(self.constants)}"
            self.constants[self._names[key]] = numpy_helper.from_array(value, self._names[key])
        return self._names[key]

    def reshape(self, x: str, *shape: int) -> str:
        """Adds a Reshape; at most one size may be -1."""
        return self.add("Reshape", x, self.constant(np.array(shape)))

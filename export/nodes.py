"""Nodes of an ONNX graph, written one after another, and read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["Nodes", "concatenated", "replace_nodes", "shapes_of"]


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


def shapes_of(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """The shapes of a graph's inputs and results, by name; 0 for what is not fixed."""
    return {item.name: [size.dim_value for size in item.type.tensor_type.shape.dim]
            for item in (*graph.input, *graph.value_info)}


def concatenated(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """The parts of every concatenation of channels, by the name of its result."""
    return {node.output[0]: list(node.input) for node in graph.node
            if node.op_type == "Concat" and helper.get_node_attr_value(node, "axis") == 1}


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replaces all nodes of a graph, and removes the constants that nothing reads any more."""
    nodes = list(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)

"""Nodes of an ONNX graph: written one after another, read, matched and inlined."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["Nodes", "attributes_of", "concatenated", "inlined", "needed_for", "read_by", "readers_of", "remove_opset",
           "replace_nodes", "shapes_of", "silu_of"]


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

    def reshape(self, x: str, *shape: int, output: str | None = None) -> str:
        """Adds a Reshape; at most one size may be -1, and 0 keeps a size."""
        return self.add("Reshape", x, self.constant(np.array(shape, np.int64)), output=output)

    def cast(self, x: str, kind: int) -> str:
        """Adds a Cast to a type of ``onnx.TensorProto``."""
        return self.add("Cast", x, to=kind)

    def normalized(self, x: str, axes: Sequence[int], epsilon: float) -> str:
        """Adds ``(x - mean) / sqrt(variance + epsilon)``, both over some axes: a norm without gain and bias."""
        over = self.constant(np.array(axes))
        centred = self.add("Sub", x, self.add("ReduceMean", x, over))
        variance = self.add("ReduceMean", self.add("Mul", centred, centred), over)
        deviation = self.add("Sqrt", self.add("Add", variance, self.constant(np.float32(epsilon))))
        return self.add("Div", centred, deviation)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values, by name."""
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def shapes_of(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """The shapes of a graph's inputs and results, by name; 0 for what is not fixed."""
    return {item.name: [size.dim_value for size in item.type.tensor_type.shape.dim]
            for item in (*graph.input, *graph.value_info, *graph.output)}


def read_by(node: onnx.NodeProto) -> set[str]:
    """The values that a node reads, those that its inner graphs capture among them."""
    names = set(node.input) - {""}
    for item in node.attribute:
        for graph in (item.g, *item.graphs):
            names.update(*(read_by(inner) for inner in graph.node), (output.name for output in graph.output))
    return names


def needed_for(nodes: Sequence[onnx.NodeProto], names: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that values depend on, in their order."""
    needed, kept = set(names), []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed |= read_by(node)
            kept.append(node)
    return kept[::-1]


def readers_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each value, by its name; one that reads it twice is named twice."""
    readers: dict[str, list[onnx.NodeProto]] = collections.defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    return readers


def concatenated(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """The parts of every concatenation of channels, by the name of its result."""
    return {node.output[0]: list(node.input) for node in graph.node
            if node.op_type == "Concat" and attributes_of(node)["axis"] == 1}


def silu_of(name: str, readers: Mapping[str, Sequence[onnx.NodeProto]]) -> tuple[str, str] | None:
    """The results of a value's sigmoid and of ``x sigmoid(x)``, by name, where nothing else reads the value."""
    kinds = {node.op_type: node for node in readers[name]}
    if len(readers[name]) != 2 or set(kinds) != {"Sigmoid", "Mul"}:
        return None
    gate, product = kinds["Sigmoid"].output[0], kinds["Mul"]
    if set(product.input) != {name, gate} or len(readers[gate]) != 1:
        return None
    return gate, product.output[0]


def inlined(
    graph: onnx.GraphProto, prefix: str, names: Mapping[str, str] | None = None
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes and constants of a graph for use in another: everything is renamed.

    Args:
        graph: stays as it is.
        prefix: of all names that are not given.
        names: of values that have another: inputs, outputs, shared constants.
    """
    renamed = {"": "", **(names or {})}
    nodes, constants = [], []
    for item in graph.initializer:
        constant = onnx.TensorProto()
        constant.CopyFrom(item)
        constant.name = renamed.setdefault(item.name, prefix + item.name)
        constants.append(constant)
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        for values in (copy.input, copy.output):
            values[:] = [renamed.setdefault(name, prefix + name) for name in values]
        nodes.append(copy)
    return nodes, constants


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replaces all nodes of a graph, and removes the constants that nothing reads any more."""
    nodes = list(nodes)
    used = {name for node in nodes for name in read_by(node)} | {item.name for item in graph.output}
    kept = [item for item in graph.initializer if item.name in used]
    for name, items in (("node", nodes), ("initializer", kept)):
        del getattr(graph, name)[:]
        getattr(graph, name).extend(items)


def remove_opset(model: onnx.ModelProto, domain: str) -> None:
    """Removes the claim that a model uses operators of a domain, in place."""
    kept = [entry for entry in model.opset_import if entry.domain != domain]
    del model.opset_import[:]
    model.opset_import.extend(kept)

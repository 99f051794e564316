"""Concatenations of channels that are never made: what reads them reads their parts.

A decoder block reads the features and a skip connection side by side. Its norm is written for each part (norms.py), and
SiLU acts on each value alone. What is left are convolutions, of the norm and of the shortcut: each is a convolution of
every part and a sum, which costs ONNX Runtime no pass of its own. So a tensor of the widest kind is neither written nor
put into another layout.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from sde_onnx.export.graph.nodes import (
    Nodes,
    attributes_of,
    concatenated,
    readers_of,
    replace_nodes,
    shapes_of,
    silu_of,
)

__all__ = ["split_concatenations"]


def split_concatenations(model: onnx.ModelProto) -> None:
    """Splits, in place, every concatenation of channels that convolutions alone read, as it is or through a SiLU."""
    graph = model.graph
    shapes = shapes_of(graph)
    _concatenate_after_silu(graph, shapes)
    weights = {item.name: item for item in graph.initializer}
    read_whole = {name for node in graph.node if not _is_splittable(node, weights) for name in node.input}
    read_whole |= {item.name for item in graph.output}
    split = {name: parts for name, parts in concatenated(graph).items() if name not in read_whole}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.output[0] in split:
            continue
        if node.op_type != "Conv" or node.input[0] not in split:
            nodes.append(node)
            continue
        x, weight, *bias = node.input
        parts = split[x]
        writer = Nodes(node.output[0])
        limits = np.cumsum([shapes[part][1] for part in parts])[:-1]
        pieces = np.split(numpy_helper.to_array(weights[weight]), limits, axis=1)
        attributes = attributes_of(node)
        convolved = [writer.add("Conv", part, writer.constant(piece), *(bias if index == 0 else []), **attributes)
                     for index, (part, piece) in enumerate(zip(parts, pieces, strict=True))]
        writer.add("Sum", *convolved, output=node.output[0])
        nodes.extend(writer.nodes)
        graph.initializer.extend(writer.constants.values())
    replace_nodes(graph, nodes)


def _concatenate_after_silu(graph: onnx.GraphProto, shapes: dict[str, list[int]]) -> None:
    """Makes the SiLU of a concatenation, where it alone reads that, one of SiLUs; their shapes are added."""
    parts = concatenated(graph)
    readers = readers_of(graph)
    written: dict[str, list[onnx.NodeProto]] = {}
    dropped: set[str] = set()
    for name in parts:
        if (found := silu_of(name, readers)) is None:
            continue
        gate, silu = found
        writer = Nodes(silu)
        pieces = [writer.add("Mul", part, writer.add("Sigmoid", part)) for part in parts[name]]
        shapes |= {piece: shapes[part] for piece, part in zip(pieces, parts[name], strict=True)}
        writer.add("Concat", *pieces, axis=1, output=silu)
        written[silu] = writer.nodes
        dropped |= {name, gate}
    replace_nodes(graph, [new for node in graph.node if node.output[0] not in dropped
                          for new in written.get(node.output[0], [node])])


def _is_splittable(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    """Whether a node is a convolution of all channels with known weights."""
    return node.op_type == "Conv" and node.input[1] in weights and attributes_of(node).get("group", 1) == 1

"""Concatenations of channels that are never made: what reads them reads their parts.

A decoder block reads the features and a skip connection side by side. Its norm is written for each part (norms.py).
What is left is its shortcut, a 1x1 convolution of both, which is a convolution of either and a sum; the sum costs ONNX
Runtime no pass of its own. So a tensor of the widest kind is neither written nor put into another layout.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sde_onnx.export.nodes import Nodes, concatenated, replace_nodes, shapes_of

__all__ = ["split_concatenations"]


def split_concatenations(model: onnx.ModelProto) -> None:
    """Splits, in place, every concatenation of channels of which 1x1 convolutions are all that reads it."""
    graph = model.graph
    weights = {item.name: item for item in graph.initializer}
    shapes = shapes_of(graph)
    read_whole = {name for node in graph.node if not _is_pointwise(node, weights) for name in node.input}
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
        convolved = [writer.add("Conv", part, writer.constant(piece), *(bias if index == 0 else []))
                     for index, (part, piece) in enumerate(zip(parts, pieces, strict=True))]
        writer.add("Sum", *convolved, output=node.output[0])
        nodes.extend(writer.nodes)
        graph.initializer.extend(writer.constants.values())
    replace_nodes(graph, nodes)


def _is_pointwise(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    """Whether a node is a plain 1x1 convolution."""
    if node.op_type != "Conv" or node.input[1] not in weights or list(weights[node.input[1]].dims[2:]) != [1, 1]:
        return False
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return attributes.get("group", 1) == 1 and set(attributes.get("strides", [1])) == {1} and not any(
        attributes.get("pads", [0]))

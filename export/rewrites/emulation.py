"""What the CUDA provider's contributed operators compute, in operators of ONNX: a graph for CUDA, checked on a CPU.

Sums are float32, as in the kernels; results are rounded to the type of the inputs.

    NhwcConv         a convolution of x ``[N, H, W, C]`` with weights ``[M, kH, kW, C / groups]``
    GroupNorm        ``silu?((x - mean) / sqrt(variance + epsilon) * gamma + beta)`` of x ``[N, H, W, C]``
    SkipGroupNorm    the same of x + skip, with skip ``[N, C]``

Source: ONNX Runtime's docs/ContribOperators.md; the kernels are in its onnxruntime/contrib_ops/cuda/diffusion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sde_onnx.export.graph.nodes import Nodes, attributes_of, remove_opset, replace_nodes
from sde_onnx.export.rewrites.for_cuda import CONTRIB_DOMAIN, TO_FIRST, TO_LAST

__all__ = ["emulated"]


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a graph for CUDA as one that any provider runs, slowly."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    written = []
    for node in graph.node:
        if node.domain != CONTRIB_DOMAIN:
            written.append(node)
            continue
        nodes = Nodes(f"{node.name}/emulated")
        attributes = attributes_of(node)
        if node.op_type == "NhwcConv":
            result = _convolution(nodes, node, values[node.input[1]], attributes)
        elif node.op_type in ("GroupNorm", "SkipGroupNorm"):
            result = _norm(nodes, node, **attributes)
        else:
            raise ValueError(f"{node.op_type} is not emulated")
        nodes.add("CastLike", result, node.input[0], output=node.output[0])
        written.extend(nodes.nodes)
        graph.initializer.extend(nodes.constants.values())
    replace_nodes(graph, written)   # and not the weights of the kernels
    remove_opset(copy, CONTRIB_DOMAIN)
    onnx.checker.check_model(copy)
    return copy


def _convolution(nodes: Nodes, node: onnx.NodeProto, weight: np.ndarray, attributes: dict[str, Any]) -> str:
    x, _, *bias = node.input
    kernel = nodes.constant(np.ascontiguousarray(weight.transpose(TO_FIRST), np.float32))
    first = nodes.add("Transpose", nodes.cast(x, TensorProto.FLOAT), perm=TO_FIRST)
    result = nodes.add("Conv", first, kernel, *(nodes.cast(name, TensorProto.FLOAT) for name in bias), **attributes)
    return nodes.add("Transpose", result, perm=TO_LAST)


def _norm(
    nodes: Nodes, node: onnx.NodeProto, *, groups: int, epsilon: float, activation: int, channels_last: int
) -> str:
    assert channels_last == 1
    x, gamma, beta, *skip = node.input
    value = nodes.cast(x, TensorProto.FLOAT)
    if skip:
        axes = nodes.constant(np.array([1, 2]))
        value = nodes.add("Add", value, nodes.add("Unsqueeze", nodes.cast(skip[0], TensorProto.FLOAT), axes))
    shape = nodes.add("Shape", value)
    first, last = nodes.add("Shape", value, start=0, end=3), nodes.constant(np.array([groups, -1]))
    value = nodes.add("Reshape", value, nodes.add("Concat", first, last, axis=0))
    value = nodes.add("Reshape", nodes.normalized(value, (1, 2, 4), epsilon), shape)
    value = nodes.add("Add", nodes.add("Mul", value, gamma), beta)
    return nodes.add("Mul", value, nodes.add("Sigmoid", value)) if activation else value

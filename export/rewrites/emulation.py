"""What the CUDA provider's contributed operators compute, in operators of ONNX: a graph for CUDA, checked on a CPU.

Sums are float32, as in the kernels; results are rounded to the type of the inputs. So is a convolution's result before
its bias is added, and x + skip before its mean and variance are taken. A file in float16 is run with TensorFloat-32
allowed, so its float32 convolutions see 11 bits of each number.

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
    in_half = any(item.data_type == TensorProto.FLOAT16 for item in model.graph.initializer)
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
            result = _convolution(nodes, node, values[node.input[1]], attributes, tensor_float=in_half)
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


def _convolution(nodes: Nodes, node: onnx.NodeProto, weight: np.ndarray, attributes: dict[str, Any], *,
                 tensor_float: bool) -> str:
    x, _, *bias = node.input
    kernel = nodes.constant(np.ascontiguousarray(weight.transpose(TO_FIRST), np.float32))
    first = nodes.add("Transpose", nodes.cast(x, TensorProto.FLOAT), perm=TO_FIRST)
    if tensor_float and weight.dtype == np.float32:
        first, kernel = _rounded(nodes, first), _rounded(nodes, kernel)
    result = nodes.add("Transpose", nodes.add("Conv", first, kernel, **attributes), perm=TO_LAST)
    for term in bias:   # in float32, and rounded after: as the kernel's sum in float16, which a CPU may not have
        result = nodes.cast(nodes.add("CastLike", result, x), TensorProto.FLOAT)
        result = nodes.add("Add", result, nodes.cast(term, TensorProto.FLOAT))
    return result


def _rounded(nodes: Nodes, value: str) -> str:
    """float32 to the 11 bits of TensorFloat-32. Source: Dekker 1971, a product with 2^13 + 1 splits 24 bits."""
    large = nodes.add("Mul", value, nodes.constant(np.float32(2**13 + 1)))
    return nodes.add("Sub", large, nodes.add("Sub", large, value))


def _norm(
    nodes: Nodes, node: onnx.NodeProto, *, groups: int, epsilon: float, activation: int, channels_last: int
) -> str:
    assert channels_last == 1
    x, gamma, beta, *skip = node.input
    value = nodes.cast(x, TensorProto.FLOAT)
    for term in skip:
        shift = nodes.add("Unsqueeze", nodes.cast(term, TensorProto.FLOAT), nodes.constant(np.array([1, 2])))
        value = nodes.cast(nodes.add("CastLike", nodes.add("Add", value, shift), x), TensorProto.FLOAT)
    shape = nodes.add("Shape", value)
    first, last = nodes.add("Shape", value, start=0, end=3), nodes.constant(np.array([groups, -1]))
    value = nodes.add("Reshape", value, nodes.add("Concat", first, last, axis=0))
    value = nodes.add("Reshape", nodes.normalized(value, (1, 2, 4), epsilon), shape)
    value = nodes.add("Add", nodes.add("Mul", value, gamma), beta)
    return nodes.add("Mul", value, nodes.add("Sigmoid", value)) if activation else value

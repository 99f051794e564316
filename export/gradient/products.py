"""Gradient rules of convolutions and matrix products.

A convolution of stride 1 is undone by a convolution, with its weights turned round: ONNX Runtime's transposed
convolution is slower on a CPU. The weights are turned round in the graph, of which a runtime does that part once, so
that a file holds them once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sde_onnx.errors import GradientError
from sde_onnx.export.gradient.elementwise import Contributions
from sde_onnx.export.gradient.writer import Call, GradientWriter

__all__ = ["conv", "conv_transpose", "gemm", "matmul", "scattered", "windows"]


def conv(write: GradientWriter, call: Call) -> Contributions:
    """``y = W * x``: g * W turned round, inputs and outputs exchanged; where x is strided, the transpose of W * x."""
    weights = call.inputs[1]
    kernel, strides, begin, end, dilations = windows(write, call)
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    pads = [whole - pad for whole, pad in zip(2 * reach, begin + end, strict=True)]
    groups = call.attributes.get("group", 1)
    if max(strides) > 1 or min(pads) < 0:
        return [scattered(write, call, call.g, weights, groups)]
    turned = _turned(write, weights, groups)
    return [write.add("Conv", call.g, turned, kernel_shape=kernel, pads=pads, dilations=dilations, group=groups)]


def _turned(write: GradientWriter, weights: str, groups: int) -> str:
    """Weights ``[O, I / groups, ...]`` as ``[I, O / groups, ...]``, each window turned round."""
    out, within, *kernel = write.values.sizes(weights, range(len(write.values.shape(weights))))
    rank = len(kernel)
    if groups == 1:
        turned = write.add("Transpose", weights, perm=[1, 0, *range(2, rank + 2)])
    else:
        turned = write.reshape(weights, groups, out // groups, within, *kernel)
        turned = write.add("Transpose", turned, perm=[0, 2, 1, *range(3, rank + 3)])
        turned = write.reshape(turned, groups * within, out // groups, *kernel)
    long = np.array([axis for axis, size in enumerate(kernel, 2) if size > 1], np.int64)
    if long.size == 0:
        return turned
    last, before_first = np.full(long.size, -1), np.full(long.size, np.iinfo(np.int64).min)
    return write.add("Slice", turned, *(write.constant(part) for part in (last, before_first, long, last)))


def conv_transpose(write: GradientWriter, call: Call) -> Contributions:
    """The transpose of a convolution: the convolution of g."""
    attributes = {name: call.attributes[name] for name in ("kernel_shape", "pads", "strides", "dilations", "group")
                  if name in call.attributes}
    if call.attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in call.attributes:
        raise GradientError("the rule is for pads that are given")
    over = call.attributes.get("output_padding", [0])
    if any(size >= stride for size, stride in zip(over, call.attributes.get("strides", [1] * len(over)), strict=False)
           if size):
        raise GradientError("the rule is for an output padding below the stride")
    return [write.add("Conv", call.g, call.inputs[1], **attributes)]


def windows(write: GradientWriter, call: Call) -> tuple[list[int], ...]:
    """Of a convolution or a pooling, an entry for each axis of the image: kernel, strides, pads before and after, and
    dilations."""
    attributes = call.attributes
    kernel = attributes.get("kernel_shape")
    if kernel is None:
        kernel = write.values.sizes(call.inputs[1], range(2, len(write.values.shape(call.inputs[1]))))
    rank = len(kernel)
    strides, dilations = (attributes.get(name, [1] * rank) for name in ("strides", "dilations"))
    begin, end = np.array(attributes.get("pads", [0] * 2 * rank)).reshape(2, rank).tolist()
    how = attributes.get("auto_pad", b"NOTSET").decode()
    if how.startswith("SAME"):
        axes = range(2, rank + 2)
        sizes = zip(write.values.sizes(call.inputs[0], axes), write.values.sizes(call.outputs[0], axes), kernel,
                    strides, dilations, strict=True)
        needed = [max(0, (out - 1) * stride + dilation * (k - 1) + 1 - size)
                  for size, out, k, stride, dilation in sizes]
        less, more = [size // 2 for size in needed], [size - size // 2 for size in needed]
        begin, end = (less, more) if how == "SAME_UPPER" else (more, less)
    return kernel, strides, begin, end, dilations


def scattered(write: GradientWriter, call: Call, g: str, weights: str, groups: int) -> str:
    """Adds the transpose of a node's windows: each value of g, times the weights, added up where it was read."""
    kernel, strides, begin, end, dilations = windows(write, call)
    axes = range(2, len(kernel) + 2)
    sizes = write.values.sizes(call.inputs[0], axes), write.values.sizes(call.outputs[0], axes)
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": begin + end,
                                  "dilations": dilations, "group": groups}
    covered = [(out - 1) * stride + dilation * (k - 1) + 1 - before - after for out, stride, dilation, k, before, after
               in zip(sizes[1], strides, dilations, kernel, begin, end, strict=True)]
    over = [size - whole for size, whole in zip(sizes[0], covered, strict=True)]
    if min(over) < 0:
        raise GradientError("the last window reaches beyond the padded image")
    return write.add("ConvTranspose", g, weights, output_padding=over, **attributes)


def matmul(write: GradientWriter, call: Call) -> Contributions:
    """``Y = A B``: g B^T and A^T g."""
    a, b = call.inputs
    if min(len(write.values.shape(a)), len(write.values.shape(b))) < 2:
        raise GradientError("the rule is for matrices, not for vectors")
    parts = write.add("MatMul", call.g, write.swapped(b)), write.add("MatMul", write.swapped(a), call.g)
    return [write.reduced(part, call, place, apart=2) for place, part in enumerate(parts)]


def gemm(write: GradientWriter, call: Call) -> Contributions:
    """``Y = alpha A B + beta C``, A and B transposed if so said: alpha g B^T, alpha A^T g and beta g."""
    a, b = call.inputs[:2]
    attributes = call.attributes
    alpha, beta, turned_a, turned_b = (attributes.get(name, usual) for name, usual in (
        ("alpha", 1.0), ("beta", 1.0), ("transA", 0), ("transB", 0)))
    g = call.g
    of_a = (write.add("Gemm", b, g, alpha=alpha, transA=turned_b, transB=1) if turned_a
            else write.add("Gemm", g, b, alpha=alpha, transB=1 - turned_b))
    of_b = (write.add("Gemm", g, a, alpha=alpha, transA=1, transB=turned_a) if turned_b
            else write.add("Gemm", a, g, alpha=alpha, transA=1 - turned_a))
    of_c = [write.reduced(write.times(g, beta, call.outputs[0]), call, 2)] if len(call.inputs) > 2 else []
    return [of_a, of_b, *of_c]

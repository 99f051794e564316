"""What a gradient is checked against: the graph evaluated in torch, and torch's own reverse mode.

Every operator that has a rule is here, and those that compute sizes and compare. A rule and what torch says of its
operator share nothing but the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor

from sde_onnx.errors import GradientError
from sde_onnx.export.graph.nodes import attributes_of, needed_for, read_by
from sde_onnx.runtime.endings import ending

__all__ = ["Reference", "evaluate"]


class Reference:
    """The vector-Jacobian product of a graph's output, by torch.

    What does not depend on ``at`` is read from ONNX Runtime, of any operators.

    Args:
        model: the graph without a gradient.
        of, at: names of the output and the input.
        dtype: of all floating-point numbers.
    """

    def __init__(self, model: onnx.ModelProto, of: str, at: str, *, dtype: torch.dtype = torch.float64) -> None:
        self.of, self.at, self.dtype = of, at, dtype
        self.graph = model.graph
        self.constants = {item.name: _tensor(numpy_helper.to_array(item), dtype) for item in model.graph.initializer}
        self._fixed = self._read_from_outside()
        if self._fixed:
            extended = onnx.ModelProto()
            extended.CopyFrom(model)
            del extended.graph.output[:]
            extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._fixed)
            options = ort.SessionOptions()
            options.log_severity_level = 3
            self._session = ort.InferenceSession(extended.SerializeToString(), options,
                                                 providers=["CPUExecutionProvider"])

    def vjp(self, inputs: Mapping[str, np.ndarray], cotangent: np.ndarray) -> np.ndarray:
        """The product, of the shape of ``at``.

        Args:
            inputs: of the graph, by name.
            cotangent: of the output.

        Raises:
            GradientError: an operator that has no rule either.
        """
        fixed = {}
        if self._fixed:
            asked = {item.name for item in self._session.get_inputs()}
            given = {name: value for name, value in inputs.items() if name in asked}
            with ending() as options:
                fixed = dict(zip(self._fixed, self._session.run(self._fixed, given, options), strict=True))
        tensors = {name: _tensor(value, self.dtype) for name, value in {**inputs, **fixed}.items()}
        tensors[self.at].requires_grad_()
        result = evaluate(self.graph, {**self.constants, **tensors}, self.of, dtype=self.dtype)
        gradient, = torch.autograd.grad(result, tensors[self.at], _tensor(cotangent, self.dtype))
        return gradient.numpy()

    def _read_from_outside(self) -> list[str]:
        """What does not depend on ``at``, and is read by what does."""
        there = set(self.constants) | {item.name for item in self.graph.input}
        depends: set[str] = {self.at}
        read: dict[str, None] = {}
        for node in self.graph.node:
            if not depends.isdisjoint(read_by(node)):
                depends.update(node.output)
                read.update(dict.fromkeys(name for name in node.input if name and name not in depends | there))
        return list(read)


def evaluate(
    graph: onnx.GraphProto, inputs: Mapping[str, Tensor], of: str, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """The value of one output of a graph, all of its floating-point numbers being of one type.

    Args:
        graph: of operators in OPERATORS.
        inputs: of the graph, constants, and what else is known of its values.
        of: the output.
        dtype: of the numbers.

    Raises:
        GradientError: another operator.
    """
    constants = {item.name: _tensor(numpy_helper.to_array(item), dtype) for item in graph.initializer
                 if item.name not in inputs}
    values: dict[str, Tensor | None] = {"": None, **constants, **inputs}
    unknown = [node for node in graph.node if values.keys().isdisjoint(node.output)]
    for node in needed_for(unknown, [of]):
        if node.op_type not in OPERATORS:
            raise GradientError(f"operator {node.op_type} (node {node.name!r}) cannot be evaluated in torch")
        found = OPERATORS[node.op_type](attributes_of(node), *(values[name] for name in node.input))
        found = found if isinstance(found, tuple) else (found,)
        values.update((name, value.to(dtype) if value.is_floating_point() else value)
                      for name, value in zip(node.output, found, strict=False))
    result = values[of]
    assert result is not None
    return result


def _tensor(value: np.ndarray, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(np.array(value))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


Attributes = Mapping[str, Any]


def _constant(at: Attributes) -> Tensor:
    (name, value), = at.items()
    return torch.from_numpy(np.array(numpy_helper.to_array(value) if name == "value" else value))


def _cast(at: Attributes, x: Tensor) -> Tensor:
    return x.to(torch.from_numpy(np.zeros(1, helper.tensor_dtype_to_np_dtype(at["to"]))).dtype)


def _pads(at: Attributes, x: Tensor, kernel: Sequence[int], value: float = 0) -> Tensor:
    """x with the border that a convolution's or a pooling's attributes ask for."""
    rank = len(kernel)
    pads = at.get("pads", [0] * 2 * rank)
    how = at.get("auto_pad", b"NOTSET")
    if how.startswith(b"SAME"):
        strides, dilations = (at.get(name, [1] * rank) for name in ("strides", "dilations"))
        needed = [max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
                  for size, s, d, k in zip(x.shape[2:], strides, dilations, kernel, strict=True)]
        less, more = [n // 2 for n in needed], [n - n // 2 for n in needed]
        pads = less + more if how == b"SAME_UPPER" else more + less
    flat = [pads[place] for axis in reversed(range(rank)) for place in (axis, axis + rank)]
    return F.pad(x, flat, value=value)


def _conv(at: Attributes, x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    convolution = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    padded = _pads(at, x, weights.shape[2:])
    return convolution(padded, weights, bias, at.get("strides", 1), 0, at.get("dilations", 1), at.get("group", 1))


def _conv_transpose(at: Attributes, x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    convolution = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    whole = convolution(x, weights, bias, at.get("strides", 1), 0, at.get("output_padding", 0), at.get("group", 1),
                        at.get("dilations", 1))
    begin, end = np.array(at.get("pads", [0] * 2 * rank)).reshape(2, rank).tolist()
    for axis, (before, after) in enumerate(zip(begin, end, strict=True), 2):
        whole = whole.narrow(axis, before, whole.shape[axis] - before - after)
    return whole


def _pooled(at: Attributes, x: Tensor, reduce: Callable[..., Tensor], border: float) -> Tensor:
    """The windows of an image, ``[..., places]``, reduced."""
    kernel = at["kernel_shape"]
    view = _pads(at, x, kernel, border)
    for axis, (size, stride) in enumerate(zip(kernel, at.get("strides", [1] * len(kernel)), strict=True), 2):
        view = view.unfold(axis, size, stride)
    return reduce(view.flatten(-len(kernel)), -1)


def _average_pool(at: Attributes, x: Tensor) -> Tensor:
    mean = _pooled(at, x, torch.mean, 0)
    return mean if at.get("count_include_pad", 0) else mean / _pooled(at, torch.ones_like(x), torch.mean, 0)


def _max_pool(at: Attributes, x: Tensor) -> Tensor:
    return _pooled(at, x, torch.amax, -torch.inf)


def _axes(at: Attributes, axes: Tensor | None, x: Tensor) -> list[int]:
    return at["axes"] if "axes" in at else list(range(x.ndim)) if axes is None else axes.tolist()


def _reduction(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda at, x, axes=None: reduce(x, _axes(at, axes, x), keepdim=bool(at.get("keepdims", 1)))


def _slice(at: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None,
           steps: Tensor | None = None) -> Tensor:
    along = range(len(starts)) if axes is None else axes.tolist()
    for place, axis in enumerate(along):
        step = 1 if steps is None else int(steps[place])
        size, end = x.shape[axis], int(ends[place])
        limits = slice(int(starts[place]), None if step < 0 and end < -size else end, step)
        x = x.index_select(axis, torch.arange(size)[range(size)[limits]] if step > 0
                           else torch.tensor(list(range(size)[limits])))
    return x


def _split(at: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = at.get("axis", 0)
    return torch.split(x, sizes.tolist() if sizes is not None else -(-x.shape[axis] // at["num_outputs"]), axis)


def _reshape(at: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sizes = shape.tolist()
    return x.reshape([x.shape[axis] if size == 0 and not at.get("allowzero", 0) else size
                      for axis, size in enumerate(sizes)])


def _squeeze(at: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes.tolist())


def _unsqueeze(at: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _pad(at: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    along = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    limits = dict(zip(along, pads.reshape(2, -1).T.tolist(), strict=True))
    flat = [size for axis in reversed(range(x.ndim)) for size in limits.get(axis, [0, 0])]
    return F.pad(x, flat, value=0 if value is None else float(value))


def _resize(at: Attributes, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None,
            sizes: Tensor | None = None) -> Tensor:
    large = [] if sizes is None else [size / n for size, n in zip(sizes.tolist(), x.shape, strict=True)]
    for axis, factor in enumerate(large if scales is None else scales.tolist() or large):
        if factor != int(factor):
            raise GradientError(f"Resize by {factor:g} cannot be evaluated in torch: only whole factors")
        x = x.repeat_interleave(int(factor), axis)
    return x


def _gemm(at: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    product = (a.T if at.get("transA", 0) else a) @ (b.T if at.get("transB", 0) else b) * at.get("alpha", 1.0)
    return product if c is None else product + c * at.get("beta", 1.0)


def _layer_norm(at: Attributes, x: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[at.get("axis", -1):]
    return F.layer_norm(x, shape, gain, bias, at.get("epsilon", 1e-5))


def _batch_norm(at: Attributes, x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(x, mean, variance, gain, bias, eps=at.get("epsilon", 1e-5))


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Abs": lambda at, x: x.abs(),
    "Add": lambda at, a, b: a + b,
    "And": lambda at, a, b: a & b,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": lambda at, x, low=None, high=None: x.clamp(low, high),
    "Concat": lambda at, *parts: torch.cat(parts, at["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": lambda at, x: x.cos(),
    "Div": lambda at, a, b: a / b if a.is_floating_point() else a // b,
    "Dropout": lambda at, x, *others: x,
    "Equal": lambda at, a, b: a == b,
    "Erf": lambda at, x: x.erf(),
    "Exp": lambda at, x: x.exp(),
    "Expand": lambda at, x, shape: x * torch.ones(shape.tolist(), dtype=x.dtype),
    "Flatten": lambda at, x: x.reshape(int(np.prod(x.shape[: at.get("axis", 1)])), -1),
    "Gather": lambda at, x, places: x.index_select(at.get("axis", 0), places.reshape(-1) % x.shape[at.get("axis", 0)])
    .reshape(*x.shape[: at.get("axis", 0) % x.ndim], *places.shape, *x.shape[at.get("axis", 0) % x.ndim + 1 :]),
    "Gelu": lambda at, x: F.gelu(x),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda at, x: x.mean(list(range(2, x.ndim)), keepdim=True),
    "Greater": lambda at, a, b: a > b,
    "GreaterOrEqual": lambda at, a, b: a >= b,
    "Identity": lambda at, x: x,
    "InstanceNormalization": lambda at, x, gain, bias: F.instance_norm(x, weight=gain, bias=bias,
                                                                       eps=at.get("epsilon", 1e-5)),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda at, x: F.leaky_relu(x, at.get("alpha", 0.01)),
    "Less": lambda at, a, b: a < b,
    "LessOrEqual": lambda at, a, b: a <= b,
    "Log": lambda at, x: x.log(),
    "LogSoftmax": lambda at, x: x.log_softmax(at.get("axis", -1)),
    "MatMul": lambda at, a, b: a @ b,
    "Max": lambda at, *several: functools.reduce(torch.maximum, several),
    "MaxPool": _max_pool,
    "Min": lambda at, *several: functools.reduce(torch.minimum, several),
    "Mul": lambda at, a, b: a * b,
    "Neg": lambda at, x: -x,
    "Not": lambda at, x: ~x,
    "Or": lambda at, a, b: a | b,
    "Pad": _pad,
    "Pow": lambda at, a, b: a**b,
    "Reciprocal": lambda at, x: 1 / x,
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "ReduceSumSquare": _reduction(lambda x, axes, keepdim: (x * x).sum(axes, keepdim=keepdim)),
    "Relu": lambda at, x: x.relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda at, x: torch.tensor(x.shape)[at.get("start", 0) : at.get("end")],
    "Sigmoid": lambda at, x: x.sigmoid(),
    "Sin": lambda at, x: x.sin(),
    "Slice": _slice,
    "Softmax": lambda at, x: x.softmax(at.get("axis", -1)),
    "Softplus": lambda at, x: F.softplus(x),
    "Split": _split,
    "Sqrt": lambda at, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda at, a, b: a - b,
    "Sum": lambda at, *several: functools.reduce(torch.add, several),
    "Tanh": lambda at, x: x.tanh(),
    "Transpose": lambda at, x: x.permute(at.get("perm", list(reversed(range(x.ndim))))),
    "Unsqueeze": _unsqueeze,
    "Where": lambda at, condition, a, b: torch.where(condition, a, b),
}

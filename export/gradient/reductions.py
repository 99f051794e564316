"""Gradient rules of sums over many values: reductions, softmax, norms, pools."""

from __future__ import annotations

import itertools
import math

import numpy as np

from sde_onnx.errors import GradientError
from sde_onnx.export.gradient.elementwise import Contributions
from sde_onnx.export.gradient.products import scattered, windows
from sde_onnx.export.gradient.writer import Call, GradientWriter

__all__ = [
    "average_pool", "batch_normalization", "global_average_pool", "instance_normalization", "layer_normalization",
    "log_softmax", "max_pool", "reduce_mean", "reduce_sum", "reduce_sum_square", "softmax",
]


def reduce_sum(write: GradientWriter, call: Call) -> Contributions:
    """``y = sum x``: g for every x."""
    return [write.spread(_kept(write, call))]


def reduce_mean(write: GradientWriter, call: Call) -> Contributions:
    """``y = mean x``, of n: g / n for every x."""
    x = call.inputs[0]
    count = math.prod(write.values.sizes(x, write.axes(call)))
    return [write.spread(write.times(_kept(write, call), 1 / count, x))]


def reduce_sum_square(write: GradientWriter, call: Call) -> Contributions:
    """``y = sum x^2``: 2 g x."""
    x = call.inputs[0]
    return [write.add("Mul", write.times(_kept(write, call), 2, x), x)]


def _kept(write: GradientWriter, call: Call) -> str:
    """The cotangent of a reduction with the axes that it has lost."""
    axes = write.axes(call)
    if call.attributes.get("keepdims", 1) or not axes:
        return call.g
    return write.add("Unsqueeze", call.g, write.constant(np.array(axes, np.int64)))


def softmax(write: GradientWriter, call: Call) -> Contributions:
    """``y = e^x / sum e^x``: y (g - sum g y)."""
    y, axis = call.outputs[0], call.attributes.get("axis", -1)
    weighed = write.sum(write.add("Mul", call.g, y), [axis])
    return [write.add("Mul", write.add("Sub", call.g, weighed), y)]


def log_softmax(write: GradientWriter, call: Call) -> Contributions:
    """``y = x - ln sum e^x``: g - e^y sum g."""
    total = write.sum(call.g, [call.attributes.get("axis", -1)])
    return [write.add("Sub", call.g, write.add("Mul", write.add("Exp", call.outputs[0]), total))]


def layer_normalization(write: GradientWriter, call: Call) -> Contributions:
    """A norm over the last axes: :func:`_through_norm` with h = gain g."""
    x, gain = call.inputs[:2]
    rank = len(write.values.shape(x))
    axes = range(call.attributes.get("axis", -1) % rank, rank)
    return [_through_norm(write, call, write.add("Mul", call.g, gain), list(axes))]


def instance_normalization(write: GradientWriter, call: Call) -> Contributions:
    """A norm over each channel of an image: :func:`_through_norm` with h = gain g."""
    x, gain, bias = call.inputs
    rank = len(write.values.shape(x))
    unit = _is_all(write, gain, 1)
    h = call.g if unit else write.add("Mul", call.g, _of_channels(write, gain, rank))
    return [_through_norm(write, call, h, list(range(2, rank)), plain=unit and _is_all(write, bias, 0))]


def _is_all(write: GradientWriter, name: str, value: float) -> bool:
    return write.values.is_constant(name) and bool((write.values.constant(name) == value).all())


def _through_norm(write: GradientWriter, call: Call, h: str, axes: list[int], *, plain: bool = False) -> str:
    """With ``xhat = (x - mean x) / d`` and ``d = sqrt(variance + epsilon)``: (h - mean h - xhat mean(h xhat)) / d.

    The result of a norm of gain 1 and bias 0, a plain one, is xhat.
    """
    x, epsilon = call.inputs[0], call.attributes.get("epsilon", 1e-5)
    centred = write.add("Sub", x, write.mean(x, axes, x))
    variance = write.mean(write.add("Mul", centred, centred), axes, x)
    deviation = write.add("Sqrt", write.add("Add", variance, write.number(epsilon, x)))
    normalized = call.outputs[0] if plain else write.add("Div", centred, deviation)
    along = write.mean(write.add("Mul", h, normalized), axes, x)
    rest = write.add("Sub", write.add("Sub", h, write.mean(h, axes, x)), write.add("Mul", normalized, along))
    return write.add("Div", rest, deviation)


def batch_normalization(write: GradientWriter, call: Call) -> Contributions:
    """A norm with constant mean and variance: g gain / sqrt(variance + epsilon)."""
    if call.attributes.get("training_mode", 0):
        raise GradientError("the rule is for a norm that is not being trained")
    x, gain, _, _, variance = call.inputs
    epsilon = write.number(call.attributes.get("epsilon", 1e-5), variance)
    factor = write.add("Div", gain, write.add("Sqrt", write.add("Add", variance, epsilon)))
    return [write.add("Mul", call.g, _of_channels(write, factor, len(write.values.shape(x))))]


def _of_channels(write: GradientWriter, values: str, rank: int) -> str:
    """A number for each channel, as something that multiplies images."""
    return write.reshape(values, -1, *[1] * (rank - 2))


def global_average_pool(write: GradientWriter, call: Call) -> Contributions:
    """The mean of each channel's n values: g / n for every one."""
    x = call.inputs[0]
    count = math.prod(write.values.sizes(x, range(2, len(write.values.shape(x)))))
    return [write.spread(write.times(call.g, 1 / count, x))]


def average_pool(write: GradientWriter, call: Call) -> Contributions:
    """Means of windows: g over the window's size, added up over the windows that a pixel is in."""
    kernel, strides, begin, end, _ = _pool(write, call)
    x = call.inputs[0]
    axes = range(2, len(kernel) + 2)
    if any(begin + end) and not call.attributes.get("count_include_pad", 0):
        inside = np.pad(np.ones(write.values.sizes(x, axes)), list(zip(begin, end, strict=True)))
        view = np.lib.stride_tricks.sliding_window_view(inside, kernel)
        counts = view[tuple(slice(None, None, stride) for stride in strides)].sum(tuple(range(-len(kernel), 0)))
        mean = write.add("Div", call.g, write.constant(counts.astype(write.values.dtype(x))))
    else:
        mean = write.times(call.g, 1 / math.prod(kernel), x)
    channels, = write.values.sizes(x, [1])
    ones = write.constant(np.ones((channels, 1, *kernel), write.values.dtype(x)))
    return [scattered(write, call, mean, ones, channels)]


def max_pool(write: GradientWriter, call: Call) -> Contributions:
    """The largest value of each window: g there, at the first of equal ones, added up over windows."""
    kernel, strides, begin, end, _ = _pool(write, call)
    x, y = call.inputs[0], call.outputs[0]
    dtype, rank = write.values.dtype(x), len(kernel)
    axes = range(2, rank + 2)
    channels, *sizes = write.values.sizes(y, range(1, rank + 2))
    pads = np.array([0, 0, *begin, 0, 0, *end])
    padded = write.add("Pad", x, write.constant(pads), write.constant(dtype.type(np.finfo(dtype).min)))
    places = list(itertools.product(*map(range, kernel)))
    apart = write.constant(np.array([2]))   # the axis of the places of a window
    steps, all_axes = write.constant(np.array(strides)), write.constant(np.array(axes))
    views = []
    for place in places:
        ends = [first + (size - 1) * stride + 1 for first, size, stride in zip(place, sizes, strides, strict=True)]
        limits = [write.constant(np.array(limit)) for limit in (place, ends)]
        view = write.add("Slice", padded, *limits, all_axes, steps)
        views.append(write.add("Unsqueeze", view, apart))
    equal = write.add("Equal", write.add("Concat", *views, axis=2), write.add("Unsqueeze", y, apart))
    before = write.add("CumSum", write.cast(equal, write.values.type_of(x)), write.constant(np.array(2)),
                       exclusive=1)
    first = write.add("And", equal, write.add("Equal", before, write.number(0, x)))
    chosen = write.add("Where", first, write.add("Unsqueeze", call.g, apart), write.number(0, x))
    kernels = np.zeros((channels, len(places), 1, *kernel), dtype)
    kernels.reshape(channels, len(places), -1)[:, range(len(places)), range(len(places))] = 1   # one place each
    flat = write.reshape(chosen, -1, channels * len(places), *sizes)
    return [scattered(write, call, flat, write.constant(kernels.reshape(-1, 1, *kernel)), channels)]


def _pool(write: GradientWriter, call: Call) -> tuple[list[int], ...]:
    found = windows(write, call)
    if max(found[-1]) > 1 or call.attributes.get("ceil_mode", 0):
        raise GradientError("the rule is for windows without dilation, and ceil_mode 0")
    return found

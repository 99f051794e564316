"""Gradient rules of operators that move values and change none."""

from __future__ import annotations

import itertools

import numpy as np

from sde_onnx.errors import GradientError
from sde_onnx.export.gradient.elementwise import Contributions
from sde_onnx.export.gradient.writer import Call, GradientWriter

__all__ = ["concat", "expand", "gather", "pad", "reshape", "resize", "slice_", "split", "transpose"]

# Of ONNX's ways from a pixel to the one that it copies, those that repeat each pixel where the scale is whole.
REPEATS = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"),
           ("half_pixel_symmetric", "round_prefer_floor"), ("half_pixel_symmetric", "round_prefer_ceil")}


def reshape(write: GradientWriter, call: Call) -> Contributions:
    """The same values in another shape, by Reshape, Flatten, Squeeze or Unsqueeze: g in x's shape."""
    return [write.reshaped(call.g, call.inputs[0])]


def expand(write: GradientWriter, call: Call) -> Contributions:
    """``y = x``, repeated: the sum of g over the repetitions."""
    return [write.reduced(call.g, call, 0)]


def transpose(write: GradientWriter, call: Call) -> Contributions:
    """Axes in another order: g with the order undone."""
    rank = len(write.values.shape(call.inputs[0]))
    order = call.attributes.get("perm", list(reversed(range(rank))))
    return [write.add("Transpose", call.g, perm=np.argsort(order).tolist())]


def concat(write: GradientWriter, call: Call) -> Contributions:
    """One after another: the piece of g that belongs to each."""
    axis = call.attributes["axis"]
    sizes = [write.values.sizes(name, [axis])[0] for name in call.inputs]
    limits = itertools.pairwise(itertools.accumulate(sizes, initial=0))
    return [write.add("Slice", call.g, *(write.constant(np.array([number])) for number in (*limit, axis)))
            for limit in limits]


def split(write: GradientWriter, call: Call) -> Contributions:
    """Pieces along an axis: their cotangents one after another, 0 where nothing depends on one."""
    axis = call.attributes.get("axis", 0)
    pieces = [write.add("Expand", write.number(0, name), write.shape_of(name)) if g is None else g
              for name, g in zip(call.outputs, call.cotangents, strict=True)]
    return [write.add("Concat", *pieces, axis=axis)]


def slice_(write: GradientWriter, call: Call) -> Contributions:
    """Some places of each axis: g at those places, 0 at the others."""
    x = call.inputs[0]
    given = [write.values.constant(name).tolist() if name else [] for name in (*call.inputs[1:], "", "")[:4]]
    starts, ends = given[:2]
    axes, steps = given[2] or list(range(len(starts))), given[3] or [1] * len(starts)
    g = call.g
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size, = write.values.sizes(x, [axis])
        first = None if step < 0 and end < -size else end   # backwards, the first place lies before this end
        g = _put_back(write, g, call, axis, np.arange(size)[slice(start, first, step)])
    return [g]


def gather(write: GradientWriter, call: Call) -> Contributions:
    """The places of one axis that a constant names: g added up at those places, 0 at the others."""
    x, places = call.inputs
    axis = call.attributes.get("axis", 0) % len(write.values.shape(x))
    indices = write.values.constant(places)
    g = call.g
    if indices.ndim == 0:   # the axis is gone
        g = write.add("Unsqueeze", g, write.constant(np.array([axis])))
    elif indices.ndim > 1:
        raise GradientError("the rule is for one place or a list of places")
    return [_put_back(write, g, call, axis, np.atleast_1d(indices))]


def _put_back(write: GradientWriter, g: str, call: Call, axis: int, places: np.ndarray) -> str:
    """Values at the places of an axis that they came from: padded if those are in a row, else by a product."""
    x = call.inputs[0]
    rank, (size,) = len(write.values.shape(x)), write.values.sizes(x, [axis])
    axis %= rank
    places = places % size
    if len(places) == size and (places == np.arange(size)).all():
        return g
    if len(places) and (np.diff(places) == 1).all():
        pads = np.zeros((2, rank), np.int64)
        pads[:, axis] = places[0], size - 1 - places[-1]
        return write.add("Pad", g, write.constant(pads.reshape(-1)), write.number(0, x))
    order = [*range(axis), *range(axis + 1, rank), axis]
    chosen = write.constant((places[:, None] == np.arange(size)).astype(write.values.dtype(x)))
    last = write.add("MatMul", write.add("Transpose", g, perm=order), chosen)
    return write.add("Transpose", last, perm=np.argsort(order).tolist())


def pad(write: GradientWriter, call: Call) -> Contributions:
    """A constant around x: the inside of g.

    Raises:
        GradientError: the border is not constant, or has less than nothing.
    """
    mode = call.attributes.get("mode", b"constant").decode()
    if mode != "constant":
        raise GradientError(f"the rule is for mode 'constant', not {mode!r}")
    rank = len(write.values.shape(call.inputs[0]))
    named = write.values.constant(call.inputs[3]) % rank if len(call.inputs) > 3 and call.inputs[3] else None
    axes = np.arange(rank) if named is None else named.astype(np.int64)
    before, after = write.values.constant(call.inputs[1]).reshape(2, -1)
    if min(*before, *after) < 0:
        raise GradientError("the rule is for pads of 0 or more")
    padded = (before + after) > 0
    if not padded.any():
        return [call.g]
    ends = np.where(after > 0, -after, np.iinfo(np.int64).max)
    return [write.add("Slice", call.g, *(write.constant(part[padded]) for part in (before, ends, axes)))]


def resize(write: GradientWriter, call: Call) -> Contributions:
    """Every pixel repeated k x l times: the sum of g over each k x l.

    Raises:
        GradientError: pixels are interpolated, or not repeated equally often.
    """
    attributes = call.attributes
    way = tuple(attributes.get(name, usual).decode() for name, usual in (
        ("coordinate_transformation_mode", b"half_pixel"), ("nearest_mode", b"round_prefer_floor")))
    if attributes.get("mode", b"nearest") != b"nearest" or way not in REPEATS:
        raise GradientError("the rule is for mode 'nearest', pixels repeated")
    before, after = (write.values.shape(name) for name in (call.inputs[0], call.outputs[0]))
    if len(before) != 4 or before[1] != after[1] or "axes" in attributes:
        raise GradientError(f"the rule is for the two axes of an image, not for {before} to {after}")
    small, large = (write.values.sizes(name, [2, 3]) for name in (call.inputs[0], call.outputs[0]))
    window = [b // a for a, b in zip(small, large, strict=True)]
    scales = write.values.constant(call.inputs[2]).tolist() if len(call.inputs) > 2 and call.inputs[2] else None
    if scales not in (None, [], [1, 1, *window]) or any(b % a for a, b in zip(small, large, strict=True)):
        raise GradientError(f"the rule is for whole scales, not for {small} to {large}")
    mean = write.add("AveragePool", call.g, kernel_shape=window, strides=window)
    return [write.times(mean, float(np.prod(window)), call.inputs[0])]

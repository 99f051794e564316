"""Group norms in the form that ONNX Runtime's CPU provider runs best.

Its own kernel (InstanceNormalization over the groups) runs on one thread and adds up a group one value after the other
in float32: over the four million values of a group at 1024x1024 that costs 1e-4 relative, a hundred times the rounding
of everything else. From the moments of the channels, on all threads, with m = mean(x), q = mean(x^2), e the channel's
shift:

    group mean        M = mean over the group's channels of m + e
    group variance    V = mean over the group's channels of q - m^2 + (m + e - M)^2
    norm              x a + b   with   a = gain / sqrt(V + eps),   b = (e - M) a + bias

The shift (the noise level's embedding) never passes over the image, and norm, gain and bias are one product and one
sum. ``q - m^2`` loses precision where a group's mean is many times its deviation: M^2 / V times the rounding of the
sums, a few 1e-7. In the bundled model that ratio is 13 at most; the check at export measures what it costs.

Moments belong to a tensor and not to a norm: a skip connection's are those that its own level has taken, and those of a
concatenation are its parts' put together. A concatenation of large images is normalized part by part, so that it need
not be made before (concatenations.py).

A norm is one node while the network is traced, which saves the exporter most of its work, and is written out after.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from sde_onnx.export.graph.nodes import Nodes, attributes_of, concatenated, remove_opset, replace_nodes, shapes_of
from sde_onnx.export.network.layers import GroupNorm

__all__ = ["mark_norms", "write_norms"]

DOMAIN, OPERATOR = "sde_onnx", "GroupNorm"   # of the node that stands for a norm until write_norms
LARGEST_PLAIN_GROUP = 1 << 12   # values; up to here ONNX Runtime's kernel is as fast and as accurate
LONGEST_SUM = 1 << 11           # values; longer ones are means of means, and images of more pixels are large


class MarkedNorm(GroupNorm):
    """A group norm that is traced as one node. It shares its weights with the norm that it stands for."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, eps=norm.eps)
        if norm.affine:   # else gains of 1 and biases of 0 do
            self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        image = x if x.ndim == 4 else x.reshape(*x.shape[:2], -1, 1)   # tokens [N, C, L] are a column of pixels
        inputs = (image, self.weight, self.bias) if shift is None else (image, self.weight, self.bias, shift)
        normalized: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{OPERATOR}", inputs, {"num_groups": self.num_groups, "epsilon": self.eps}, dtype=x.dtype,
            shape=image.shape, version=1,
        )
        return normalized.reshape(x.shape)


def mark_norms(network: nn.Module) -> None:
    """Makes every group norm of the network, in place, one that is traced as one node."""
    for module in list(network.modules()):
        for name, norm in module.named_children():
            if isinstance(norm, nn.GroupNorm) and type(norm) in (GroupNorm, nn.GroupNorm):
                setattr(module, name, MarkedNorm(norm))


def write_norms(model: onnx.ModelProto) -> None:
    """Writes out every marked norm of a traced model, in place, in operators of ONNX."""
    graph = model.graph
    values = {item.name: item for item in graph.initializer}
    shapes, parts = shapes_of(graph), concatenated(graph)
    moments: dict[str, tuple[str, str]] = {}
    nodes = []
    for node in graph.node:
        if (node.domain, node.op_type) != (DOMAIN, OPERATOR):
            nodes.append(node)
            continue
        x, gain, bias, *shift = node.input
        attributes = attributes_of(node)
        writer = _NormWriter(node.output[0], x, attributes["num_groups"], shapes, parts, moments)
        gain, bias = (numpy_helper.to_array(values[name]) for name in (gain, bias))
        writer.write(gain, bias, shift[0] if shift else None, attributes["epsilon"])
        nodes.extend(writer.nodes)
        graph.initializer.extend(writer.constants.values())
        graph.value_info.extend(writer.value_info)
    replace_nodes(graph, nodes)
    remove_opset(model, DOMAIN)


class _NormWriter(Nodes):
    """Writes one norm as nodes whose names begin with that of its result.

    Args:
        result: the name of the norm's result.
        x: the name of what is normalized.
        groups: of the channels.
        shapes: of the graph's values, ``[N, C, H, W]``.
        parts: inputs of the graph's concatenations of channels, by the names of their results.
        moments: names of the mean and the mean square of each value that has them, ``[N, C]``; added to.
    """

    def __init__(
        self, result: str, x: str, groups: int, shapes: Mapping[str, list[int]], parts: Mapping[str, list[str]],
        moments: dict[str, tuple[str, str]],
    ) -> None:
        super().__init__(result)
        self.x = x
        self.shapes = shapes
        self.parts = parts
        self.moments = moments
        _, self.channels, self.height, self.width = shapes[x]
        self.grouped = (groups, self.channels // groups)
        self.value_info: list[onnx.ValueInfoProto] = []   # of what a concatenation's norm is put together from

    def write(self, gain: np.ndarray, bias: np.ndarray, shift: str | None, epsilon: float) -> None:
        small = self.grouped[1] * self.height * self.width <= LARGEST_PLAIN_GROUP
        form: Callable[..., None] = self._plain if small else self._moments
        form(gain.astype(np.float32), bias.astype(np.float32), shift, epsilon)

    def _plain(self, gain: np.ndarray, bias: np.ndarray, shift: str | None, epsilon: float) -> None:
        x, groups = self.x, self.grouped[0]
        if shift is not None:
            x = self.add("Add", x, self._reshape(shift, self.channels, 1, 1))
        ones, zeros = (self.constant(np.full(groups, value, np.float32)) for value in (1, 0))
        normalized = self.add("InstanceNormalization", self._reshape(x, groups, -1, batch=0), ones, zeros,
                               epsilon=epsilon)
        normalized = self._reshape(normalized, self.channels, self.height, self.width)
        scaled = self.add("Mul", normalized, self.constant(gain[:, None, None]))
        self.add("Add", scaled, self.constant(bias[:, None, None]), output=self.prefix)

    def _moments(self, gain: np.ndarray, bias: np.ndarray, shift: str | None, epsilon: float) -> None:
        mean, square = (self._reshape(moment, *self.grouped) for moment in self._channel_moments(self.x))
        shifted = mean if shift is None else self.add("Add", mean, self._reshape(shift, *self.grouped))
        off_centre = self.add("Sub", shifted, self._mean(shifted, 2, keep=True))
        within = self.add("Sub", square, self.add("Mul", mean, mean))
        total = self.add("Add", within, self.add("Mul", off_centre, off_centre))
        variance = self.add("Max", self._mean(total, 2, keep=True), self.constant(np.float32(0)))
        deviation = self.add("Sqrt", self.add("Add", variance, self.constant(np.float32(epsilon))))
        factor = self.add("Div", self.constant(gain.reshape(self.grouped)), deviation)
        moved = self.add("Mul", self.add("Sub", off_centre, mean), factor)
        summand = self.add("Add", moved, self.constant(bias.reshape(self.grouped)))
        factor, summand = (self._reshape(value, self.channels, 1, 1) for value in (factor, summand))
        if self.x not in self.parts or self.height * self.width <= LONGEST_SUM:
            self.add("Add", self.add("Mul", self.x, factor), summand, output=self.prefix)
            return
        parts = self.parts[self.x]
        sizes = [self.shapes[part][1] for part in parts]
        each = zip(parts, self._split(factor, sizes), self._split(summand, sizes), strict=True)
        normalized = [self.add("Add", self.add("Mul", x, factor), summand) for x, factor, summand in each]
        self.value_info = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, *self.shapes[part][1:]])
                           for name, part in zip(normalized, parts, strict=True)]
        self.add("Concat", *normalized, axis=1, output=self.prefix)

    def _channel_moments(self, x: str) -> tuple[str, str]:
        """Mean and mean square of each channel of a value, ``[N, C]``; taken once for all norms."""
        if x not in self.moments:
            if x in self.parts:
                means, squares = zip(*(self._channel_moments(part) for part in self.parts[x]), strict=True)
                self.moments[x] = self.add("Concat", *means, axis=1), self.add("Concat", *squares, axis=1)
            else:
                # Reshaped before it is squared: in the image's shape ONNX Runtime would square it in the blocked layout
                # of its convolutions, and reorder both.
                _, channels, height, width = self.shapes[x]
                length = math.gcd(height * width, LONGEST_SUM)
                if (count := height * width // length) == 1:
                    rows = self._reshape(x, channels, length)
                    self.moments[x] = self._mean(rows, 2), self._mean(self.add("Mul", rows, rows), 2)
                else:
                    # One reduction beats a product and its mean, which go through memory once more; above, within a
                    # cache, it is slower, for it has more to compute.
                    rows = self._reshape(x, channels, count, length)
                    total = self.add("ReduceSumSquare", rows, self.constant(np.array([3])), keepdims=0)
                    square = self.add("Mul", total, self.constant(np.float32(1 / length)))
                    self.moments[x] = self._mean(self._mean(rows, 3), 2), self._mean(square, 2)
        return self.moments[x]

    def _split(self, x: str, sizes: list[int]) -> list[str]:
        """Channels in turn."""
        starts = np.cumsum([0, *sizes])
        axis = self.constant(np.array([1]))
        return [self.add("Slice", x, *(self.constant(np.array([limit])) for limit in limits), axis)
                for limits in itertools.pairwise(starts)]

    def _mean(self, x: str, axis: int, *, keep: bool = False) -> str:
        return self.add("ReduceMean", x, self.constant(np.array([axis])), keepdims=int(keep))

    def _reshape(self, x: str, *shape: int, batch: int = -1) -> str:
        return self.reshape(x, batch, *shape)

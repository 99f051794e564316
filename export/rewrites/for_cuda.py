"""A traced network for the CUDA provider: channels last, its norms as one kernel each, in half precision if asked.

    layout       every image-like value is ``[N, H, W, C]``, which tensor cores take without a reorder; convolutions are
                 ``com.microsoft.NhwcConv``, their weights ``[M, kH, kW, C / groups]``
    norms        ``com.microsoft.GroupNorm`` with its SiLU inside; a norm of x plus the noise level's shift is a
                 ``SkipGroupNorm`` whose skip is the shift. The kernel takes channels by twos; groups of an odd number
                 of channels are written out
    attention    batched matrix products, on tokens that are a view of the image
    fp16         features are float16. float32 stay: the embedding, everything with an image's few channels (the
                 pyramids and their sums, the division by sigma) and the norms' gains and biases
    images       rounding the input to float16 would cost up to 2.4% of the smallest sigma, and TensorFloat-32, which a
                 file with fp16 is run with, keeps no more bits. So convolutions of images read them in two parts, the
                 value in float16 and what that leaves, which both types hold: to features as one convolution of both
                 parts' channels, to an image as a sum of two
    mixed        as fp16, but the features of the image's own resolution are float32 and so is what is done with them.
                 Their convolutions are the sums of three in TensorFloat-32, of both parts of x with the kernel's first
                 part and of x's first with the kernel's second: the product of the second ones, 2^-22, is left out
    pads         cuDNN may have no plan for 3x3 at stride 2 with pads on two sides alone: a 4x4 kernel with a row and a
                 column of zeros and pads on all sides is the same

The kernels run under CUDA alone: see :mod:`sde_onnx.export.rewrites.emulation` for what they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sde_onnx.errors import ConfigError
from sde_onnx.export.graph.nodes import Nodes, attributes_of, readers_of, remove_opset, shapes_of, silu_of
from sde_onnx.export.rewrites.norms import DOMAIN, OPERATOR

__all__ = ["CONTRIB_DOMAIN", "PRECISIONS", "write_for_cuda"]

CONTRIB_DOMAIN = "com.microsoft"
PRECISIONS = ("fp32", "fp16", "mixed")
MOST_IMAGE_CHANNELS = 4     # a value of more is features
LARGEST_GROUP = 512         # channels that one block of the norm's kernel holds
HALVES_AT_ONCE = 8          # float16 channels that tensor cores take at a time
LARGEST_HALF = float(np.finfo(np.float16).max)
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def write_for_cuda(model: onnx.ModelProto, precision: str) -> None:
    """Rewrites a traced network, in place, whose norms are still marked: see :mod:`sde_onnx.export.rewrites.norms`.

    Args:
        model: inputs ``x`` and ``sigma``, output ``score``, which stay float32 and ``[N, C, H, W]``.
        precision: of the features, one of PRECISIONS.

    Raises:
        ConfigError: an operator that has no form for CUDA, or a weight that float16 does not hold.
    """
    _Writer(model.graph, precision).write()
    remove_opset(model, DOMAIN)
    model.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))


class _Writer:
    """Rewrites a graph node by node; what a value has become is kept under its old name."""

    def __init__(self, graph: onnx.GraphProto, precision: str) -> None:
        self.graph = graph
        self.half = np.dtype(np.float32 if precision == "fp32" else np.float16)
        self.keeps_top = precision == "mixed"    # whether features of the image's resolution are float32
        self.constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.shapes, self.readers = shapes_of(graph), readers_of(graph)
        self.nodes = Nodes("cuda")
        self.names: dict[str, str] = {}          # of what a value has become
        self.types: dict[str, np.dtype[Any]] = {}     # of values that are features or images
        self.last: set[str] = set()              # values [N, C, H, W] that have become [N, H, W, C]
        self.tokens: set[str] = set()            # values [N, C, HW] that have become [N, HW, C]
        self.casts: set[str] = set()             # values in another type than their own
        self.done: set[str] = set()              # results of nodes that a fused one has written already

    def write(self) -> None:
        forms: dict[str, Callable[[onnx.NodeProto], None]] = {
            "Conv": self._convolution, OPERATOR: self._norm, "Concat": self._concatenation, "Resize": self._resize,
            "Pad": self._pad, "AveragePool": self._pool, "Reshape": self._reshape, "Transpose": self._transpose,
            "Add": self._elementwise, "Sub": self._elementwise, "Mul": self._elementwise, "Div": self._elementwise,
            "Sigmoid": self._elementwise, "MatMul": self._on_tokens, "Softmax": self._on_tokens,
        }
        self._add("Transpose", ["x"], "x/last", perm=TO_LAST)
        self._became("x", "x/last", np.dtype(np.float32), last=True)
        for node in self.graph.node:
            if node.output[0] in self.done:
                continue
            if not any(name in self.types for name in node.input):   # the embedding: as it is
                self.nodes.nodes.append(node)
            elif node.op_type in forms:
                forms[node.op_type](node)
            else:
                raise ConfigError(f"the network's operator {node.op_type} has no form for CUDA")
        if "score" not in self.last:
            raise ConfigError("the network's output is not an image")
        self._add("Transpose", [self._as("score", np.dtype(np.float32))], "score", perm=TO_FIRST)
        used = {name for node in self.nodes.nodes for name in node.input}
        kept = [item for item in (*self.graph.initializer, *self.nodes.constants.values()) if item.name in used]
        for name, values in (("node", self.nodes.nodes), ("initializer", kept), ("value_info", [])):
            del getattr(self.graph, name)[:]
            getattr(self.graph, name).extend(values)

    # What a value is now.

    def _became(self, old: str, new: str, dtype: np.dtype[Any], *, last: bool = False, tokens: bool = False) -> None:
        self.names[old], self.types[old] = new, dtype
        if last:
            self.last.add(old)
        if tokens:
            self.tokens.add(old)

    def _as(self, name: str, dtype: np.dtype[Any]) -> str:
        """A value in a type: cast once, however often it is asked for; a constant is stored in it."""
        if name in self.constants:
            return self._constant(self.constants[name], dtype, name)
        now, held = self.names.get(name, name), self.types.get(name, np.dtype(np.float32))
        if held == dtype:
            return now
        cast = f"{now}/{dtype.name}"
        if cast not in self.casts:
            self._add("Cast", [now], cast, to=helper.np_dtype_to_tensor_dtype(dtype))
            self.casts.add(cast)
        return cast

    def _constant(self, value: np.ndarray, dtype: np.dtype[Any], name: str) -> str:
        if dtype == np.float16:
            _check_half(value, name)
        return self.nodes.constant(np.ascontiguousarray(value, dtype) if value.ndim else dtype.type(value))

    def _result_type(self, name: str) -> np.dtype[Any]:
        """float32 for values with an image's few channels, or of a resolution that keeps it; else the features'."""
        is_top = self.shapes[name][2:] == self.shapes["x"][2:]
        return np.dtype(np.float32) if self._is_image(name) or (self.keeps_top and is_top) else self.half

    def _is_image(self, name: str) -> bool:
        return self.shapes[name][1] <= MOST_IMAGE_CHANNELS

    def _add(self, operator: str, inputs: list[str], result: str, **attributes: Any) -> None:
        self.nodes.nodes.append(helper.make_node(operator, inputs, [result], name=f"{result}/{operator}", **attributes))

    def _image(self, node: onnx.NodeProto, operator: str, inputs: list[str], computed: np.dtype[Any],
               result: str | None = None, **attributes: Any) -> None:
        """Adds a node whose result is an image or features, and casts that to its own type."""
        old = result or node.output[0]
        new, wanted = f"{old}/last", self._result_type(old)
        if wanted != computed:
            self._add(operator, inputs, f"{old}/computed", **attributes)
            self._add("Cast", [f"{old}/computed"], new, to=helper.np_dtype_to_tensor_dtype(wanted))
        else:
            self._add(operator, inputs, new, **attributes)
        self._became(old, new, wanted, last=True)

    # Operators.

    def _convolution(self, node: onnx.NodeProto) -> None:
        x, weight, *bias = node.input
        attributes = attributes_of(node)
        kernel = self.constants[weight].transpose(TO_LAST)
        if attributes.get("pads") == [0, 0, 1, 1] and set(attributes.get("dilations", ())) <= {1}:
            kernel, attributes["pads"] = np.pad(kernel, ((0, 0), (1, 0), (1, 0), (0, 0))), [1, 1, 1, 1]
            attributes["kernel_shape"] = list(kernel.shape[1:3])
        self._convolve(node, x, kernel, weight, bias, attributes)

    def _convolve(self, node: onnx.NodeProto, x: str, kernel: np.ndarray, name: str, bias: Sequence[str],
                  attributes: dict[str, Any]) -> None:
        """Adds a convolution of x with a kernel ``[M, kH, kW, C / groups]``, whose name errors tell."""
        dtype, result = self.types[x], node.output[0]

        def inputs(values: str, kernel: np.ndarray, dtype: np.dtype[Any], bias: Sequence[str]) -> list[str]:
            return [values, self._constant(kernel, dtype, name), *(self._as(term, dtype) for term in bias)]

        if dtype == self.half:
            self._image(node, "NhwcConv", inputs(self._as(x, dtype), kernel, dtype, bias), dtype,
                        domain=CONTRIB_DOMAIN, **attributes)
        elif self._is_image(x) and self._is_image(result):
            terms = [f"{result}/of_part0", f"{result}/of_part1"]
            for term, part, shift in zip(terms, self._parts(x), (bias, ()), strict=True):
                self._add("NhwcConv", inputs(self._as(part, dtype), kernel, dtype, shift), term,
                          domain=CONTRIB_DOMAIN, **attributes)
            self._image(node, "Add", terms, dtype)
        elif not self._is_image(x):
            (x0, x1), (kernel0, kernel1) = self._parts(x), self._kernel_parts(kernel, name)
            terms = [f"{result}/of_parts{place}" for place in range(3)]
            for term, part, factor, shift in zip(terms, (x0, x1, x0), (kernel0, kernel0, kernel1), (bias, (), ()),
                                                 strict=True):
                self._add("NhwcConv", inputs(self._as(part, dtype), factor, dtype, shift), term,
                          domain=CONTRIB_DOMAIN, **attributes)
            self._add("Add", terms[1:], f"{result}/rest")
            self._image(node, "Add", [terms[0], f"{result}/rest"], dtype)
        else:
            values, room, dtype = f"{result}/parts", -2 * kernel.shape[3] % HALVES_AT_ONCE, self._result_type(result)
            self._add("Concat", [self._as(part, dtype) for part in self._parts(x)], values, axis=3)
            both = np.concatenate([kernel, kernel], axis=3)
            if room:   # zeros beside them
                self._add("Pad", [values, self.nodes.constant(np.array([0] * 7 + [room]))], f"{result}/padded")
                values, both = f"{result}/padded", np.pad(both, ((0, 0), (0, 0), (0, 0), (0, room)))
            self._image(node, "NhwcConv", inputs(values, both, dtype, bias), dtype,
                        domain=CONTRIB_DOMAIN, **attributes)

    def _parts(self, x: str) -> tuple[str, str]:
        """A float32 image as two that float16 holds, whose sum it is: itself rounded, and what that leaves."""
        single, first, rest = np.dtype(np.float32), f"{x}/part0", f"{x}/part1"
        if first not in self.types:
            self._became(first, self._as(x, self.half), self.half)
            self._add("Sub", [self._as(x, single), self._as(first, single)], f"{rest}/single")
            self._add("Cast", [f"{rest}/single"], rest, to=helper.np_dtype_to_tensor_dtype(self.half))
            self._became(rest, rest, self.half)
        return first, rest

    def _kernel_parts(self, kernel: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The same of a kernel, to 22 bits."""
        _check_half(kernel, name)
        first = kernel.astype(self.half).astype(np.float32)
        return first, (kernel - first).astype(self.half).astype(np.float32)

    def _norm(self, node: onnx.NodeProto) -> None:
        x, gain, bias, *shift = node.input
        attributes = attributes_of(node)
        groups, epsilon, dtype = attributes["num_groups"], attributes["epsilon"], self.types[x]
        channels = self.shapes[x][1] // groups
        if channels % 2 or channels > LARGEST_GROUP:
            self._norm_written_out(node, groups, epsilon)
            return
        found = silu_of(node.output[0], self.readers)
        self.done |= set(found or ())
        silu = found[1] if found else None
        inputs = [self._as(x, dtype), *(self._as(name, np.dtype(np.float32)) for name in (gain, bias))]
        if shift:
            inputs.append(self._as(shift[0], dtype))
        self._image(node, "SkipGroupNorm" if shift else "GroupNorm", inputs, dtype, silu, domain=CONTRIB_DOMAIN,
                    activation=int(silu is not None), channels_last=1, epsilon=epsilon, groups=groups)

    def _norm_written_out(self, node: onnx.NodeProto, groups: int, epsilon: float) -> None:
        x, gain, bias, *shift = node.input
        _, channels, height, width = self.shapes[x]
        single, nodes = np.dtype(np.float32), Nodes(f"{node.output[0]}/last")
        value = self._as(x, single)
        if shift:
            value = nodes.add("Add", value, nodes.reshape(self._as(shift[0], single), -1, 1, 1, channels))
        value = nodes.reshape(value, -1, height * width, groups, channels // groups)
        value = nodes.reshape(nodes.normalized(value, (1, 3), epsilon), -1, height, width, channels)
        value = nodes.add("Mul", value, self._as(gain, single))
        self.nodes.nodes.extend(nodes.nodes)
        self.nodes.constants |= nodes.constants
        self._image(node, "Add", [value, self._as(bias, single)], single)

    def _elementwise(self, node: onnx.NodeProto) -> None:
        images = [name for name in node.input if name in self.last]
        if not images:
            self._on_tokens(node)
            return
        half = any(self.types[name] == self.half for name in images) and self._result_type(node.output[0]) == self.half
        dtype = self.half if half else np.dtype(np.float32)
        self._image(node, node.op_type, [self._beside_an_image(name, dtype) for name in node.input], dtype)

    def _beside_an_image(self, name: str, dtype: np.dtype[Any]) -> str:
        """An operand that is broadcast against an image: one number, or one for each image or each channel."""
        if name not in self.constants:
            if name not in self.last and self.shapes[name][1:] != [1, 1, 1]:
                raise ConfigError(f"{name} {self.shapes[name]} has no form for CUDA beside an image")
            return self._as(name, dtype)
        value = self.constants[name]
        if value.ndim in (3, 4) and value.shape[-2:] == (1, 1):
            value = value.reshape(-1)   # one for each channel, which is the last axis now
        elif value.size != 1:
            raise ConfigError(f"{name} {list(value.shape)} has no form for CUDA beside an image")
        return self._constant(value, dtype, name)

    def _concatenation(self, node: onnx.NodeProto) -> None:
        dtype = self._result_type(node.output[0])
        self._image(node, "Concat", [self._as(name, dtype) for name in node.input], dtype, axis=3)

    def _resize(self, node: onnx.NodeProto) -> None:
        x, _, scales = node.input
        dtype = self.types[x]
        last = self._constant(self.constants[scales][list(TO_LAST)], np.dtype(np.float32), scales)
        self._image(node, "Resize", [self._as(x, dtype), "", last], dtype, **attributes_of(node))

    def _pad(self, node: onnx.NodeProto) -> None:
        x, pads, *value = node.input
        dtype = self.types[x]
        both = self.constants[pads].reshape(2, 4)[:, list(TO_LAST)].reshape(-1)
        self._image(node, "Pad", [self._as(x, dtype), self.nodes.constant(both), *(self._as(name, dtype)
                                                                                   for name in value)],
                    dtype, **attributes_of(node))

    def _pool(self, node: onnx.NodeProto) -> None:
        """The mean of squares of pixels, as a convolution of each channel: pooling knows channels first alone."""
        attributes = attributes_of(node)
        channels, size = self.shapes[node.output[0]][1], attributes["kernel_shape"]
        if attributes["strides"] != size or any(attributes.get("pads", ())):
            raise ConfigError(f"average pooling with {attributes} has no form for CUDA")
        mean = np.full((channels, *size, 1), 1 / np.prod(size))
        self._convolve(node, node.input[0], mean, "mean", (),
                       {"kernel_shape": size, "strides": size, "group": channels})

    def _reshape(self, node: onnx.NodeProto) -> None:
        """[N, C, H, W] to tokens [N, C, HW] and back are views; any other reshape is inside of attention."""
        x, result = node.input[0], node.output[0]
        if x not in self.last and x not in self.tokens:
            self._on_tokens(node)
            return
        shape, to_tokens = self.shapes[result], x in self.last
        if len(shape) != (3 if to_tokens else 4) or shape[1] != self.shapes[x][1]:
            raise ConfigError(f"{result} {shape} has no form for CUDA")
        sizes = self.nodes.constant(np.array([0, *shape[2:], shape[1]]))
        self._add("Reshape", [self._as(x, self.types[x]), sizes], f"{result}/last")
        self._became(result, f"{result}/last", self.types[x], last=not to_tokens, tokens=to_tokens)

    def _transpose(self, node: onnx.NodeProto) -> None:
        x, result = node.input[0], node.output[0]
        swaps = tuple(attributes_of(node)["perm"]) == (0, 2, 1)
        if x in self.tokens and swaps:        # [N, C, HW] to [N, HW, C]: it is that already
            self._became(result, self.names[x], self.types[x])
        elif swaps and all(user.op_type == "Reshape" and len(self.shapes[user.output[0]]) == 4
                           for user in self.readers[result]):
            self._became(result, self._as(x, self.types[x]), self.types[x], tokens=True)
        else:
            self._on_tokens(node)

    def _on_tokens(self, node: onnx.NodeProto) -> None:
        """Operators inside of attention: the same, in the features' type."""
        if any(name in self.last or name in self.tokens for name in node.input):
            raise ConfigError(f"the network's operator {node.op_type} has no form for CUDA on an image")
        result = node.output[0]
        shapes = {name for name, value in self.constants.items() if value.dtype.kind != "f"}
        inputs = [name if name in shapes else self._as(name, self.half) for name in node.input]
        self._add(node.op_type, inputs, f"{result}/tokens", **attributes_of(node))
        self._became(result, f"{result}/tokens", self.half)


def _check_half(value: np.ndarray, name: str) -> None:
    if np.abs(value, dtype=np.float64).max(initial=0) > LARGEST_HALF:
        raise ConfigError(f"{name} holds {np.abs(value).max():.4g}, float16 ends at 65504: export with precision fp32")

"""The portable noise (:mod:`sde_onnx.solvers.noise`) as nodes of a graph.

Words of 32 bits are int32, whose sums and products wrap, and whose operators every runtime has: of uint32 ONNX Runtime
had no ``Add`` for years, and OpenVINO calculates in int32 what is int64 or unsigned. ONNX shifts unsigned words alone:
to the left is a product here, to the right a division of what is left when the bits that go are cut off. The CUDA
provider has no bitwise operators for any type, so that this part runs on the CPU there.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from sde_onnx.export.graph.nodes import Nodes
from sde_onnx.solvers.noise import KEY_PARITY, ROTATIONS

__all__ = ["key_words", "normals"]

EXACT = 24   # bits that a quotient may have: OpenVINO divides in float32


def key_words(nodes: Nodes, seed: str) -> tuple[str, str]:
    """The two words of each seed, int64 ``[N]`` in two's complement, as int32 ``[N, 1]``."""
    bits = nodes.reshape(seed, -1, 1)
    low = nodes.cast(bits, TensorProto.INT32)
    above = nodes.add("Sub", bits, nodes.cast(low, TensorProto.INT64))   # a multiple of 2^32
    half = nodes.constant(np.int64(2**16))
    high = nodes.cast(nodes.add("Div", nodes.add("Div", above, half), half), TensorProto.INT32)
    is_negative = nodes.cast(nodes.add("Less", low, nodes.constant(np.int32(0))), TensorProto.INT32)
    return low, nodes.add("Sub", high, is_negative)


def normals(nodes: Nodes, keys: tuple[str, str], draw: str, shape: tuple[int, int, int]) -> str:
    """A noise array of each image: the name of float32 ``[N, C, H, W]``.

    Args:
        nodes: what is added to.
        keys: of :func:`key_words`.
        draw: whole, one value: the number of the array, 0 for the initial latent.
        shape: of an image, ``(C, H, W)``.
    """
    size = math.prod(shape)
    blocks = (size + 1) // 2
    counter = nodes.constant(np.arange(blocks, dtype=np.int32).reshape(1, -1))
    number = nodes.cast(nodes.reshape(draw, 1, 1), TensorProto.INT32)
    a, b = (_shifted_right(nodes, word, 8) for word in _threefry2x32(nodes, keys, (counter, number)))
    first = nodes.cast(nodes.add("Add", a, nodes.constant(np.int32(1))), TensorProto.FLOAT)
    uniform = nodes.add("Mul", first, nodes.constant(np.float32(2**-24)))
    radius = nodes.add("Sqrt", nodes.add("Mul", nodes.add("Log", uniform), nodes.constant(np.float32(-2))))
    angle = nodes.add("Mul", nodes.cast(b, TensorProto.FLOAT), nodes.constant(np.float32(2 * np.pi * 2**-24)))
    pairs = [nodes.add("Unsqueeze", nodes.add("Mul", radius, nodes.add(part, angle)), nodes.constant(np.array([2])))
             for part in ("Cos", "Sin")]
    z = nodes.reshape(nodes.add("Concat", *pairs, axis=2), -1, 2 * blocks)
    if size % 2:
        z = nodes.add("Slice", z, *(nodes.constant(np.array([value])) for value in (0, size, 1)))
    return nodes.reshape(z, -1, *shape)


def _shifted_right(nodes: Nodes, word: str, places: int) -> str:
    """The word's upper bits, with zeros before them."""
    if 32 - places > EXACT:   # two parts, and each division exact
        upper = nodes.add("Mul", _shifted_right(nodes, word, 32 - EXACT),
                          nodes.constant(np.int32(2 ** (32 - EXACT - places))))
        return nodes.add("BitwiseOr", upper, _bits(nodes, word, places, 32 - EXACT))
    return nodes.add("BitwiseAnd", _bits(nodes, word, places, 32), nodes.constant(np.int32(2 ** (32 - places) - 1)))


def _bits(nodes: Nodes, word: str, first: int, end: int) -> str:
    """Those from ``first`` on and before ``end``, with the sign before them if they reach it."""
    kept = nodes.add("BitwiseAnd", word, nodes.constant(np.int32((2**end if end < 32 else 0) - 2**first)))
    return nodes.add("Div", kept, nodes.constant(np.int32(2**first)))


def _threefry2x32(nodes: Nodes, key: tuple[str, str], counter: tuple[str, str]) -> tuple[str, str]:
    """See :func:`sde_onnx.solvers.noise.threefry2x32`; words are int32."""
    parity = nodes.add("BitwiseXor", nodes.add("BitwiseXor", *key), nodes.constant(KEY_PARITY.astype(np.int32)))
    schedule = (*key, parity)
    a, b = (nodes.add("Add", word, part) for word, part in zip(counter, key, strict=True))
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            a = nodes.add("Add", a, b)
            left = nodes.add("Mul", b, nodes.constant(np.int32(2**rotation)))
            right = _shifted_right(nodes, b, 32 - rotation)
            b = nodes.add("BitwiseXor", nodes.add("BitwiseOr", left, right), a)
        a = nodes.add("Add", a, schedule[(group + 1) % 3])
        b = nodes.add("Add", b, nodes.add("Add", schedule[(group + 2) % 3], nodes.constant(np.int32(group + 1))))
    return a, b

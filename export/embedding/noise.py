"""The portable noise (:mod:`sde_onnx.solvers.noise`) as nodes of a graph.

Words are uint32, as they are in numpy: additions wrap, and rotations are two shifts. The CUDA provider has neither
shifts nor bitwise operators for any type, so that this part runs on the CPU there whatever the type.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from sde_onnx.export.graph.nodes import Nodes
from sde_onnx.solvers.noise import KEY_PARITY, ROTATIONS

__all__ = ["key_words", "normals"]


def key_words(nodes: Nodes, seed: str) -> tuple[str, str]:
    """The two words of each seed, int64 ``[N]`` in two's complement, as uint32 ``[N, 1]``."""
    bits = nodes.cast(nodes.reshape(seed, -1, 1), TensorProto.UINT64)
    low = nodes.add("BitwiseAnd", bits, nodes.constant(np.uint64(0xFFFFFFFF)))
    high = nodes.add("BitShift", bits, nodes.constant(np.uint64(32)), direction="RIGHT")
    return nodes.cast(low, TensorProto.UINT32), nodes.cast(high, TensorProto.UINT32)


def normals(nodes: Nodes, keys: tuple[str, str], draw: str, shape: tuple[int, int, int]) -> str:
    """A noise array of each image: the name of float32 ``[N, C, H, W]``.

    Args:
        nodes: what is added to.
        keys: of :func:`key_words`.
        draw: int64, one value: the number of the array, 0 for the initial latent.
        shape: of an image, ``(C, H, W)``.
    """
    size = math.prod(shape)
    blocks = (size + 1) // 2
    counter = nodes.constant(np.arange(blocks, dtype=np.uint32).reshape(1, -1))
    number = nodes.cast(nodes.reshape(draw, 1, 1), TensorProto.UINT32)
    a, b = _threefry2x32(nodes, keys, (counter, number))
    eight, one = nodes.constant(np.uint32(8)), nodes.constant(np.uint32(1))
    a, b = (nodes.add("BitShift", word, eight, direction="RIGHT") for word in (a, b))
    first = nodes.cast(nodes.add("Add", a, one), TensorProto.FLOAT)
    uniform = nodes.add("Mul", first, nodes.constant(np.float32(2**-24)))
    radius = nodes.add("Sqrt", nodes.add("Mul", nodes.add("Log", uniform), nodes.constant(np.float32(-2))))
    angle = nodes.add("Mul", nodes.cast(b, TensorProto.FLOAT), nodes.constant(np.float32(2 * np.pi * 2**-24)))
    pairs = [nodes.add("Unsqueeze", nodes.add("Mul", radius, nodes.add(part, angle)), nodes.constant(np.array([2])))
             for part in ("Cos", "Sin")]
    z = nodes.reshape(nodes.add("Concat", *pairs, axis=2), -1, 2 * blocks)
    if size % 2:
        z = nodes.add("Slice", z, *(nodes.constant(np.array([value])) for value in (0, size, 1)))
    return nodes.reshape(z, -1, *shape)


def _threefry2x32(nodes: Nodes, key: tuple[str, str], counter: tuple[str, str]) -> tuple[str, str]:
    """See :func:`sde_onnx.solvers.noise.threefry2x32`."""
    parity = nodes.add("BitwiseXor", nodes.add("BitwiseXor", *key), nodes.constant(KEY_PARITY))
    schedule = (*key, parity)
    a, b = (nodes.add("Add", word, part) for word, part in zip(counter, key, strict=True))
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            a = nodes.add("Add", a, b)
            left = nodes.add("BitShift", b, nodes.constant(np.uint32(rotation)), direction="LEFT")
            right = nodes.add("BitShift", b, nodes.constant(np.uint32(32 - rotation)), direction="RIGHT")
            b = nodes.add("BitwiseXor", nodes.add("BitwiseOr", left, right), a)
        a = nodes.add("Add", a, schedule[(group + 1) % 3])
        b = nodes.add("Add", b, schedule[(group + 2) % 3])
        b = nodes.add("Add", b, nodes.constant(np.uint32(group + 1)))
    return a, b

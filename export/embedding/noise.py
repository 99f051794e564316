"""The portable noise (:mod:`sde_onnx.solvers.noise`) as nodes of a graph.

Words of 32 bits are int64 here, for which ONNX Runtime has had every operator for years; of uint32 even ``Add`` is new.
What an operation puts above the 32 bits is cut off before it could come back down. The CUDA provider has no bitwise
operators for any type, so that this part runs on the CPU there.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from sde_onnx.export.graph.nodes import Nodes
from sde_onnx.solvers.noise import KEY_PARITY, ROTATIONS

__all__ = ["key_words", "normals"]


def key_words(nodes: Nodes, seed: str) -> tuple[str, str]:
    """The two words of each seed, int64 ``[N]`` in two's complement, as int64 ``[N, 1]``."""
    bits = nodes.reshape(seed, -1, 1)
    low = _word(nodes, bits)
    above = nodes.add("Div", nodes.add("Sub", bits, low), nodes.constant(np.int64(2**32)))   # exact, and signed
    return low, _word(nodes, above)


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
    counter = nodes.constant(np.arange(blocks, dtype=np.int64).reshape(1, -1))
    number = nodes.cast(nodes.reshape(draw, 1, 1), TensorProto.INT64)
    a, b = (nodes.add("Div", word, nodes.constant(np.int64(2**8)))
            for word in _threefry2x32(nodes, keys, (counter, number)))
    first = nodes.cast(nodes.add("Add", a, nodes.constant(np.int64(1))), TensorProto.FLOAT)
    uniform = nodes.add("Mul", first, nodes.constant(np.float32(2**-24)))
    radius = nodes.add("Sqrt", nodes.add("Mul", nodes.add("Log", uniform), nodes.constant(np.float32(-2))))
    angle = nodes.add("Mul", nodes.cast(b, TensorProto.FLOAT), nodes.constant(np.float32(2 * np.pi * 2**-24)))
    pairs = [nodes.add("Unsqueeze", nodes.add("Mul", radius, nodes.add(part, angle)), nodes.constant(np.array([2])))
             for part in ("Cos", "Sin")]
    z = nodes.reshape(nodes.add("Concat", *pairs, axis=2), -1, 2 * blocks)
    if size % 2:
        z = nodes.add("Slice", z, *(nodes.constant(np.array([value])) for value in (0, size, 1)))
    return nodes.reshape(z, -1, *shape)


def _word(nodes: Nodes, number: str) -> str:
    """The lower 32 bits."""
    return nodes.add("BitwiseAnd", number, nodes.constant(np.int64(2**32 - 1)))


def _threefry2x32(nodes: Nodes, key: tuple[str, str], counter: tuple[str, str]) -> tuple[str, str]:
    """See :func:`sde_onnx.solvers.noise.threefry2x32`.

    The sums in ``a`` stay below 2^38 and are cut once, at the end; ``b`` is cut before each rotation, which multiplies
    it by at most 2^29.
    """
    schedule = (*key, nodes.add("BitwiseXor", nodes.add("BitwiseXor", *key), nodes.constant(np.int64(KEY_PARITY))))
    a, b = (nodes.add("Add", word, part) for word, part in zip(counter, key, strict=True))
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            a = nodes.add("Add", a, b)
            shifted = nodes.add("Mul", _word(nodes, b), nodes.constant(np.int64(2**rotation)))
            rotated = nodes.add("BitwiseOr", shifted, nodes.add("Div", shifted, nodes.constant(np.int64(2**32))))
            b = nodes.add("BitwiseXor", rotated, a)
        a = nodes.add("Add", a, schedule[(group + 1) % 3])
        b = nodes.add("Add", b, nodes.add("Add", schedule[(group + 2) % 3], nodes.constant(np.int64(group + 1))))
    return _word(nodes, a), _word(nodes, b)

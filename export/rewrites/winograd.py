"""Convolutions of 3x3 as Winograd's: fewer multiplications and more passes over memory.

    Y = A' [ (G g G') * (B' d B) ] A        of a tile d of (m + 2)^2 pixels: m^2 results of a kernel g

Summed over channels, the product in the middle is a matrix product for each of the (m + 2)^2 places, of
``(m + 2)^2 / m^2`` multiplications a pixel where the convolution has 9: with m = 4 a fourth, with m = 2 four ninths.
``B' d B`` of all tiles is a convolution with stride m of each channel alone, ``A' [...] A`` of all a transposed one.
``G g G'`` is of weights, which ONNX Runtime computes once, when it loads the file. Which convolutions are worth it was
measured under its CPU provider.

Source: Winograd 1980, "Arithmetic Complexity of Computations"; Lavin and Gray 2016, "Fast Algorithms for Convolutional
Neural Networks", section 4. The matrices are Toom and Cook's, of points -1/c, -c, c and 1/c, which keep rounding small:
Alam et al. 2022, "Winograd Convolution for Deep Neural Networks: Efficient Point Selection".
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
from numpy.typing import NDArray

from sde_onnx.export.graph.nodes import Nodes, attributes_of, replace_nodes, shapes_of

__all__ = ["toom_cook", "use_winograd"]

# The points at which polynomials are multiplied, beside infinity, by m. With 2 and 1/2 in place of 3/2 and 2/3, or with
# 1 and 2, results of m = 4 are at least 1.3 times as far from exact ones: tests/export/rewrites/test_winograd.py.
POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)),
}
LEAST_CHANNELS = 64   # with fewer, the transforms cost more of what the products save
LEAST_PIXELS = {4: 16 * 16, 2: 8 * 8}   # of an image: with fewer, reading the transformed weights takes as long

Matrix = NDArray[np.float64]


def use_winograd(model: onnx.ModelProto) -> None:
    """Writes convolutions of many channels as Winograd's, in place; weights stay as they are stored.

    Args:
        model: in float32. Convolutions of images of unknown height or width stay.
    """
    graph = model.graph
    shapes = shapes_of(onnx.shape_inference.infer_shapes(model).graph)
    shapes |= {item.name: list(item.dims) for item in graph.initializer}
    constant = _constants_of(graph)
    nodes: list[onnx.NodeProto] = []
    writer = Nodes("winograd")
    for node in graph.node:
        m = _tile_of(node, shapes, constant)
        if m is None:
            nodes.append(node)
            continue
        written = len(writer.nodes)
        _write(writer, node, m, shapes[node.input[0]][1:], shapes[node.output[0]][1])
        nodes.extend(writer.nodes[written:])
    graph.initializer.extend(writer.constants.values())
    replace_nodes(graph, nodes)


def _constants_of(graph: onnx.GraphProto) -> set[str]:
    """The values that no input of a graph has a part in."""
    constant = {item.name for item in graph.initializer} | {""}
    for node in graph.node:
        if constant.issuperset(node.input):
            constant |= set(node.output)
    return constant


def _tile_of(node: onnx.NodeProto, shapes: dict[str, list[int]], constant: set[str]) -> int | None:
    """The m for a node, or ``None`` if it stays as it is."""
    if node.op_type != "Conv" or not constant.issuperset(node.input[1:]):
        return None
    attributes = {"group": 1, "strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0], "auto_pad": b"NOTSET",
                  } | attributes_of(node)
    x, y, weight = (shapes.get(name, []) for name in (node.input[0], node.output[0], node.input[1]))
    if (weight[2:], attributes["group"], attributes["strides"], attributes["dilations"], attributes["pads"],
            attributes["auto_pad"]) != ([3, 3], 1, [1, 1], [1, 1], [1, 1, 1, 1], b"NOTSET"):
        return None
    if len(x) != 4 or len(y) != 4 or min(x[1], y[1]) < LEAST_CHANNELS:
        return None
    return next((m for m, pixels in LEAST_PIXELS.items() if x[2] * x[3] >= pixels and x[2] % m == x[3] % m == 0), None)


def _write(writer: Nodes, node: onnx.NodeProto, m: int, of_image: list[int], results: int) -> None:
    """Adds what a convolution of images ``[C, H, W]`` becomes."""
    x, weight, *bias = node.input
    channels, height, width = of_image
    rows, columns = height // m, width // m
    a, g, b = toom_cook(POINTS[m])
    places = (m + 2) ** 2
    # The images are the columns of the products' right sides, whose rows are channels: these go in front.
    pixels = writer.reshape(writer.add("Transpose", x, perm=[1, 0, 2, 3]), -1, 1, height, width)
    transform = writer.constant(np.kron(b.T, b.T).reshape(places, 1, m + 2, m + 2).astype(np.float32))
    tiles = writer.add("Conv", pixels, transform, strides=[m, m], pads=[1, 1, 1, 1], kernel_shape=[m + 2, m + 2])
    tiles = writer.reshape(tiles, channels, -1, places, rows * columns)
    tiles = writer.add("Transpose", tiles, perm=[1, 2, 0, 3])
    # Kernels as an image of 9 channels, a pixel for each: of what ONNX Runtime computes when it loads a file, it keeps
    # every step till the end, so there are few.
    kernels = writer.reshape(writer.add("Transpose", weight, perm=[2, 3, 0, 1]), 1, 9, results, channels)
    kernels = writer.add("Conv", kernels, writer.constant(np.kron(g, g).reshape(places, 9, 1, 1).astype(np.float32)))
    products = writer.add("MatMul", kernels, tiles)
    # All results' rows of tiles below one another: a transposed convolution of one image makes them pixels.
    products = writer.reshape(products, -1, places, results * rows, columns)
    transform = writer.constant(np.kron(a, a).reshape(places, 1, m, m).astype(np.float32))
    y = writer.add("ConvTranspose", products, transform, strides=[m, m], kernel_shape=[m, m])
    has_bias = bool(bias and bias[0])
    y = writer.reshape(y, -1, results, height, width, output=None if has_bias else node.output[0])
    if has_bias:
        writer.add("Add", y, writer.reshape(bias[0], results, 1, 1), output=node.output[0])


def toom_cook(points: tuple[Fraction, ...]) -> tuple[Matrix, Matrix, Matrix]:
    """The matrices A, G and B for m results of a kernel of 3, m + 1 points and infinity.

    ``A' [ (G g) * (B' d) ]`` are the m products of g with the values of d that it slides over.

    Returns:
        A ``[m + 2, m]``, G ``[m + 2, 3]``, B ``[m + 2, m + 2]``, each value rounded once.
    """
    m = len(points) - 1
    zero, one = Fraction(0), Fraction(1)
    a = [[p**power for power in range(m)] for p in points] + [[zero] * (m - 1) + [one]]
    g = [[p**power / _product([p - other for other in points if other != p]) for power in range(3)] for p in points]
    g.append([zero, zero, one])
    b = [[*_polynomial([other for other in points if other != p]), zero] for p in points]
    b.append(_polynomial(list(points)))
    of_a, of_g, of_b = (np.array([[float(value) for value in row] for row in rows]) for rows in (a, g, b))
    return of_a, of_g, of_b.T


def _product(factors: list[Fraction]) -> Fraction:
    result = Fraction(1)
    for factor in factors:
        result *= factor
    return result


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """The coefficients of ``(x - r) (x - s) ...``, the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [root * value for value in coefficients] + [Fraction(0)]
        coefficients = [up - down for up, down in zip(shifted, scaled, strict=True)]
    return coefficients

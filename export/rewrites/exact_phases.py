"""The phases of the noise level's features, kept in float32 where OpenVINO computes in bfloat16.

It rounds every activation then, sigma's logarithm among them, and phases of up to 10^3 radians would be off by whole
turns. It leaves in float32 what reaches an output without a convolution or a matrix product between. So the network
adds zero times its features to its output.
"""

from __future__ import annotations

import numpy as np
import onnx

from sde_onnx.export.graph.nodes import Nodes, replace_nodes, shapes_of

__all__ = ["keep_phases_exact"]

WAVES = ("Sin", "Cos")


def keep_phases_exact(model: onnx.ModelProto) -> None:
    """Lets the sines and cosines of a traced network reach its output ``score`` ``[N, C, H, W]``, in place."""
    graph, nodes = model.graph, Nodes("phases")
    shapes = shapes_of(graph)
    waves = [node.output[0] for node in graph.node
             if node.op_type in WAVES and len(shapes.get(node.output[0], ())) == 2]   # features of each image
    if not waves:
        return
    axis, zero = nodes.constant(np.array([1])), nodes.constant(np.float32(0))
    sums = [nodes.add("ReduceSum", wave, axis) for wave in waves]
    nothing = nodes.reshape(nodes.add("Mul", nodes.add("Sum", *sums), zero), -1, 1, 1, 1)
    inner = "score/without phases"
    for node in graph.node:
        node.output[:] = [inner if name == "score" else name for name in node.output]
    nodes.add("Add", inner, nothing, output="score")
    graph.initializer.extend(nodes.constants.values())
    replace_nodes(graph, [*graph.node, *nodes.nodes])

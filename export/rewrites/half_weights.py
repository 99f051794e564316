"""Weights stored in float16, in a graph that computes in float32: half the size of a file, for a download or a page.

Each weight that is more than a vector becomes float16 values and a ``Cast``, which a runtime computes once, when it
opens the file. Biases, scales and the frequencies of the noise level's features stay as they are, whatever axes of
size 1 they have.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sde_onnx.errors import ConfigError
from sde_onnx.export.rewrites.for_cuda import LARGEST_HALF

__all__ = ["store_in_half"]

FEWEST = 256   # values of a weight that is worth a node


def store_in_half(model: onnx.ModelProto) -> None:
    """Stores the weights of a model in float16, in place.

    Raises:
        ConfigError: a weight that float16 does not hold.
    """
    graph = model.graph
    casts = []
    for initializer in graph.initializer:
        if initializer.data_type != TensorProto.FLOAT or sum(size > 1 for size in initializer.dims) < 2:
            continue
        value, name = numpy_helper.to_array(initializer), initializer.name
        if value.size < FEWEST:
            continue
        if np.abs(value).max() > LARGEST_HALF:
            raise ConfigError(f"{name} holds {np.abs(value).max():.4g}, float16 ends at {LARGEST_HALF:g}: store the "
                              "weights in fp32")
        initializer.CopyFrom(numpy_helper.from_array(value.astype(np.float16), f"{name}/half"))
        casts.append(helper.make_node("Cast", [f"{name}/half"], [name], name=f"{name}/Cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)

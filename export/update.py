"""What follows an evaluation in a loop on a device: the update of :mod:`sde_onnx.tables`, joined to a network's graph.

A file for CUDA has, beside ``x`` and ``sigma`` to ``score``, optional inputs and further outputs, by which a turn's
outputs are the next turn's inputs and nothing visits the host:

    in    history0, history1, noise     float32 [N, C, H, W]
    in    table                         float32 [E, COLUMNS], the rows of a solver
    in    row, bad                      int64 [1]: where it is; the first row that gave NaN or infinity, or -1
    out   x_next, x_mean, history0_next, history1_next, sigma_next [N], row_next, bad_next
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from sde_onnx.export.tracing import trace
from sde_onnx.steps import langevin_step, langevin_step_size
from sde_onnx.tables import COLUMNS, RESULTS, TERMS

__all__ = ["add_update", "remove_update"]

PREFIX = "update/"   # of the update's nodes and values
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
# What an evaluation alone takes for the inputs that only a loop gives; they are broadcast.
DEFAULTS: dict[str, np.ndarray] = {
    "history0": np.zeros((1, 1, 1, 1), np.float32),
    "history1": np.zeros((1, 1, 1, 1), np.float32),
    "noise": np.zeros((1, 1, 1, 1), np.float32),
    "table": np.zeros((1, COLUMNS), np.float32),
    "row": np.zeros(1, np.int64),
    "bad": np.full(1, -1, np.int64),
}
NEXT = ("x_next", "x_mean", "history0_next", "history1_next", "sigma_next", "row_next", "bad_next")
NUMBERS = ("row_next", "bad_next")


class _Update(nn.Module):
    """One turn after its evaluation. The Langevin move is traced from the host's own functions."""

    def forward(
        self, x: Tensor, score: Tensor, sigma: Tensor, history0: Tensor, history1: Tensor, noise: Tensor, table: Tensor,
        row: Tensor, bad: Tensor,
    ) -> tuple[Tensor, ...]:
        entry = table.index_select(0, row)[0]
        weights = entry[:-3].reshape(len(RESULTS), len(TERMS), 1, 1, 1, 1)
        snr, batch_norm, sigma_next = entry[-3], entry[-2], entry[-1]
        own, shared = (langevin_step_size(score, noise, snr=snr, norm=norm) for norm in ("image", "batch"))
        move = langevin_step(0 * x, score, noise, step_size=own + batch_norm * (shared - own))
        # Products and sums, and no matrix product: that would be TensorFloat-32 where the network's are.
        total = weights[:, 0] * x
        for place, term in enumerate((score, history0, history1, noise, move), 1):
            total = total + weights[:, place] * term
        x, x_mean, history0, history1 = total.unbind(0)
        size = x.sum()
        lost = (bad < 0) & torch.isnan(size - size)   # infinity less itself is NaN too
        return x, x_mean, history0, history1, 0 * sigma + sigma_next, row + 1, torch.where(lost, row, bad)


def add_update(model: onnx.ModelProto, shape: tuple[int, int, int]) -> None:
    """Joins the update to a network's graph of images ``shape`` = ``(C, H, W)``, in place."""
    update = _traced(shape)
    graph = model.graph
    own = {item.name for item in update.input}
    for element in (*update.node, *update.initializer):
        element.name = PREFIX + element.name
    for node in update.node:
        for names in (node.input, node.output):
            names[:] = [name if name in own or name in NEXT or not name else PREFIX + name for name in names]
    graph.node.extend(update.node)
    graph.initializer.extend(update.initializer)
    for name, value in DEFAULTS.items():
        # The default's sizes are others than the loop's.
        form = [f"{name}_{axis}" for axis in range(value.ndim)]
        graph.input.append(helper.make_tensor_value_info(name, INT64 if value.dtype == np.int64 else FLOAT, form))
        graph.initializer.append(numpy_helper.from_array(value, name))
    for name in NEXT:
        sizes: list[str | int | None] = ["N"] if name == "sigma_next" else [1] if name in NUMBERS else ["N", *shape]
        graph.output.append(helper.make_tensor_value_info(name, INT64 if name in NUMBERS else FLOAT, sizes))


def remove_update(graph: onnx.GraphProto) -> None:
    """Leaves a graph the network alone, ``x`` and ``sigma`` to ``score``, in place; one without an update as it is."""
    kept = {
        "node": [node for node in graph.node if not node.name.startswith(PREFIX)],
        "initializer": [item for item in graph.initializer
                        if not item.name.startswith(PREFIX) and item.name not in DEFAULTS],
        "input": [item for item in graph.input if item.name not in DEFAULTS],
        "output": [item for item in graph.output if item.name not in NEXT],
    }
    for name, items in kept.items():
        del getattr(graph, name)[:]
        getattr(graph, name).extend(items)


def _traced(shape: tuple[int, int, int]) -> onnx.GraphProto:
    batch, rows = torch.export.Dim("N"), torch.export.Dim("E")
    image = torch.rand(2, *shape)
    images = {name: image.clone() for name in ("x", "score", "history0", "history1", "noise")}
    arguments = images | {"sigma": torch.ones(2), "table": torch.rand(5, COLUMNS), "row": torch.tensor([0]),
                          "bad": torch.tensor([-1])}
    order = ("x", "score", "sigma", "history0", "history1", "noise", "table", "row", "bad")
    shapes = {name: {0: batch} for name in (*images, "sigma")} | {"table": {0: rows}, "row": {}, "bad": {}}
    return trace(_Update(), tuple(arguments[name] for name in order), inputs=order, outputs=NEXT,
                 dynamic_shapes={name: shapes[name] for name in order}).graph

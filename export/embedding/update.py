"""What follows an evaluation in a loop without Python: the update of a plan's rows, as a graph.

One update serves every solver and reads its numbers from a table of :func:`sde_onnx.solvers.plan.rows`, where a file is
for any plan (for CUDA). Where a file holds one solver, columns that never change are constants of its graph.

A file for CUDA has, beside ``x`` and ``sigma`` to ``score``, optional inputs and further outputs, by which a turn's
outputs are the next turn's inputs and nothing visits the host:

    in    memory0, memory1, noise       float32 [N, C, H, W]
    in    table                         float32 [E + 1, COLUMNS], the rows of a plan and one more
    in    row, bad                      int64 [1]: where it is; the first row that gave NaN or infinity, or -1
    out   x_next, x_mean, memory0_next, memory1_next, sigma_next [N], row_next, bad_next
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from sde_onnx.export.embedding.measurement import known_put_right, measured_inputs
from sde_onnx.export.graph.nodes import inlined
from sde_onnx.export.graph.tracing import trace
from sde_onnx.solvers.plan import COLUMNS, MEMORY, RESULTS, TERMS, langevin_scaled, langevin_step_size, sigma_of_each

__all__ = ["SCORE", "SCORE_DOMAIN", "Columns", "add_update", "folded", "remembered", "trace_evaluation"]

SCORE_DOMAIN, SCORE = "sde_onnx", "Score"   # of the node that stands for the network
# Of each of COLUMNS: its number, if it is the same in every row, or else its place in the table.
Columns = tuple[float | int, ...]

# The host's own functions, made of what arrays and tensors share; their types tell of arrays alone.
_step_size: Any = langevin_step_size
_scaled: Any = langevin_scaled
_sigma_of_each: Any = sigma_of_each

PREFIX = "update/"   # of the update's nodes and values
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
# What an evaluation alone takes for the inputs that only a loop gives; they are broadcast.
DEFAULTS: dict[str, np.ndarray] = {
    "memory0": np.zeros((1, 1, 1, 1), np.float32),
    "memory1": np.zeros((1, 1, 1, 1), np.float32),
    "noise": np.zeros((1, 1, 1, 1), np.float32),
    "table": np.zeros((2, len(COLUMNS)), np.float32),
    "row": np.zeros(1, np.int64),
    "bad": np.full(1, -1, np.int64),
}
NEXT = ("x_next", "x_mean", "memory0_next", "memory1_next", "sigma_next", "row_next", "bad_next")
NUMBERS = ("row_next", "bad_next")


def folded(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], Columns]:
    """A table without the columns that never change or are the same as another, and where each column is now."""
    kept: list[NDArray[np.float32]] = []
    columns: list[float | int] = []
    for column in rows.T:
        if (column == column[0]).all():
            columns.append(float(column[0]))
            continue
        place = next((place for place, other in enumerate(kept) if np.array_equal(other, column)), len(kept))
        if place == len(kept):
            kept.append(column)
        columns.append(place)
    return np.stack(kept, axis=1) if kept else np.zeros((len(rows), 0), np.float32), tuple(columns)


def remembered(columns: Columns) -> int:
    """How many arrays of memory anything is ever put into."""
    weights = [columns[place * len(TERMS) : (place + 1) * len(TERMS)] for place in range(len(RESULTS))]
    used = [any(weight != 0.0 or isinstance(weight, int) for weight in row) for row in weights[-MEMORY:]]
    return max((place for place, is_used in enumerate(used, 1) if is_used), default=0)


class _Update(nn.Module):
    """One turn after its evaluation."""

    def __init__(self, columns: Columns) -> None:
        super().__init__()
        self.columns = columns

    def column(self, entry: Tensor, name: str | tuple[str, str]) -> float | Tensor:
        """A number of a row: a constant, or read from its entry in the table."""
        value = self.columns[COLUMNS.index(name)]
        return entry[value] if isinstance(value, int) else value

    def forward(
        self, x: Tensor, score: Tensor, memory0: Tensor, memory1: Tensor, noise: Tensor, entry: Tensor
    ) -> tuple[Tensor, ...]:
        score, noise = self._scaled(score, noise, entry)
        terms = dict(zip(TERMS, (x, score, memory0, memory1, noise), strict=True))
        return tuple(self._sum(result, terms, entry) for result in RESULTS)

    def _scaled(self, score: Tensor, noise: Tensor, entry: Tensor) -> tuple[Tensor, Tensor]:
        """The score and the noise of a Langevin correction; of any other evaluation as they are."""
        snr, batch_norm = (self.column(entry, name) for name in ("snr", "batch_norm"))
        if isinstance(snr, float) and snr == 0:
            return score, noise
        step_size = _step_size(score, noise, snr=snr, norm="image")
        if isinstance(batch_norm, Tensor) or batch_norm:
            shared = _step_size(score, noise, snr=snr, norm="batch")
            step_size = step_size + batch_norm * (shared - step_size)
        factors: tuple[Tensor, Tensor] = _scaled(1, 1, step_size=step_size)
        if isinstance(snr, Tensor):
            factors = torch.where(snr > 0, factors[0], 1.0), torch.where(snr > 0, factors[1], 1.0)
        return factors[0] * score, factors[1] * noise

    def _sum(self, result: str, terms: dict[str, Tensor], entry: Tensor) -> Tensor:
        total: Tensor | None = None
        for term, value in terms.items():
            weight = self.column(entry, (result, term))
            if isinstance(weight, Tensor) or weight not in (0, 1):
                value = weight * value
            elif weight == 0:
                continue
            total = value if total is None else total + value
        return 0 * terms["x"] if total is None else total


class _Evaluation(nn.Module):
    """An evaluation of a solver: a node in the network's place, the measurement if there is one, and the update."""

    table: Tensor

    def __init__(self, table: NDArray[np.float32], columns: Columns) -> None:
        super().__init__()
        self.update = _Update(columns)
        self.memory = remembered(columns)
        self.register_buffer("table", torch.from_numpy(np.ascontiguousarray(table)))

    def forward(
        self, x: Tensor, memory: list[Tensor], row: Tensor, z: Tensor, measured: list[Tensor]
    ) -> tuple[Tensor, ...]:
        entry = self.table.index_select(0, row)[0] if self.table.shape[1] else self.table
        sigma = _sigma_of_each(x, self.update.column(entry, "sigma"))
        score = torch.onnx.ops.symbolic(f"{SCORE_DOMAIN}::{SCORE}", (x, sigma), dtype=x.dtype, shape=x.shape, version=1)
        if measured:
            score = known_put_right(score, x, sigma, *measured)
        unused = [0 * x] * (MEMORY - self.memory)
        x_next, x_mean, *remembers = self.update(x, score, *memory, *unused, z, entry)
        return x_next, *remembers[: self.memory], x_mean


class _DeviceTurn(nn.Module):
    """A turn of the loop on a device, after its evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.update = _Update(tuple(range(len(COLUMNS))))

    def forward(
        self, x: Tensor, score: Tensor, memory0: Tensor, memory1: Tensor, noise: Tensor, sigma: Tensor, table: Tensor,
        row: Tensor, bad: Tensor,
    ) -> tuple[Tensor, ...]:
        x, *others = self.update(x, score, memory0, memory1, noise, table.index_select(0, row)[0])
        following = self.update.column(table.index_select(0, row + 1)[0], "sigma")
        size = x.sum()
        lost = (bad < 0) & torch.isnan(size - size)   # infinity less itself is NaN too
        return x, *others, 0 * sigma + following, row + 1, torch.where(lost, row, bad)


def trace_evaluation(
    table: NDArray[np.float32], columns: Columns, shape: tuple[int, int, int], operator: str | None = None
) -> onnx.GraphProto:
    """An evaluation as a graph.

    Inputs are x, memory0.., row (of the table), z, and what the operator adds; outputs x_next, memory0_next.., x_mean.
    """
    module = _Evaluation(table, columns)
    x = torch.rand(2, *shape)   # the others must not be the same tensor: they would be taken for one input
    names = [f"memory{place}" for place in range(module.memory)]
    measured = list(measured_inputs(operator, shape))
    batch = torch.export.Dim("N")
    return trace(
        module, (x, [x.clone() for _ in names], torch.tensor([0]), x.clone(), [x.clone() for _ in measured]),
        inputs=["x", *names, "row", "z", *measured], outputs=["x_next", *(f"{name}_next" for name in names), "x_mean"],
        dynamic_shapes={"x": {0: batch}, "memory": [{0: batch}] * len(names), "row": {}, "z": {0: batch},
                        "measured": [{0: batch}] * len(measured)},
    ).graph


def add_update(model: onnx.ModelProto, shape: tuple[int, int, int]) -> None:
    """Joins the update of any plan to a network's graph of images ``shape`` = ``(C, H, W)``, in place."""
    update = _traced_turn(shape)
    graph = model.graph
    own = [*(item.name for item in update.input), *NEXT]
    nodes, constants = inlined(update, PREFIX, {name: name for name in own})
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    for name, value in DEFAULTS.items():
        # The default's sizes are others than the loop's.
        form = [f"{name}_{axis}" for axis in range(value.ndim)]
        graph.input.append(helper.make_tensor_value_info(name, INT64 if value.dtype == np.int64 else FLOAT, form))
        graph.initializer.append(numpy_helper.from_array(value, name))
    for name in NEXT:
        sizes: list[str | int | None] = ["N"] if name == "sigma_next" else [1] if name in NUMBERS else ["N", *shape]
        graph.output.append(helper.make_tensor_value_info(name, INT64 if name in NUMBERS else FLOAT, sizes))


def _traced_turn(shape: tuple[int, int, int]) -> onnx.GraphProto:
    batch, entries = torch.export.Dim("N"), torch.export.Dim("E")
    image = torch.rand(2, *shape)
    images = {name: image.clone() for name in ("x", "score", "memory0", "memory1", "noise")}
    arguments = images | {"sigma": torch.ones(2), "table": torch.rand(5, len(COLUMNS)), "row": torch.tensor([0]),
                          "bad": torch.tensor([-1])}
    shapes = {name: {0: batch} for name in (*images, "sigma")} | {"table": {0: entries}, "row": {}, "bad": {}}
    return trace(_DeviceTurn(), tuple(arguments.values()), inputs=list(arguments), outputs=NEXT,
                 dynamic_shapes=shapes).graph

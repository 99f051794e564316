"""One step of a solver as a torch module with its tables, and its trace: a graph with one node in the network's place.

The mathematics are those of :mod:`sde_onnx.samplers` and :mod:`sde_onnx.fixed_steps`, called and not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from sde_onnx.errors import InputError
from sde_onnx.export.tracing import trace
from sde_onnx.fixed_steps import churned_levels, dpm_solver, heun, heun_step, multistep_weights
from sde_onnx.metadata import ModelMetadata
from sde_onnx.samplers import PredictorCorrectorStep, predictor_corrector, told
from sde_onnx.schedule import NoiseLevel
from sde_onnx.solvers import SOLVERS, solver_settings

__all__ = ["SCORE", "SCORE_DOMAIN", "TracedStep", "trace_step", "traced_step"]

SCORE_DOMAIN, SCORE = "sde_onnx", "Score"   # of the node that stands for the network


class TracedStep(nn.Module):
    """One step of a solver with its tables, to be traced.

    Attributes:
        steps: how many there are, if nobody says otherwise.
        draws: noise arrays that a step takes.
        history: denoised images that it remembers.
        first_rows: where in the tables each number of steps begins that may be asked for; only ``steps`` may if empty.
    """

    steps: int
    draws: int
    history: int = 0
    first_rows: Mapping[int, int] = MappingProxyType({})

    def stack(self, others: Iterable[TracedStep]) -> None:
        """Takes the tables of the same step at other numbers of steps in place of its own."""
        held: dict[str, list[Tensor]] = {}
        rows, count = {}, 0
        for other in others:
            rows[other.steps] = count
            count += other.steps
            for name, table in other.named_buffers():
                held.setdefault(name, []).append(table)
        for name, tables in held.items():
            self.register_buffer(name, torch.cat(tables))
        self.first_rows = rows

    def table(self, name: str, values: Iterable[Any]) -> None:
        self.register_buffer(name, torch.from_numpy(np.array(list(values), np.float32)))

    def at(self, name: str, row: Tensor) -> Tensor:
        return self.get_buffer(name).index_select(0, row)[0]


class _PredictorCorrector(TracedStep):
    def __init__(self, advance: PredictorCorrectorStep, steps: int) -> None:
        super().__init__()
        self.advance = advance
        self.steps, self.draws = steps, advance.draws
        levels = list(advance.schedule.levels(steps))
        for name in NoiseLevel._fields:
            self.table(name, (getattr(level, name) for level in levels))

    def forward(self, x: Tensor, history: Sequence[Tensor], row: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        level = NoiseLevel._make(self.at(name, row) for name in NoiseLevel._fields)
        return self.advance(_score, iter(z.unbind(0)).__next__, x, level)


class _Multistep(TracedStep):
    def __init__(self, sigmas: Sequence[float], *, order: int, eta: float) -> None:
        super().__init__()
        self.steps, self.draws, self.history = len(sigmas) - 1, int(eta > 0), order - 1
        self.table("sigma", sigmas[:-1])
        self.table("weights", multistep_weights(sigmas, order=order, eta=eta))

    def forward(self, x: Tensor, history: Sequence[Tensor], row: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        sigma, weights = self.at("sigma", row), self.at("weights", row)
        denoised = x + sigma**2 * _score(x, told(x, sigma))
        known = [denoised, *history]
        x = weights[0] * x
        for place, value in enumerate(known, 1):
            x = x + weights[place] * value
        if self.draws:
            x = x + weights[len(known) + 1] * z[0]
        return x, *known[:-1], denoised


class _Heun(TracedStep):
    def __init__(self, sigmas: Sequence[float], *, churn: float, **range_and_noise: float) -> None:
        super().__init__()
        levels = churned_levels(sigmas, churn, **range_and_noise)
        self.steps = len(levels)
        self.table("sigma", (sigma for sigma, _, _ in levels))
        self.table("deviation", (deviation for _, deviation, _ in levels))
        self.table("sigma_next", (sigma_next for _, _, sigma_next in levels))
        # The last step needs no second evaluation; it makes one somewhere and does not use it.
        self.table("second", (sigma_next or sigma for sigma, _, sigma_next in levels))
        churned = [index for index, (_, deviation, _) in enumerate(levels) if deviation > 0]
        self.draws = int(bool(churned))
        if churned not in ([], list(range(self.steps))):
            raise InputError("with churn in some steps only heun cannot be embedded: leave churn_min and churn_max out")

    def forward(self, x: Tensor, history: Sequence[Tensor], row: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        if self.draws:
            x = x + self.at("deviation", row) * z[0]
        moved, denoised = heun_step(_score, x, self.at("sigma", row), self.at("second", row))
        return torch.where(self.at("sigma_next", row) > 0, moved, denoised), denoised


def traced_step(
    metadata: ModelMetadata, solver: str, steps: int | None, options: Mapping[str, Any], max_steps: int | None = None
) -> TracedStep:
    """The step of a solver.

    Args:
        metadata: of the model.
        solver, steps, options: as for :func:`sde_onnx.sample`.
        max_steps: hold tables of every number of steps up to this one that the solver takes.

    Raises:
        InputError: a solver or an option that cannot be embedded, or ``max_steps`` below ``steps``.
    """
    step = _fixed_step(metadata, solver, steps, options)
    if max_steps is not None:
        if max_steps < step.steps:
            raise InputError(f"max_steps is {max_steps}, expected at least the number of steps, {step.steps}")
        least = next(count for count in range(1, step.steps + 1) if _takes(metadata, solver, count, options))
        step.stack(_fixed_step(metadata, solver, count, options) for count in range(least, max_steps + 1))
    return step


def _takes(metadata: ModelMetadata, solver: str, steps: int, options: Mapping[str, Any]) -> bool:
    try:
        _fixed_step(metadata, solver, steps, options)
    except InputError:
        return False
    return True


def _fixed_step(metadata: ModelMetadata, solver: str, steps: int | None, options: Mapping[str, Any]) -> TracedStep:
    settings = solver_settings(solver, metadata.schedule, steps, model_options=metadata.solver_options, options=options)
    start, sigmas, chosen = settings.start, settings.sigmas, settings.options
    if start is predictor_corrector and chosen["langevin_norm"] == "image":
        return _PredictorCorrector(PredictorCorrectorStep(metadata.schedule, **chosen), settings.count)
    if start in EMBEDDED and not settings.measure_noise:
        # Refuses what the host's loop would: nothing is computed before the first step is asked for.
        start(_score, iter(()).__next__, sigmas, **chosen)
        return EMBEDDED[start](sigmas, **chosen)
    able = [name for name, known in SOLVERS.items() if known.start in (predictor_corrector, *EMBEDDED)]
    raise InputError(f"{solver} with these options cannot be embedded; what can is {', '.join(able)}, without "
                     "langevin_norm 'batch' and measure_noise")


EMBEDDED: dict[Any, Callable[..., TracedStep]] = {dpm_solver: _Multistep, heun: _Heun}


def _score(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(f"{SCORE_DOMAIN}::{SCORE}", (x, sigma), dtype=x.dtype, shape=x.shape, version=1)


def trace_step(step: TracedStep, shape: tuple[int, int, int]) -> onnx.GraphProto:
    """The step as a graph: inputs x, history0.., row (of the tables), z; outputs x_next, history0_next.., x_mean."""
    x = torch.rand(2, *shape)   # the history must not be the same tensors: they would be taken for one input
    names = [f"history{place}" for place in range(step.history)]
    batch = torch.export.Dim("N")
    program = trace(
        step,
        (x, [x.clone() for _ in names], torch.tensor([0]), torch.rand(max(step.draws, 1), 2, *shape)),
        inputs=["x", *names, "row", "z"],
        outputs=["x_next", *(f"{name}_next" for name in names), "x_mean"],
        dynamic_shapes={"x": {0: batch}, "history": [{0: batch}] * step.history, "row": {}, "z": {1: batch}},
    )
    return program.graph

"""A solver as a table: what every evaluation of the network does to x, as numbers.

All solvers on given noise levels are linear between two evaluations. With x, the score there, two arrays that are
remembered, the next noise array z and the Langevin move (:func:`sde_onnx.steps.langevin_step` from 0, the one thing
that depends on norms),

    (x, x_mean, history0, history1)  <-  weights [4, 6] (x, score, history0, history1, z, move)

so that a loop on a device needs one graph for all of them and a row of numbers at each turn. The coefficients are those
of :mod:`sde_onnx.samplers` and :mod:`sde_onnx.fixed_steps`, taken from their functions.

Solvers that look at x before they choose a step (adaptive ones, a measured noise level) have no table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_onnx.fixed_steps import churned_levels, dpm_solver, multistep_weights
from sde_onnx.samplers import PREDICTORS, PredictorCorrectorStep, predictor_corrector
from sde_onnx.schedule import VeSchedule
from sde_onnx.solvers import solver_settings
from sde_onnx.steps import annealed_step_size

__all__ = ["COLUMNS", "RESULTS", "TERMS", "SolverTable", "solver_table"]

TERMS = ("x", "score", "history0", "history1", "noise", "move")
RESULTS = ("x", "x_mean", "history0", "history1")
COLUMNS = len(RESULTS) * len(TERMS) + 3   # of a row on the device: the weights, snr, batch_norm, the next sigma


@dataclass(frozen=True)
class Evaluation:
    """One turn: the network at ``sigma``, then the update."""

    sigma: float                               # what the network is told
    weights: Mapping[str, Mapping[str, float]]   # of TERMS for each of RESULTS; what is left out is 0
    draws: bool = False                        # takes a noise array
    snr: float = 0.0                           # of the Langevin move
    batch_norm: bool = False                   # its norms are means over the batch
    ends: int | None = None                    # the number of the step that ends here, from 0


@dataclass(frozen=True)
class SolverTable:
    """All turns of a solver.

    Attributes:
        start: the initial x is the sum of noise arrays times these deviations.
        evaluations: in order.
        levels: the noise level that each step starts from.
    """

    start: Sequence[float]
    evaluations: Sequence[Evaluation]
    levels: Sequence[float]

    def rows(self) -> NDArray[np.float32]:
        """What the device reads, ``[E, COLUMNS]``."""
        rows = np.zeros((len(self.evaluations), COLUMNS), np.float32)
        for row, evaluation in zip(rows, self.evaluations, strict=True):
            weights = row[:-3].reshape(len(RESULTS), len(TERMS))
            for result, terms in evaluation.weights.items():
                for term, weight in terms.items():
                    weights[RESULTS.index(result), TERMS.index(term)] = weight
            row[-3], row[-2] = evaluation.snr, evaluation.batch_norm
        rows[:-1, -1] = [evaluation.sigma for evaluation in self.evaluations[1:]]
        rows[-1, -1] = self.evaluations[-1].sigma
        return rows


def solver_table(
    name: str, schedule: VeSchedule, steps: int | None, *, model_options: Mapping[str, Any], options: Mapping[str, Any]
) -> SolverTable | None:
    """Returns the table of a solver, or ``None`` if it has none. Arguments and errors: :func:`solvers.start_solver`."""
    settings = solver_settings(name, schedule, steps, model_options=model_options, options=options)
    start, sigmas, chosen = settings.start, settings.sigmas, settings.options
    if start is predictor_corrector:
        return _predictor_corrector(PredictorCorrectorStep(schedule, **chosen), settings.count)
    if sigmas is None or settings.measure_noise:
        return None
    start(_nothing, _nothing, sigmas, **chosen)   # refuses bad arguments; computes nothing before its first step
    return _multistep(sigmas, **chosen) if start is dpm_solver else _heun(sigmas, **chosen)


def _nothing(*_: Any) -> None:
    raise AssertionError("nothing is computed before the first step")


def _predictor_corrector(step: PredictorCorrectorStep, count: int) -> SolverTable:
    """See :class:`sde_onnx.samplers.PredictorCorrectorStep`."""
    levels = list(step.schedule.levels(count))
    predict = PREDICTORS[step.predictor]
    turns = []
    for index, level in enumerate(levels):
        sigma = float(level.sigma_cond)
        if step.corrector == "ald":
            size = annealed_step_size(sigma, snr=step.snr)
            moved = {"x": 1.0, "score": size, "noise": math.sqrt(2 * size)}
        else:
            moved = {"x": 1.0, "move": 1.0}
        for correction in range(step.corrections):
            last = predict is None and correction == step.corrections - 1
            turns.append(Evaluation(sigma, {"x": moved, "x_mean": moved}, draws=True, snr=step.snr,
                                    batch_norm=step.langevin_norm == "batch", ends=index if last else None))
        if predict is not None:
            variance, std = (float(value) for value in predict(level, step.schedule))
            if step.probability_flow:
                variance, std = variance / 2, 0.0
            mean = {"x": 1.0, "score": variance}
            turns.append(Evaluation(sigma, {"x": mean | {"noise": std}, "x_mean": mean},
                                    draws=not step.probability_flow, ends=index))
    return SolverTable([step.schedule.sigma_max], turns, [float(level.sigma) for level in levels])


def _multistep(sigmas: Sequence[float], *, order: int, eta: float) -> SolverTable:
    """See :func:`sde_onnx.fixed_steps.dpm_solver`."""
    turns = []
    for index, row in enumerate(multistep_weights(sigmas, order=order, eta=eta)):
        sigma = sigmas[index]
        own, newest, *older, noise = row.tolist()
        denoised = {"x": 1.0, "score": sigma**2}
        x = {"x": own + newest, "score": newest * sigma**2, "noise": noise}
        x |= {f"history{place}": weight for place, weight in enumerate(older)}
        remembered = {"history0": denoised, "history1": {"history0": 1.0}}
        # The host's loop draws no noise for the last step, nor does this one.
        turns.append(Evaluation(sigma, {"x": x, "x_mean": denoised} | remembered,
                                draws=eta > 0 and sigmas[index + 1] > 0, ends=index))
    return SolverTable([sigmas[0]], turns, sigmas[:-1])


def _heun(sigmas: Sequence[float], *, churn: float, **range_and_noise: float) -> SolverTable:
    """See :func:`sde_onnx.fixed_steps.heun`.

    After a step x holds already the noise that the next one begins with.

    The second slope is taken at the guess ``x + d slope``, which is what x is then: with x before as history0,
    ``x + d (slope + second) / 2 = (history0 + guess) / 2 + d second / 2``.
    """
    levels = churned_levels(sigmas, churn, **range_and_noise)
    turns = []
    for index, (sigma, _, sigma_next) in enumerate(levels):
        denoised = {"x": 1.0, "score": sigma**2}
        if sigma_next == 0:
            turns.append(Evaluation(sigma, {"x": denoised, "x_mean": denoised}, ends=index))
            continue
        length, raised = sigma_next - sigma, levels[index + 1][1]
        guess = {"x": 1.0, "score": -sigma * length}
        turns.append(Evaluation(sigma, {"x": guess, "history0": {"x": 1.0}, "history1": denoised}))
        x = {"x": 0.5, "history0": 0.5, "score": -sigma_next * length / 2, "noise": raised}
        turns.append(Evaluation(sigma_next, {"x": x, "x_mean": {"history1": 1.0}}, draws=raised > 0, ends=index))
    start = [sigmas[0], levels[0][1]] if levels[0][1] > 0 else [sigmas[0]]
    return SolverTable(start, turns, [sigma for sigma, _, _ in levels])

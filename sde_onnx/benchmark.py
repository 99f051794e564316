"""How fast a model file is here: an evaluation, an image, and what the sampling loop adds to the network."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sde_onnx.checks import checked_model, checked_number
from sde_onnx.errors import InputError
from sde_onnx.generate.sample import choose_batch_size
from sde_onnx.runtime.score_model import ScoreModel
from sde_onnx.solvers.catalogue import resolve
from sde_onnx.solvers.noise import PortableNoise

__all__ = ["Benchmark", "benchmark"]

Float32Array = NDArray[np.float32]
LEAST_STEPS = 5
MOST_SECONDS = 86_400


@dataclass(frozen=True)
class Benchmark:
    """What :func:`benchmark` measured, in seconds."""

    batch_size: int
    evaluations: list[float]     # each evaluation of the network, for the whole batch
    loop: list[float]            # each step's time outside of its evaluations
    steps: int                   # noise levels that the model asks for
    nfe: int                     # evaluations an image at that number of steps
    first_evaluation: float      # before the measurement: whatever is compiled or allocated once

    @property
    def evaluation(self) -> float:
        """Median seconds of an evaluation."""
        return statistics.median(self.evaluations)

    @property
    def loop_share(self) -> float:
        """The part of a step that is not the network, 0 to 1, by the medians."""
        outside = statistics.median(self.loop)
        return outside / (outside + self.evaluation * self.nfe / self.steps)

    @property
    def images_per_second(self) -> float:
        """Images a second with as many steps as the model asks for."""
        return self.batch_size / (self.nfe * self.evaluation / (1 - self.loop_share))


def benchmark(model: ScoreModel, *, batch_size: int | None = None, seconds: float = 10.0) -> Benchmark:
    """Times predictor-corrector steps as sampling takes them, from the largest sigma on.

    Args:
        model: a loaded model file.
        batch_size: images at a time, >= 1; as for sampling if not given, or if they do not fit into memory.
        seconds: how long to measure, > 0 and at most a day. At least five steps are measured, and at most as many as
            the model asks for, or six.

    Raises:
        InputError: an argument out of its range.
    """
    checked_model(model)
    metadata = model.metadata
    size = choose_batch_size(model, sys.maxsize, batch_size)
    if not 0 < checked_number("seconds", seconds) <= MOST_SECONDS:
        raise InputError(f"seconds is {seconds:g}, expected more than 0 and at most {MOST_SECONDS}")
    evaluations: list[float] = []

    def timed(x: Float32Array, sigma: Float32Array) -> Float32Array:
        start = time.perf_counter()
        score: Float32Array = model(x, sigma, label)
        evaluations.append(time.perf_counter() - start)
        return score

    label = 0 if metadata.labels and not metadata.label_optional else None
    reference = resolve(metadata, quality="reference")
    steps, nfe = reference.steps or 0, reference.evaluations or 0   # of this solver both are known
    timed_request = resolve(metadata, solver=reference.solver, steps=max(steps, 1 + LEAST_STEPS))
    run = timed_request.run(timed, PortableNoise(range(size), metadata.image_shape))
    next(run)
    first, evaluations[:] = evaluations[0], []
    loop: list[float] = []
    nfe_a_step = nfe // steps
    begin = start = time.perf_counter()
    for _ in run:
        now = time.perf_counter()
        loop.append(now - start - sum(evaluations[-nfe_a_step:]))
        start = now
        if now - begin > seconds and len(loop) >= LEAST_STEPS:
            break
    return Benchmark(size, evaluations, loop, steps, nfe, first)

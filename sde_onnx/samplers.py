"""Samplers: generators that drive the steps with a score function and yield after every one.

A score function is any callable ``(x [N, C, H, W], sigma [N]) -> score [N, C, H, W]``: an ONNX session, a torch module
or a closed form. Progress bars, animations and early stops belong to whoever iterates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sde_onnx.errors import InputError, NonFiniteError
from sde_onnx.noise import NoiseSource
from sde_onnx.schedule import NoiseLevel, VeSchedule
from sde_onnx.steps import (
    LangevinNorm,
    annealed_step_size,
    check_corrector,
    langevin_step,
    langevin_step_size,
    prediction_step,
)

__all__ = ["CORRECTORS", "PREDICTORS", "PredictorCorrectorStep", "ScoreFunction", "Step", "check_finite", "non_finite",
           "predictor_corrector", "told"]

Array = Any
ScoreFunction = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Step:
    """The state after one step."""

    index: int      # 0 is the first step
    sigma: float    # noise std that the step started from
    x: Array        # [N, C, H, W], at the next noise level
    x_mean: Array   # the same before the predictor's noise: the result, after the last step
    nfe: int        # network evaluations so far, an image


def _reverse_diffusion(level: NoiseLevel, schedule: VeSchedule) -> tuple[Any, Any]:
    variance = level.sigma**2 - level.sigma_next**2
    return variance, variance**0.5


def _euler_maruyama(level: NoiseLevel, schedule: VeSchedule) -> tuple[Any, Any]:
    variance = level.sigma_cond**2 * (2 * math.log(schedule.sigma_max / schedule.sigma_min)) * level.dt
    return variance, variance**0.5


def _ancestral(level: NoiseLevel, schedule: VeSchedule) -> tuple[Any, Any]:
    variance = level.sigma**2 - level.sigma_next**2
    return variance, variance**0.5 * level.sigma_next / level.sigma


# What a step multiplies the score and the noise by: see sde_onnx.steps.
PREDICTORS: dict[str, Callable[[NoiseLevel, VeSchedule], tuple[Any, Any]] | None] = {
    "reverse_diffusion": _reverse_diffusion,
    "euler_maruyama": _euler_maruyama,
    "ancestral": _ancestral,
    "none": None,
}
CORRECTORS = ("langevin", "ald", "none")


@dataclass(frozen=True)
class PredictorCorrectorStep:
    """One step of predictor-corrector sampling: corrections at a noise level, then a prediction of the next.

    A pure function of arrays, which numpy, torch and traced graphs run alike. The corrector runs before the predictor,
    as in both reference implementations; the paper's algorithm 1 writes them the other way round.

    Args:
        schedule: the model's noise levels.
        snr: the corrector's signal-to-noise ratio, > 0.
        predictor: a key of PREDICTORS; ``"none"`` leaves corrections alone (annealed Langevin dynamics).
        corrector: ``"langevin"`` (step sizes from norms), ``"ald"`` (from sigma) or ``"none"``.
        n_corrector: corrections a step, >= 0.
        probability_flow: predict along the probability-flow ODE: half the drift and no noise, nor is any drawn for it.
        langevin_norm: see :func:`sde_onnx.steps.langevin_step_size`.

    Raises:
        InputError: an argument out of its range, or neither a predictor nor a corrector.

    Source: Song et al. 2021, algorithms 1, 2 and 4, section 4.3 and appendix F (ancestral sampling, equation 47).
    """

    schedule: VeSchedule
    snr: float
    predictor: str = "reverse_diffusion"
    corrector: str = "langevin"
    n_corrector: int = 1
    probability_flow: bool = False
    langevin_norm: LangevinNorm = "image"

    def __post_init__(self) -> None:
        check_corrector(self.snr, self.n_corrector)
        for name, value, known in (("predictor", self.predictor, PREDICTORS), ("corrector", self.corrector, CORRECTORS),
                                   ("langevin_norm", self.langevin_norm, ("image", "batch"))):
            if value not in known:
                raise InputError(f"{name} is {value!r}, expected one of: {', '.join(known)}")
        if self.evaluations == 0:
            raise InputError("with neither a predictor nor a corrector nothing happens: choose one of them")

    @property
    def corrections(self) -> int:
        """Corrections a step."""
        return 0 if self.corrector == "none" else self.n_corrector

    @property
    def evaluations(self) -> int:
        """Scores asked for a step."""
        return self.corrections + (PREDICTORS[self.predictor] is not None)

    @property
    def draws(self) -> int:
        """Noise arrays drawn a step."""
        return self.corrections + (PREDICTORS[self.predictor] is not None and not self.probability_flow)

    def __call__(self, score: ScoreFunction, noise: NoiseSource, x: Array, level: NoiseLevel) -> tuple[Array, Array]:
        """Returns ``x`` at the next noise level, and ``x_mean``, the same before the predictor's noise."""
        sigma = told(x, level.sigma_cond)
        for _ in range(self.corrections):
            gradient, z = score(x, sigma), noise()
            if self.corrector == "ald":
                step_size = annealed_step_size(level.sigma_cond, snr=self.snr)
            else:
                step_size = langevin_step_size(gradient, z, snr=self.snr, norm=self.langevin_norm)
            x = langevin_step(x, gradient, z, step_size=step_size)
        predict = PREDICTORS[self.predictor]
        if predict is None:
            return x, x
        variance, std = predict(level, self.schedule)
        if self.probability_flow:
            return prediction_step(x, score(x, sigma), None, variance=variance / 2, std=0)
        return prediction_step(x, score(x, sigma), noise(), variance=variance, std=std)


def predictor_corrector(
    score: ScoreFunction, noise: NoiseSource, schedule: VeSchedule, steps: int, *, snr: float, **options: Any
) -> Iterator[Step]:
    """Yields the steps of predictor-corrector sampling.

    Noise is drawn in the references' order: the initial latent, then at each step one array for each correction and
    one for the prediction, the last of which moves only ``x``, not the result ``x_mean``.

    Args:
        score: the score function.
        noise: returns the next standard normal array ``[N, C, H, W]`` at each call.
        schedule: the model's noise levels.
        steps: N, >= 1.
        snr, options: of :class:`PredictorCorrectorStep`.

    Raises:
        InputError: an argument out of its range, or neither a predictor nor a corrector.
        NonFiniteError: x stopped being finite; names the step and its sigma.

    Source: Song et al. 2021, algorithms 1, 2 and 4.
    """
    levels = list(schedule.levels(steps))
    advance = PredictorCorrectorStep(schedule, snr, **options)

    def run() -> Iterator[Step]:
        x = noise() * schedule.sigma_max
        for index, level in enumerate(levels):
            with np.errstate(all="ignore"):   # what numpy would warn of ends the run below, with the step named
                x, x_mean = advance(score, noise, x, level)
            check_finite(x, index, steps, float(level.sigma))
            yield Step(index, float(level.sigma), x, x_mean, (index + 1) * advance.evaluations)

    return run()


def told(x: Array, sigma: Any) -> Array:
    """What the network is told: a scalar sigma for each image, ``[N]``, in x's own array type."""
    return 0 * x[:, 0, 0, 0] + sigma


def check_finite(x: Array, index: int, steps: int, sigma: float) -> None:
    """Stops a run with NaN or infinity in ``x`` after step ``index`` (from 0) of ``steps``, which began at ``sigma``.

    Raises:
        NonFiniteError: names the step and its sigma.
    """
    # Any NaN or infinity reaches the sum, which is one pass and no temporary array.
    if not math.isfinite(float(x.sum())):
        raise non_finite(index, steps, sigma)


def non_finite(index: int, steps: int, sigma: float) -> NonFiniteError:
    """The error of NaN or infinity after step ``index`` (from 0) of ``steps``, which began at ``sigma``."""
    return NonFiniteError(
        f"NaN or infinity at step {index + 1} of {steps} (sigma {sigma:.4g}): the model's weights or its sigma "
        "range are damaged, or snr is far too large"
    )

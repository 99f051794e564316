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
from sde_onnx.steps import LangevinNorm, check_corrector, langevin_step, reverse_diffusion_step

__all__ = ["ScoreFunction", "Step", "predictor_corrector"]

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


def predictor_corrector(
    score: ScoreFunction,
    noise: NoiseSource,
    schedule: VeSchedule,
    steps: int,
    *,
    snr: float,
    n_corrector: int = 1,
    langevin_norm: LangevinNorm = "image",
) -> Iterator[Step]:
    """Yields the steps of predictor-corrector sampling: Langevin corrections, then a reverse diffusion prediction.

    Noise is drawn in the references' order: the initial latent, then at each step one array for each correction and
    one for the prediction, the last of which moves only ``x``, not the result ``x_mean``. The corrector runs before
    the predictor, as in both reference implementations; the paper's algorithm 1 writes them the other way round.

    Args:
        score: the score function.
        noise: returns the next standard normal array ``[N, C, H, W]`` at each call.
        schedule: the model's noise levels.
        steps: N, >= 1.
        snr: the corrector's signal-to-noise ratio, > 0.
        n_corrector: corrections a step, >= 0.
        langevin_norm: see :func:`sde_onnx.steps.langevin_step`.

    Raises:
        InputError: an argument out of its range.
        NonFiniteError: x stopped being finite; names the step and its sigma.

    Source: Song et al. 2021, algorithms 1, 2 and 4.
    """
    levels = list(schedule.levels(steps))
    check_corrector(snr, n_corrector)
    if langevin_norm not in ("image", "batch"):
        raise InputError(f"langevin_norm is {langevin_norm!r}, expected 'image' or 'batch'")

    @np.errstate(all="ignore")   # what numpy would warn of ends the run below, with the step named
    def advance(x: Array, level: NoiseLevel) -> tuple[Array, Array]:
        # A sigma for each image, in x's own array type.
        told = 0 * x[:, 0, 0, 0] + level.sigma_cond
        for _ in range(n_corrector):
            x = langevin_step(x, score(x, told), noise(), snr=snr, norm=langevin_norm)
        return reverse_diffusion_step(x, score(x, told), noise(), sigma=level.sigma, sigma_next=level.sigma_next)

    def run() -> Iterator[Step]:
        x = noise() * schedule.sigma_max
        for index, level in enumerate(levels):
            x, x_mean = advance(x, level)
            # Any NaN or infinity reaches the sum, which is one pass and no temporary array.
            if not math.isfinite(float(x.sum())):
                raise NonFiniteError(
                    f"NaN or infinity at step {index + 1} of {steps} (sigma {level.sigma:.4g}): the model's weights or "
                    "its sigma range are damaged, or snr is far too large"
                )
            yield Step(index, float(level.sigma), x, x_mean, (index + 1) * (n_corrector + 1))

    return run()

"""The paper's sampler: Langevin corrections at a noise level, then a prediction of the next.

    correction              x <- x + eps g + sqrt(2 eps) z
    prediction              x_mean = x + v s,             x <- x_mean + d z

    eps, annealed by norms  2 (snr |z| / |g|)^2           eps, annealed by sigma   2 (snr sigma)^2

    reverse diffusion       v = sigma^2 - sigma_next^2    d^2 = v
    Euler-Maruyama          v = 2 sigma^2 ln(sigma_max / sigma_min) / N     d^2 = v
    ancestral               v = sigma^2 - sigma_next^2    d^2 = v sigma_next^2 / sigma^2
    probability flow        v of any of them, halved      d = 0

The corrector runs before the predictor, as in both reference implementations; the paper's algorithm 1 writes them the
other way round.

Source: Song et al. 2021, algorithms 1, 2 and 4 (appendix G), equations 30, 46 and 47, appendix F; the second eps is
that of Song & Ermon 2019, algorithm 1, in the original implementation's scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from sde_onnx.errors import InputError
from sde_onnx.solvers.plan import Evaluation, Langevin, LangevinNorm, Memory, Plan, Update, Updated, langevin_scaled
from sde_onnx.solvers.protocols import Array, Number
from sde_onnx.solvers.schedule import NoiseLevel, VeSchedule

__all__ = ["PREDICTORS", "annealed_correction", "correction", "plan", "prediction"]


def correction(x: Array, score: Array, z: Array | None, memory: Memory) -> Updated:
    """A Langevin correction of x, whose score and noise are scaled by its step size.

    Source: Song et al. 2021, algorithm 4.
    """
    assert z is not None   # a correction always draws
    corrected = x + score + z
    return corrected, corrected, ()


def annealed_correction(x: Array, score: Array, z: Array, memory: Memory, *, step_size: Number) -> Updated:
    """A Langevin correction whose step size is known beforehand.

    Source: Song & Ermon 2019, algorithm 1.
    """
    return correction(x, *langevin_scaled(score, z, step_size=step_size), memory)


def prediction(x: Array, score: Array, z: Array | None, memory: Memory, *, variance: Number, std: Number) -> Updated:
    """A predictor's step to the next noise level; ``x_mean`` is x before its noise is added.

    Args:
        x, score, z, memory: see :data:`sde_onnx.solvers.plan.Update`; nothing is remembered.
        variance: what the score is multiplied by.
        std: what the noise is multiplied by.

    Source: Song et al. 2021, equation 46 and algorithm 2.
    """
    x_mean = x + variance * score
    return (x_mean if z is None else x_mean + std * z), x_mean, ()


def _reverse_diffusion(level: NoiseLevel, schedule: VeSchedule) -> tuple[Number, Number]:
    variance = level.sigma**2 - level.sigma_next**2
    return variance, variance**0.5


def _euler_maruyama(level: NoiseLevel, schedule: VeSchedule) -> tuple[Number, Number]:
    variance = level.sigma_cond**2 * (2 * math.log(schedule.sigma_max / schedule.sigma_min)) * level.dt
    return variance, variance**0.5


def _ancestral(level: NoiseLevel, schedule: VeSchedule) -> tuple[Number, Number]:
    variance = level.sigma**2 - level.sigma_next**2
    return variance, variance**0.5 * level.sigma_next / level.sigma


# What a prediction multiplies score and noise by.
PREDICTORS: dict[str, Callable[[NoiseLevel, VeSchedule], tuple[Number, Number]] | None] = {
    "reverse_diffusion": _reverse_diffusion,
    "euler_maruyama": _euler_maruyama,
    "ancestral": _ancestral,
    "none": None,
}


def plan(
    schedule: VeSchedule,
    steps: int,
    *,
    snr: float,
    n_corrector: int = 1,
    predictor: str = "reverse_diffusion",
    corrector: str = "langevin",
    probability_flow: bool = False,
    langevin_norm: LangevinNorm = "image",
) -> Plan:
    """The plan of predictor-corrector sampling.

    Noise is drawn in the references' order: the initial latent, then at each step one array for each correction and
    one for the prediction, the last of which moves only ``x``, not the result ``x_mean``.

    Args:
        schedule: the model's noise levels.
        steps: N, >= 1.
        snr, n_corrector, corrector, langevin_norm: see :data:`sde_onnx.solvers.options.OPTIONS`.
        predictor: a key of PREDICTORS; ``"none"`` leaves corrections alone (annealed Langevin dynamics).
        probability_flow: half the drift and no noise, nor is any drawn for it.

    Raises:
        InputError: neither a predictor nor a corrector.

    Source: Song et al. 2021, algorithms 1, 2 and 4, section 4.3 and appendix F (ancestral sampling, equation 47).
    """
    predict, corrections = PREDICTORS[predictor], 0 if corrector == "none" else n_corrector
    if predict is None and corrections == 0:
        raise InputError("with neither a predictor nor a corrector nothing happens: choose one of them")
    langevin = Langevin(snr, langevin_norm) if corrector == "langevin" else None
    levels = list(schedule.levels(steps))
    evaluations = []
    for index, level in enumerate(levels):
        correct: Update = correction
        if langevin is None:
            correct = partial(annealed_correction, step_size=2 * (snr * level.sigma_cond) ** 2)
        for number in range(1, corrections + 1):
            ends = index if predict is None and number == corrections else None
            evaluations.append(Evaluation(level.sigma_cond, correct, draws=True, langevin=langevin, ends=ends))
        if predict is not None:
            variance, std = predict(level, schedule)
            if probability_flow:
                variance, std = variance / 2, 0.0
            evaluations.append(Evaluation(level.sigma_cond, partial(prediction, variance=variance, std=std),
                                          draws=not probability_flow, ends=index))
    return Plan((schedule.sigma_max,), tuple(evaluations), tuple(float(level.sigma) for level in levels))

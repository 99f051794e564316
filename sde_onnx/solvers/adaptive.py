"""Solvers that choose their steps themselves, as long as an estimate of each one's error stays within a tolerance.

They work in the schedule's time, in which sigma is ``sigma_min (sigma_max / sigma_min)^t`` and t falls from 1, and end
with the denoised image as ``x_mean``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from sde_onnx.errors import NonFiniteError
from sde_onnx.solvers.plan import Step, check_finite, denoised, sigma_of_each
from sde_onnx.solvers.protocols import Array, NoiseSource, Score
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["adaptive_sde", "rk45"]

FIRST_STEP, SAFETY, EXPONENT = 0.01, 0.9, 0.9   # of adaptive_sde; the paper's h_init, theta and r
SHORTEST_STEP = 1e-7                            # of time; below, an error estimate asks for what no step can give


def adaptive_sde(
    score: Score, noise: NoiseSource, schedule: VeSchedule, *, rtol: float = 0.02, atol: float = 1 / 256
) -> Iterator[Step]:
    """The reverse diffusion by the stochastic improved Euler method, each image in steps of its own length.

    A step is made twice, by Euler-Maruyama and by the mean of that with a second one from where it led; their
    difference, in the measure of the tolerances, decides whether the second is kept and how long the next step is. Two
    evaluations a step. The batch goes on until its last image is done; those that are wait.

    Args:
        score: the score function.
        noise: returns the next standard normal array ``[N, C, H, W]``; one for the latent, one a step.
        schedule: the model's noise levels.
        rtol: tolerance of a step relative to the values of x, > 0.
        atol: absolute tolerance of a step, > 0; one level of 256 in the paper.

    Raises:
        NonFiniteError: x stopped being finite, or a step size fell to nothing.

    Source: Jolicoeur-Martineau et al. 2021, "Gotta Go Fast When Generating Data with Score-Based Models", algorithm 1.
    """
    rate = math.log(schedule.sigma_max / schedule.sigma_min)
    end = schedule.sampling_eps
    x = noise() * schedule.sigma_max
    accepted_euler = x
    # Of each image: its time, and its step's length.
    t, h = np.ones(len(x)), np.full(len(x), FIRST_STEP)
    index = nfe = 0
    while (h > 0).any():
        sigma, sigma_next = schedule.sigma_at(t), schedule.sigma_at(t - h)
        z = noise()
        with np.errstate(all="ignore"):
            first, gradient = _euler_step(score, x, x, sigma, rate * h, z)
            second, _ = _euler_step(score, x, first, sigma_next, rate * h, z)
            both = (first + second) / 2
            check_finite(both, index, index + 1, float(sigma.max()))
            allowed = np.maximum(atol, rtol * np.maximum(np.abs(first), np.abs(accepted_euler)))
            error = np.sqrt((((both - first) / allowed) ** 2).mean(axis=(1, 2, 3), dtype=np.float64))
        kept = error <= 1
        image = denoised(x, gradient, _images(sigma))
        x, accepted_euler = (np.where(_images(kept), new, old) for new, old in ((both, x), (first, accepted_euler)))
        t = np.where(kept, t - h, t)
        # An image that is done has an error of 0 and stays there, its steps being cut to 0.
        h = np.minimum(np.maximum(t - end, 0), SAFETY * h * np.maximum(error, 1e-12) ** -EXPONENT)
        h[t - end < SHORTEST_STEP] = 0
        if ((t - end >= SHORTEST_STEP) & ~(h >= SHORTEST_STEP)).any():
            raise NonFiniteError(f"adaptive-sde found no step at sigma {sigma.max():.4g} that keeps rtol {rtol:g} "
                                 f"and atol {atol:g}")
        nfe += 2
        yield Step(index, float(sigma.max()), nfe, {"x": x, "x_mean": image}.__getitem__)
        index += 1
    last = schedule.sigma_at(end)
    image = denoised(x, score(x, sigma_of_each(x, last)), last)
    yield Step(index, float(last), nfe + 1, {"x": x, "x_mean": image}.__getitem__)


def _euler_step(
    score: Score, x: Array, at: Array, sigma: Array, log_ratio: Array, z: Array
) -> tuple[Array, Array]:
    """``x`` moved by an Euler-Maruyama step, the score taken at another point; and that score.

    The step is of ``log_ratio`` in log sigma for each image: the diffusion is ``g^2 dt = 2 sigma^2 d(log sigma)``.
    """
    gradient = score(at, sigma.astype(np.float32))
    variance = _images((2 * sigma.astype(np.float64) ** 2 * log_ratio).astype(x.dtype))
    return x + variance * gradient + np.sqrt(variance) * z, gradient


def rk45(
    score: Score, noise: NoiseSource, schedule: VeSchedule, *, rtol: float = 1e-5, atol: float = 1e-5
) -> Iterator[Step]:
    """The probability-flow ODE by Dormand and Prince's pair of orders 5 and 4, with steps as long as the error allows.

    From sigma_max to the schedule's last level, and there the denoised image as ``x_mean``: one evaluation more. Steps
    are chosen for the whole batch, as the original does, so that an image depends on its batch-mates within the
    tolerance.

    Args:
        score, schedule: see :func:`adaptive_sde`.
        noise: returns the standard normal latent ``[N, C, H, W]``; called once.
        rtol, atol: relative and absolute tolerance of a step, > 0.

    Raises:
        NonFiniteError: x stopped being finite, or the step size fell to nothing.

    Source: Song et al. 2021, section 4.3 and appendix D.4; Dormand and Prince 1980, as scipy has it.
    """
    from scipy.integrate import RK45

    rate = math.log(schedule.sigma_max / schedule.sigma_min)
    end = schedule.sampling_eps   # the schedule's own time is log sigma scaled to 1
    index = 0
    x = noise() * schedule.sigma_max

    def slope(t: float, values: Array) -> Array:
        at, sigma = values.reshape(x.shape).astype(np.float32), schedule.sigma_at(t)
        check_finite(at, index, index + 1, float(sigma))   # a step that grew without bound may ask anywhere
        towards: Array = -rate * sigma**2 * score(at, sigma_of_each(at, sigma))
        return towards.astype(np.float64).ravel()

    with np.errstate(all="ignore"):
        solver = RK45(slope, 1.0, x.astype(np.float64).ravel(), end, rtol=rtol, atol=atol)
    while solver.status == "running":
        sigma = float(schedule.sigma_at(solver.t))
        with np.errstate(all="ignore"):
            solver.step()
        if solver.status == "failed":
            raise NonFiniteError(f"RK45 found no step at sigma {schedule.sigma_at(solver.t):.4g} that keeps "
                                 f"rtol {rtol:g} and atol {atol:g}")
        x = solver.y.reshape(x.shape).astype(np.float32)
        check_finite(x, index, index + 1, sigma)
        if solver.status == "running":
            yield Step(index, sigma, solver.nfev, {"x": x, "x_mean": x}.__getitem__)
            index += 1
    last = schedule.sigma_at(end)
    image = denoised(x, score(x, sigma_of_each(x, last)), last)
    yield Step(index, sigma, solver.nfev + 1, {"x": x, "x_mean": image}.__getitem__)


def _images(values: Array) -> Array:
    """A number for each image, ``[N]``, as something that multiplies images."""
    return values[:, None, None, None]

"""A solver as a plan: a list of network evaluations, each with the update that follows it.

    score = s(x, sigma)
    score, z  <-  eps score, sqrt(2 eps) z            in a Langevin correction alone, whose eps depends on both
    x, x_mean, memory  <-  update(x, score, z, memory)

An update is linear in x, score, z and what is remembered. So one writing serves everywhere: :func:`run` calls the
updates on the host, and :func:`rows` applies them to unit vectors, which gives the numbers that a loop on a device or
in a file needs. An update that is not linear, or that chooses its sigma, has no place here: see
:mod:`sde_onnx.solvers.adaptive`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sde_onnx.errors import NonFiniteError
from sde_onnx.solvers.protocols import Array, NoiseSource, Number, Score

__all__ = [
    "COLUMNS",
    "MEMORY",
    "RESULTS",
    "ROWS_FORMAT",
    "TERMS",
    "Evaluation",
    "Langevin",
    "LangevinNorm",
    "Memory",
    "Plan",
    "Step",
    "Update",
    "Updated",
    "check_finite",
    "denoise",
    "denoised",
    "langevin_scaled",
    "langevin_step_size",
    "latent",
    "non_finite",
    "rows",
    "run",
    "run_evaluations",
    "sigma_of_each",
]

LangevinNorm = Literal["image", "batch"]
Memory = tuple[Array, ...]
Updated = tuple[Array, Array, Memory]   # x, x_mean, memory
# Of x, its score, and z, standard normal or None where none is drawn, [N, C, H, W] each; and of what is remembered.
Update = Callable[[Array, Array, Array | None, Memory], Updated]

MEMORY = 2                # arrays that an update may remember
ROWS_FORMAT = 2           # counted up when COLUMNS change their meaning
TERMS = ("x", "score", "memory0", "memory1", "noise")
RESULTS = ("x", "x_mean", "memory0", "memory1")
# Of a row: the weight of each term in each result; the Langevin correction's snr, 0 where there is none, and whether
# its norms are means over the batch; what the network is told; the number of the noise array, -1 where none is drawn.
COLUMNS = (*((result, term) for result in RESULTS for term in TERMS), "snr", "batch_norm", "sigma", "draw")


@dataclass(frozen=True)
class Step:
    """The state after one step, from one noise level to the next."""

    index: int     # 0 is the first step
    sigma: float   # noise std that the step started from
    nfe: int       # network evaluations so far, an image
    # Returns x or x_mean by its name; from a device, until the next step is asked for.
    read: Callable[[str], Array] = field(repr=False, compare=False)

    @property
    def x(self) -> Array:
        """``[N, C, H, W]`` at the next noise level; of a churned solver with that level's noise put in already."""
        return self.read("x")

    @property
    def x_mean(self) -> Array:
        """The image as the step sees it, ``[N, C, H, W]``: the result, after the last step."""
        return self.read("x_mean")


@dataclass(frozen=True)
class Langevin:
    """What makes an evaluation a Langevin correction: its score and noise are scaled before the update."""

    snr: float           # ratio of signal to noise, dimensionless, > 0
    norm: LangevinNorm   # see langevin_step_size

    def scaled(self, score: Array, z: Array) -> tuple[Array, Array]:
        """``eps score`` and ``sqrt(2 eps) z``."""
        return langevin_scaled(score, z, step_size=langevin_step_size(score, z, snr=self.snr, norm=self.norm))


@dataclass(frozen=True)
class Evaluation:
    """One call of the network, and its update: a module's function bound by ``functools.partial``.

    So it prints and pickles. Its ``x_mean`` is the latest image, in the middle of a step too.
    """

    sigma: Number                      # what the network is told
    update: Update
    draws: bool = False                # whether it takes a noise array
    langevin: Langevin | None = None   # of a Langevin correction
    ends: int | None = None            # the number of the step that ends here, from 0; None in the middle of one


@dataclass(frozen=True)
class Plan:
    """A solver on given noise levels."""

    start: tuple[float, ...]              # the initial x is the sum of noise arrays times these deviations
    evaluations: tuple[Evaluation, ...]
    levels: tuple[float, ...]             # the noise level that each step starts from
    restarts: int = 0                     # how often noise is put in to go down again: restart.py


def run(plan: Plan, score: Score, noise: NoiseSource) -> Iterator[Step]:
    """Yields the steps of a plan. Nothing is computed before the first one is asked for.

    Arguments and errors: :func:`run_evaluations`.
    """
    for count, (evaluation, x, x_mean) in enumerate(run_evaluations(plan, score, noise), 1):
        if (index := evaluation.ends) is not None:
            yield Step(index, plan.levels[index], count, {"x": x, "x_mean": x_mean}.__getitem__)


def run_evaluations(plan: Plan, score: Score, noise: NoiseSource) -> Iterator[tuple[Evaluation, Array, Array]]:
    """Yields each evaluation of a plan, with ``x`` and ``x_mean`` after it.

    Args:
        plan: what to do.
        score: the score function.
        noise: called for each number of ``start``, then in each evaluation that draws.

    Raises:
        NonFiniteError: x stopped being finite; names the step and its sigma.
    """
    x = latent(plan, noise)
    memory: Memory = ()
    step = 0
    for evaluation in plan.evaluations:
        with np.errstate(all="ignore"):   # what numpy would warn of ends the run below, with the step named
            gradient = score(x, sigma_of_each(x, evaluation.sigma))
            z = noise() if evaluation.draws else None
            if evaluation.langevin is not None and z is not None:
                gradient, z = evaluation.langevin.scaled(gradient, z)
            x, x_mean, memory = evaluation.update(x, gradient, z, memory)
        check_finite(x, step, len(plan.levels), plan.levels[step])
        step += evaluation.ends is not None
        yield evaluation, x, x_mean


def latent(plan: Plan, noise: NoiseSource) -> Array:
    """The initial x of a plan."""
    x = noise() * plan.start[0]
    for deviation in plan.start[1:]:
        x = x + deviation * noise()
    return x


def rows(plan: Plan) -> NDArray[np.float32]:
    """The plan as numbers, ``[E, len(COLUMNS)]``: what each evaluation's update makes of unit vectors."""
    x, score, *memory, z = np.eye(len(TERMS))
    table = np.zeros((len(plan.evaluations), len(COLUMNS)), np.float32)
    draw = len(plan.start)
    for row, evaluation in zip(table, plan.evaluations, strict=True):
        new_x, x_mean, remembered = evaluation.update(x, score, z if evaluation.draws else None, tuple(memory))
        for place, result in enumerate((new_x, x_mean, *remembered)):
            row[place * len(TERMS) : (place + 1) * len(TERMS)] = result
        langevin = evaluation.langevin
        row[-4:-2] = (langevin.snr, langevin.norm == "batch") if langevin else (0, 0)
        row[-2:] = evaluation.sigma, draw if evaluation.draws else -1
        draw += evaluation.draws
    return table


def denoised(x: Array, score: Array, sigma: Any) -> Array:
    """The denoised image D, ``x + sigma^2 s``, of x with noise std ``sigma``, a number or ``[N, 1, 1, 1]``.

    Source: Vincent 2011, "A connection between score matching and denoising autoencoders"; Tweedie's formula.
    """
    image: Array = x + sigma**2 * score
    return image


def denoise(x: Array, score: Array, z: Array | None, memory: Memory, *, sigma: float) -> Updated:
    """The step to noise level 0: the denoised image."""
    image = denoised(x, score, sigma)
    return image, image, ()


def langevin_step_size(score: Array, noise: Array, *, snr: Any, norm: LangevinNorm = "image") -> Any:
    """The step size at which a Langevin correction has the signal-to-noise ratio ``snr``, ``2 (snr |z| / |g|)^2``.

    Args:
        score: the score g, ``[N, C, H, W]``.
        noise: the correction's noise z, standard normal, of the same shape.
        snr: target ratio r of signal to noise, dimensionless, > 0.
        norm: ``"image"`` takes each image's own norms, as the algorithm is written; ``"batch"`` takes their mean over
            the batch, as the reference implementations do, so that an image depends on its batch-mates.

    Returns:
        eps, ``[N, 1, 1, 1]``, or ``[1, 1, 1, 1]`` for ``"batch"``.

    Source: Song et al. 2021, algorithm 4.
    """
    score_norm, noise_norm = _norm(score), _norm(noise)
    if norm == "batch":
        # arrays, since NumPy before 2.0 computes with scalars in float64
        score_norm, noise_norm = score_norm.mean().reshape(1, 1, 1, 1), noise_norm.mean().reshape(1, 1, 1, 1)
    return 2 * (snr * noise_norm / score_norm) ** 2


def langevin_scaled(score: Array, z: Array, *, step_size: Any) -> tuple[Array, Array]:
    """What a Langevin correction adds to x: ``eps score`` and ``sqrt(2 eps) z``.

    Source: Song et al. 2021, algorithm 4.
    """
    return step_size * score, (2 * step_size) ** 0.5 * z


def sigma_of_each(x: Array, sigma: Number) -> Array:
    """A noise level for each image, ``[N]``, in x's own array type."""
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


def _norm(x: Array) -> Array:
    """The Euclidean norm of each image, ``[N, 1, 1, 1]``."""
    squares = (x * x).sum(axis=(1, 2, 3), keepdims=True)
    return squares**0.5   # type: ignore[no-any-return]  # numpy's types give up at the sum's keepdims

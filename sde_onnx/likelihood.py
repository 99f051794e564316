"""Exact likelihoods: how probable a model finds images, by the probability-flow ODE.

From an image at sigma_min to its latent at sigma_max, in u = ln sigma and with D values an image:

    dx / du = -sigma^2 s(x, sigma)
    log p(x) = log N(x_max; 0, sigma_max^2) - integral of sigma^2 div s du
    div s ~ v^T J v,   J = ds / dx,   v a probe with E[v v^T] = 1

Images of 8 bits are dequantized, ``(value + u) / 256`` with u even in [0, 1), and bits per dimension are those of the
8-bit values: ``8 - log2 p(x) / D``.

What is measured is the density at sigma_min, of images that carry so much noise. With the exact score there are two
floors: ``8 + log2(2 pi sigma_min^2) / 2`` where the density is greatest, that of a single image; and on average over
images with noise of sigma_min, ``8 + log2(sigma_min sqrt(2 pi e))``, the noise's entropy. A network is not exact.

Source: Song et al. 2021, section 4.3 and appendix D.2, equations 39 to 41; Hutchinson 1990 for the trace; Theis et al.
2016, "A note on the evaluation of generative models", section 3.1, for dequantization.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_onnx.checks import checked_choice, checked_count, checked_each, checked_model
from sde_onnx.codes import LabelOfEach
from sde_onnx.errors import InputError
from sde_onnx.generate.sample import choose_batch_size
from sde_onnx.image_files import Images, check_images
from sde_onnx.progress import ImagesBar
from sde_onnx.runtime.score_model import LABEL, ScoreModel
from sde_onnx.solvers.flow import FlowState, check_steps, integrate_each
from sde_onnx.solvers.noise import check_seeds, portable_normals, portable_uniforms
from sde_onnx.solvers.options import LIKELIHOOD_STEPS, PROBE_KINDS
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["Likelihood", "log_likelihood", "log_likelihood_batches", "lowest_bits_per_dim"]

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
MOST_DRAWS = 10_000    # probes, or dequantizations: a hundredth of the error of one
FIRST_DRAW = 1 << 31   # of the portable noise: far from those that a sampled image of the same seed was made of
Integrator = Callable[..., Iterator[FlowState]]


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Of N images, each in bits or nats of its own."""

    bits_per_dim: Float64Array     # [N], of 8-bit values
    standard_error: Float64Array   # [N], of bits_per_dim; NaN where there is one estimate alone
    log_density: Float64Array      # [N], nats, of the image with values in [0, 1]
    latents: Float32Array          # [N, C, H, W], x at sigma_max, of the first dequantization
    evaluations: NDArray[np.int64]   # [N], of the network with its gradient


def lowest_bits_per_dim(sigma_min: float) -> tuple[float, float]:
    """Bits per dimension of the density's peak, and those that images with noise of sigma_min average at least."""
    return 8 + math.log2(2 * math.pi * sigma_min**2) / 2, 8 + math.log2(sigma_min * math.sqrt(2 * math.pi * math.e))


def log_likelihood(
    model: ScoreModel,
    images: Images,
    seeds: Sequence[int] | None = None,
    *,
    probes: int = 2,
    dequantizations: int = 1,
    kind: str = PROBE_KINDS[0],
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    labels: LabelOfEach = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Likelihood:
    """Measures the likelihood of images.

    Args:
        model: a loaded file with a gradient, which `sde-onnx gradient` makes.
        images: ``[N, C, H, W]`` uint8, or float32 in data units ([0, 1], and noise), which are not dequantized.
        seeds: of each image's probes and dequantizations; 0 to N - 1 if not given. An image's likelihood depends on
            its seed and not on the images beside it.
        probes: v for each dequantization, 1 to 10,000. An evaluation of the network is made for each.
        dequantizations: of each image, 1 to 10,000.
        kind: of the probes, one of PROBE_KINDS.
        steps: even in ln sigma, >= 1, of six evaluations each; LIKELIHOOD_STEPS if no tolerance is given either.
        rtol, atol: in place of steps, tolerances of a step, > 0; FLOW_TOLERANCE if only the other is given. Each image
            has steps of its own then. They follow the rounding of float32, which differs between batch sizes: so does
            the result, by about what the tolerances allow.
        labels: of a model that has them: one for all images, or one for each.
        batch_size: images at a time, >= 1; chosen by their size if not given.
        progress: show how far it is on standard error: a bar on a terminal, else a line each half minute.

    Returns:
        The mean over probes and dequantizations, and its standard error: over dequantizations where there are several,
        else over probes.

    Raises:
        InputError: a file without gradient, or an argument out of its range.
        NonFiniteError: NaN or infinity appeared, or no step keeps the tolerances.
    """
    batches = log_likelihood_batches(
        model, images, seeds, probes=probes, dequantizations=dequantizations, kind=kind, steps=steps,
        rtol=rtol, atol=atol, labels=labels, batch_size=batch_size, progress=progress)
    parts = list(batches)
    return Likelihood(*(np.concatenate([getattr(part, field.name) for part in parts])
                        for field in dataclasses.fields(Likelihood)))


def log_likelihood_batches(
    model: ScoreModel,
    images: Images,
    seeds: Sequence[int] | None = None,
    *,
    probes: int = 2,
    dequantizations: int = 1,
    kind: str = PROBE_KINDS[0],
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    labels: LabelOfEach = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Iterator[Likelihood]:
    """Yields the likelihoods of :func:`log_likelihood` batch by batch.

    Arguments and errors are those of :func:`log_likelihood`; they are checked before the first batch.
    """
    checked_model(model)
    model.check_gradient()
    check_images(images, model.metadata.image_shape)
    for name, value in (("probes", probes), ("dequantizations", dequantizations)):
        checked_count(name, value, least=1, most=MOST_DRAWS)
    if dequantizations > 1 and images.dtype != np.uint8:
        raise InputError("dequantizations are of 8-bit images: float32 images have one value each")
    checked_choice("kind", kind, PROBE_KINDS)
    checked = check_seeds(range(len(images)) if seeds is None else seeds)
    checked_each(checked, "seed", len(images))
    label = model.labels_for(labels, len(images)).get(LABEL)
    size = choose_batch_size(model, len(images), batch_size)
    integrate = _integrator(steps, rtol, atol)

    def measured() -> Iterator[Likelihood]:
        with ImagesBar(len(images) * dequantizations, show=progress) as bar:
            for first in range(0, len(images), size):
                part = slice(first, first + size)
                yield _measure(model, images[part], checked[part], None if label is None else label[part],
                               probes, dequantizations, kind, integrate, bar)

    return measured()


def _integrator(steps: int | None, rtol: float | None, atol: float | None) -> Integrator:
    tolerances = {name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}
    if tolerances and steps is not None:
        raise InputError("steps and tolerances exclude each other: give steps, or rtol and atol")
    how: dict[str, Any] = tolerances or {"steps": LIKELIHOOD_STEPS if steps is None else steps}
    check_steps(**how)
    return partial(integrate_each, **how)


def _measure(
    model: ScoreModel, images: Images, seeds: NDArray[np.uint64], label: NDArray[np.int64] | None, probes: int,
    dequantizations: int, kind: str, integrate: Integrator, bar: Any,
) -> Likelihood:
    """The likelihoods of one batch."""
    schedule, size = model.metadata.schedule, math.prod(model.metadata.image_shape)
    start, end = math.log(schedule.sigma_min), math.log(schedule.sigma_max)
    log_densities, latents, evaluations = [], [], np.zeros(len(images), np.int64)
    for repetition in range(dequantizations):
        draw = FIRST_DRAW + repetition * (1 + probes)   # of the dequantization; those of the probes follow
        x = images if images.dtype == np.float32 else _dequantized(images, seeds, draw)
        vectors = [_probe(kind, seeds, draw + 1 + index, size).reshape(x.shape) for index in range(probes)]
        y = np.concatenate([x.reshape(len(x), -1), np.zeros((len(x), probes))], 1).astype(np.float64)
        reached = 0.0
        for state in integrate(partial(_slope, model, label, vectors), y, start, end):
            share = float((state.u - start).sum()) / (end - start)
            bar.update(share - reached)
            reached = share
        latent = state.y[:, :size]
        log_densities.append(_log_normal(latent, schedule)[:, None] + state.y[:, size:])
        latents.append(latent)
        evaluations += state.nfe * probes
    estimates = np.stack(log_densities, 1)   # [N, dequantizations, probes]
    independent = estimates.mean(2) if dequantizations > 1 else estimates[:, 0]
    count = independent.shape[1]
    error = independent.std(1, ddof=1) / math.sqrt(count) if count > 1 else np.full(len(images), np.nan)
    log_density, bit = estimates.mean((1, 2)), math.log(2) * size
    return Likelihood(8 - log_density / bit, error / bit, log_density,
                      latents[0].reshape(images.shape).astype(np.float32), evaluations)


def _dequantized(images: Images, seeds: NDArray[np.uint64], draw: int) -> Float64Array:
    within = portable_uniforms(seeds, draw, math.prod(images.shape[1:])).reshape(images.shape)
    dequantized: Float64Array = (images + within.astype(np.float64)) / 256
    return dequantized


def _probe(kind: str, seeds: NDArray[np.uint64], draw: int, size: int) -> Float32Array:
    if kind == "gaussian":
        return portable_normals(seeds, draw, size)
    return np.where(portable_uniforms(seeds, draw, size) < 0.5, np.float32(-1), np.float32(1))


def _log_normal(x: Float64Array, schedule: VeSchedule) -> Float64Array:
    """``log N(x; 0, sigma_max^2)`` of each row, nats."""
    variance = schedule.sigma_max**2
    density: Float64Array = -0.5 * (x**2).sum(1) / variance - 0.5 * x.shape[1] * math.log(2 * math.pi * variance)
    return density


def _slope(
    model: ScoreModel, label: NDArray[np.int64] | None, vectors: Sequence[Float32Array], u: Float64Array,
    y: Float64Array,
) -> Float64Array:
    """Of x and, for each probe, of the integral: ``-sigma^2 s`` and ``-sigma^2 v^T J v``."""
    sigma = np.exp(u)
    count, size = len(y), vectors[0][0].size
    x = y[:, :size].reshape(vectors[0].shape).astype(np.float32)
    traces = []
    for v in vectors:
        score, product = model.vjp(x, sigma.astype(np.float32), v, label)
        traces.append((v.astype(np.float64) * product).reshape(count, -1).sum(1))
    joined = np.concatenate([score.reshape(count, -1), np.stack(traces, 1)], 1)
    slope: Float64Array = -(sigma**2)[:, None] * joined
    return slope

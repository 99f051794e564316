"""Images to latents and back along the probability flow, interpolation between them, and edits of images.

    dx / du = -sigma^2 s(x, sigma),  u = ln sigma         encode: from sigma_min to sigma_max; decode: back
    x_t = (sin((1 - t) w) x_0 + sin(t w) x_1) / sin w     w: the angle between the latents x_0 and x_1
    x_sigma = image + sigma z                             edit: then any solver, from sigma down

Source: Song et al. 2021, section 4.3 and appendix D.4, for codes and interpolation; Shoemake 1985, "Animating rotation
with quaternion curves", for the arc; Meng et al. 2022, "SDEdit", section 3, for edits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_onnx.checks import checked_count, checked_each, checked_model, checked_number, is_number
from sde_onnx.errors import InputError, one_line
from sde_onnx.generate.sample import LabelsInTurn, batches_of, check_latents, choose_batch_size, last_images
from sde_onnx.image_files import Images, check_images, in_data_units
from sde_onnx.progress import ImagesBar
from sde_onnx.runtime.metadata import ModelMetadata
from sde_onnx.runtime.score_model import LABEL, ScoreModel
from sde_onnx.solvers.catalogue import Sampling, resolve
from sde_onnx.solvers.flow import check_steps, integrate_each, probability_flow
from sde_onnx.solvers.noise import PortableNoise, check_seeds
from sde_onnx.solvers.options import FLOW_TOLERANCE
from sde_onnx.solvers.plan import denoised
from sde_onnx.solvers.protocols import Array, Score

__all__ = ["LabelOfEach", "decode", "decode_batches", "edit", "edit_batches", "encode", "encode_batches", "interpolate",
           "resolve_edit", "spherical"]

Float32Array = NDArray[np.float32]
LabelOfEach = int | Sequence[int] | NDArray[np.int64] | None   # one for all images, or one for each
MOST_FRAMES = 10_000
PARALLEL = 1e-6   # sine of an angle below which an arc is its chord, in float32


def encode(
    model: ScoreModel,
    images: Images,
    *,
    labels: LabelOfEach = None,
    rtol: float = FLOW_TOLERANCE,
    atol: float = FLOW_TOLERANCE,
    steps: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Float32Array:
    """The latents of images: x at sigma_max, from x = image at sigma_min.

    A latent depends on its image alone, whatever is encoded beside it.

    Args:
        model: a loaded model file.
        images: ``[N, C, H, W]``, uint8, or float32 in data units ([0, 1]).
        labels: of a model that has them: one for all images, or one for each.
        rtol, atol: relative and absolute tolerance of a step, > 0.
        steps: in place of tolerances, so many equal steps of the fifth order in ln sigma, six evaluations each.
        batch_size: images at a time, >= 1; chosen by their size if not given.
        progress: show how far it is on standard error: a bar on a terminal, else a line each half minute.

    Returns:
        ``[N, C, H, W]`` float32, with a standard deviation of about sigma_max.

    Raises:
        InputError: an argument out of its range, or images of another shape or type.
        NonFiniteError: NaN or infinity appeared, or no step keeps the tolerances.
    """
    return np.concatenate([*encode_batches(model, images, labels=labels, rtol=rtol, atol=atol, steps=steps,
                                           batch_size=batch_size, progress=progress)])


def encode_batches(
    model: ScoreModel, images: Images, *, labels: LabelOfEach = None, rtol: float = FLOW_TOLERANCE,
    atol: float = FLOW_TOLERANCE, steps: int | None = None, batch_size: int | None = None, progress: bool = False,
) -> Iterator[Float32Array]:
    """Yields the latents of :func:`encode` batch by batch. Arguments are checked before the first."""
    checked_model(model)
    schedule = model.metadata.schedule
    return _along_the_flow(model, _data(images, model.metadata), schedule.sigma_min, schedule.sigma_max, labels=labels,
                           rtol=rtol, atol=atol, steps=steps, batch_size=batch_size, progress=progress)


def decode(
    model: ScoreModel,
    latents: Float32Array,
    *,
    labels: LabelOfEach = None,
    rtol: float = FLOW_TOLERANCE,
    atol: float = FLOW_TOLERANCE,
    steps: int | None = None,
    denoise: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
) -> Float32Array:
    """The images of latents: x at sigma_min. The inverse of :func:`encode`, within the tolerances.

    Args:
        latents: x at sigma_max, ``[N, C, H, W]`` float32.
        denoise: whether to return the denoised image at sigma_min instead, one evaluation more. Images that are sampled
            have noise of sigma_min there; those that were encoded have what they had.

    Returns:
        ``[N, C, H, W]`` float32 in data units, not clipped.

    Other arguments and errors: :func:`encode`.
    """
    return np.concatenate([*decode_batches(model, latents, labels=labels, rtol=rtol, atol=atol, steps=steps,
                                           denoise=denoise, batch_size=batch_size, progress=progress)])


def decode_batches(
    model: ScoreModel, latents: Float32Array, *, labels: LabelOfEach = None, rtol: float = FLOW_TOLERANCE,
    atol: float = FLOW_TOLERANCE, steps: int | None = None, denoise: bool = False, batch_size: int | None = None,
    progress: bool = False,
) -> Iterator[Float32Array]:
    """Yields the images of :func:`decode` batch by batch. Arguments are checked before the first."""
    checked_model(model)
    check_latents(latents, model.metadata.image_shape)
    schedule = model.metadata.schedule
    return _along_the_flow(model, latents, schedule.sigma_max, schedule.sigma_min, labels=labels, rtol=rtol, atol=atol,
                           steps=steps, denoise=denoise, batch_size=batch_size, progress=progress)


def interpolate(
    model: ScoreModel,
    first: Images | int,
    second: Images | int,
    frames: int,
    *,
    label: int | None = None,
    rtol: float = FLOW_TOLERANCE,
    atol: float = FLOW_TOLERANCE,
    steps: int | None = None,
    denoise: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
) -> Float32Array:
    """The images on the arc between two latents, both ends included.

    Args:
        first, second: an array ``[C, H, W]`` as :func:`encode` takes them, or a seed, whose latent is sigma_max times
            its first noise array.
        frames: images, 2 to 10,000.
        label: of all of them, of a model that has labels.

    Returns:
        ``[frames, C, H, W]`` float32 in data units, not clipped.

    Other arguments and errors: :func:`encode` and :func:`decode`.
    """
    checked_model(model)
    checked_count("frames", frames, least=2, most=MOST_FRAMES, hint=": both ends are among them")
    for end in (first, second):
        if not is_number(end, whole=True) and not isinstance(end, np.ndarray):
            raise InputError(f"an end is {one_line(end)}, expected an image as a numpy array, or a seed")
        if isinstance(end, np.ndarray) and end.shape != model.metadata.image_shape:
            raise InputError(f"an end is an image {list(end.shape)}, expected {list(model.metadata.image_shape)}")
    ends = []
    for end in (first, second):
        if not isinstance(end, np.ndarray):
            z = PortableNoise([int(end)], model.metadata.image_shape)()
            ends.append(z[0] * np.float32(model.metadata.schedule.sigma_max))
        else:
            ends.append(encode(model, end[None], labels=label, rtol=rtol, atol=atol, steps=steps, progress=progress)[0])
    latents = spherical(ends[0], ends[1], np.linspace(0, 1, frames))
    return decode(model, latents, labels=label, rtol=rtol, atol=atol, steps=steps, denoise=denoise,
                  batch_size=batch_size, progress=progress)


def spherical(first: Float32Array, second: Float32Array, t: NDArray[np.float64]) -> Float32Array:
    """Latents on the arc between two, at each of ``t`` ``[K]`` in [0, 1]: ``[K, C, H, W]``.

    Between two independent latents the chord would be shorter than either, and decode to images without detail.
    """
    cosine = float(np.vdot(first, second)) / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-30)
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(angle) < PARALLEL:
        weights = np.stack([1 - t, t])
    else:
        weights = np.sin(np.stack([1 - t, t]) * angle) / math.sin(angle)
    of_first, of_second = weights[..., None, None, None]
    arc: Float32Array = (of_first * first + of_second * second).astype(np.float32)
    return arc


def edit(
    model: ScoreModel,
    images: Images,
    seeds: Sequence[int],
    steps: int | None = None,
    *,
    sigma: float,
    solver: str | None = None,
    quality: str | None = None,
    labels: LabelsInTurn = None,
    batch_size: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Float32Array:
    """Samples that start from an image with noise of ``sigma`` and not from noise alone: SDEdit.

    What is larger than the noise stays, and what drowns in it is sampled anew.

    Args:
        model: a loaded model file.
        images: ``[N, C, H, W]`` as :func:`encode` takes them; sketches and collages too.
        seeds: one for each image: its noise at sigma is the seed's first array.
        sigma: where sampling starts, above sigma_min and at most sigma_max.

    Returns:
        ``[N, C, H, W]`` float32 in [0, 1].

    Other arguments and errors: :func:`sde_onnx.sample`. Steps and options are those of the way from sigma down.
    """
    checked_model(model)
    sampling = resolve_edit(model.metadata, sigma, quality=quality, solver=solver, steps=steps, options=options)
    return np.concatenate([*edit_batches(model, images, seeds, sampling, labels=labels, batch_size=batch_size,
                                         progress=progress)])


def resolve_edit(metadata: ModelMetadata, sigma: float, **asked: Any) -> Sampling:
    """What :func:`edit` does from ``sigma`` down; other arguments and errors: :func:`sde_onnx.resolve`."""
    schedule = metadata.schedule
    if not schedule.sigma_min < checked_number("sigma", sigma) <= schedule.sigma_max:
        raise InputError(f"sigma is {sigma:g}, expected more than {schedule.sigma_min:g} and at most "
                         f"{schedule.sigma_max:g}, the model's noise levels")
    return resolve(dataclasses.replace(metadata, schedule=dataclasses.replace(schedule, sigma_max=sigma)), **asked)


def edit_batches(
    model: ScoreModel, images: Images, seeds: Sequence[int], sampling: Sampling, *, labels: LabelsInTurn = None,
    batch_size: int | None = None, progress: bool = False,
) -> Iterator[Float32Array]:
    """Yields the images of :func:`edit` batch by batch, by what :func:`resolve_edit` returns.

    Arguments are checked before the first.
    """
    x = _data(images, model.metadata)
    checked_each(check_seeds(seeds), "seed", len(x))
    x = x + np.float32(sampling.schedule.sigma_max) * PortableNoise(seeds, model.metadata.image_shape)()
    batches = batches_of(model, seeds, sampling, labels=labels, latents=x, batch_size=batch_size)
    return last_images(batches, len(seeds), sampling.steps or 0, progress=progress)


def _along_the_flow(
    model: ScoreModel, x: Float32Array, start: float, end: float, *, labels: LabelOfEach, rtol: float, atol: float,
    steps: int | None, batch_size: int | None, progress: bool, denoise: bool = False,
) -> Iterator[Float32Array]:
    """x at sigma ``end``, from x at ``start``, batch by batch; denoised there, if asked for."""
    check_steps(rtol, atol, steps)
    label = model.labels_for(labels, len(x)).get(LABEL)
    size = choose_batch_size(model, len(x), batch_size)

    def batches() -> Iterator[Float32Array]:
        with ImagesBar(len(x), show=progress) as bar:
            for first in range(0, len(x), size):
                chunk = x[first : first + size]
                score: Score = model if label is None else partial(model, label=label[first : first + size])
                for state in integrate_each(probability_flow(score, model.metadata.image_shape),
                                            chunk.reshape(len(chunk), -1).astype(np.float64), math.log(start),
                                            math.log(end), rtol=rtol, atol=atol, steps=steps):
                    done = np.sum((state.u - math.log(start)) / math.log(end / start))
                    bar.update(first + float(done) - bar.n)
                there: Array = state.y.reshape(chunk.shape).astype(np.float32)
                if denoise:
                    there = denoised(there, score(there, np.full(len(there), end, np.float32)), end)
                yield there.astype(np.float32, copy=False)

    return batches()


def _data(images: Images, metadata: ModelMetadata) -> Float32Array:
    """Images in data units, ``[N, C, H, W]`` float32; errors: :func:`check_images`."""
    check_images(images, metadata.image_shape)
    return in_data_units(images)

"""Seeds to images: batches, and the noise that makes batches not matter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_onnx.checks import checked_batch_size, checked_model, checked_number
from sde_onnx.errors import BatchSizeWarning, InputError, one_line
from sde_onnx.guidance.classifier import classifier_guided
from sde_onnx.guidance.measured_noise import tell_measured_noise
from sde_onnx.image_files import is_array
from sde_onnx.progress import ImagesBar
from sde_onnx.runtime.classifier import Classifier
from sde_onnx.runtime.device_loop import DeviceLoop, room_for
from sde_onnx.runtime.machine import available_cores, available_memory, image_memory
from sde_onnx.runtime.score_model import ON_A_GPU, ScoreModel, as_labels
from sde_onnx.solvers.catalogue import Sampling, resolve
from sde_onnx.solvers.noise import LatentFirst, PortableNoise, check_seeds
from sde_onnx.solvers.options import GUIDANCE
from sde_onnx.solvers.plan import Plan, Step
from sde_onnx.solvers.protocols import NoiseSource, Score

__all__ = ["WRAPPERS", "Batch", "LabelsInTurn", "Loop", "batches_of", "check_latents", "choose_batch_size",
           "default_batch_size", "label_of", "last_images", "sample", "sample_batches", "steps_of"]

# Values of x in a batch: enough to fill the cores of a CPU, few enough that activations (some hundred times x) fit.
VALUES_A_BATCH = 1 << 19
LabelsInTurn = int | Sequence[int] | None   # one for all seeds, or several: see label_of
# Runs in place of a request's own loop: of which images a batch holds, its score and its noise.
Loop = Callable[[slice, Score, NoiseSource], Iterator[Step]]
# What a request can put around the score, by the names of Sampling.wrappers.
WRAPPERS: dict[str, Callable[[Score], Score]] = {"measured-noise": tell_measured_noise}


@dataclass(frozen=True)
class Batch:
    """Images that are sampled together."""

    seeds: list[int]
    steps: Iterator[Step]


def sample(
    model: ScoreModel,
    seeds: Sequence[int],
    steps: int | None = None,
    *,
    solver: str | None = None,
    quality: str | None = None,
    sampling: Sampling | None = None,
    labels: LabelsInTurn = None,
    latents: NDArray[np.float32] | None = None,
    classifier: Classifier | None = None,
    guidance: float = GUIDANCE,
    batch_size: int | None = None,
    progress: bool = False,
    **options: Any,
) -> NDArray[np.float32]:
    """Samples one image for each seed.

    Args:
        model: a loaded model file.
        seeds: 0 to 2^64 - 1 each. An image depends on its own seed alone, unless ``langevin_norm`` is ``"batch"`` or
            the solver ``"rk45"``, whose steps suit the whole batch.
        steps: from one noise level to the next; the solver's own number, or for ``"pc"`` the model's, if not given.
        solver: a key of :data:`sde_onnx.solvers.catalogue.SOLVERS`; ``"pc"`` is the paper's.
        quality: in place of both, a key of :data:`sde_onnx.solvers.catalogue.QUALITIES`; ``"balanced"`` if none of the
            three is given.
        sampling: in place of these and of ``options``, of :func:`sde_onnx.resolve`.
        labels: of a model that has them: one for all images, or several, which seeds take in turn: :func:`label_of`.
        latents: x at sigma_max, one for each seed, ``[N, C, H, W]`` float32, in place of sigma_max times the seed's
            first noise array. The arrays after it stay the seed's.
        classifier: of :func:`sde_onnx.load_classifier`; the labels are then its own and not the model's.
        guidance: the weight of the classifier, >= 0: 0 leaves the images as they are, 1 is Bayes' rule, more gives more
            typical images of the class.
        batch_size: images at a time, >= 1; chosen by their size if not given. What does not fit into memory is split,
            with a ``BatchSizeWarning``.
        progress: show how far it is on standard error: a bar on a terminal, else a line each half minute.
        options: of the solver, by the names of :data:`sde_onnx.solvers.options.OPTIONS`.

    Returns:
        ``[N, C, H, W]`` float32 in [0, 1].

    Raises:
        InputError: an argument out of its range, or an option that the solver does not have.
        MissingExtraError: the solver needs a package that is not installed.
        NonFiniteError: NaN or infinity appeared.
    """
    sampling = _request(model, sampling, quality=quality, solver=solver, steps=steps, options=options)
    batches = batches_of(model, seeds, sampling, labels=labels, latents=latents, classifier=classifier,
                         guidance=guidance, batch_size=batch_size)
    return np.concatenate([*last_images(batches, len(seeds), sampling.steps or 0, progress=progress)])


def sample_batches(
    model: ScoreModel,
    seeds: Sequence[int],
    steps: int | None = None,
    *,
    solver: str | None = None,
    quality: str | None = None,
    sampling: Sampling | None = None,
    labels: LabelsInTurn = None,
    latents: NDArray[np.float32] | None = None,
    classifier: Classifier | None = None,
    guidance: float = GUIDANCE,
    batch_size: int | None = None,
    **options: Any,
) -> Iterator[Batch]:
    """Returns the batches of :func:`sample`, each an iterator over its steps, for whoever wants to see them.

    Arguments and errors are those of :func:`sample`; they are checked before the first batch.
    """
    sampling = _request(model, sampling, quality=quality, solver=solver, steps=steps, options=options)
    return batches_of(model, seeds, sampling, labels=labels, latents=latents, classifier=classifier, guidance=guidance,
                      batch_size=batch_size)


def batches_of(
    model: ScoreModel, seeds: Sequence[int], sampling: Sampling, *, labels: LabelsInTurn, batch_size: int | None,
    latents: NDArray[np.float32] | None = None, classifier: Classifier | None = None, guidance: float = GUIDANCE,
    loop: Loop | None = None,
) -> Iterator[Batch]:
    """The batches of a resolved request, whose noise levels need not be all of the model's.

    Arguments and errors are those of :func:`sample`; ``latents`` are x at the request's own sigma_max, and ``loop`` is
    what runs in place of the request's own.
    """
    check_seeds(seeds)
    if latents is not None:
        check_latents(latents, model.metadata.image_shape)
        if len(latents) != len(seeds):
            raise InputError(f"{len(latents)} latents for {len(seeds)} seeds: give one for each seed")
    label = label_of(seeds, labels)
    if classifier is not None:
        loop, label = _guided(classifier, guidance, sampling, label), None
    model.labels_for(label, len(seeds))   # refuses what the model does not have
    size = choose_batch_size(model, len(seeds), batch_size, images_depend=sampling.depends_on_batch)
    threads = 1 if model.loop_for is None else available_cores() or 1   # where a GPU does the rest, the cores are free

    def start(first: int) -> Batch:
        rows = slice(first, first + size)
        chunk, its_labels = seeds[rows], None if label is None else label[rows]
        noise: NoiseSource = PortableNoise(chunk, model.metadata.image_shape, threads=threads)
        if latents is not None:
            noise = LatentFirst(latents[rows] / np.float32(sampling.schedule.sigma_max), noise)
        its_loop = None if loop is None else partial(loop, rows)
        return Batch(list(chunk), steps_of(model, noise, len(chunk), sampling, label=its_labels, loop=its_loop))

    return map(start, range(0, len(seeds), size))


def _guided(
    classifier: Classifier, guidance: float, sampling: Sampling, label: NDArray[np.int64] | None
) -> Loop | None:
    """The request's loop with a classifier beside the score."""
    if not isinstance(classifier, Classifier):
        raise InputError(f"classifier is {one_line(classifier)}, expected one of sde_onnx.load_classifier")
    checked_number("guidance", guidance, "a weight of 0 or more", least=0)
    if label is None:
        raise InputError(f"a classifier guides to a label: give labels, 0 to {classifier.classes - 1}")
    classifier.check_labels(label)
    if guidance == 0:
        return None

    def loop(rows: slice, score: Score, noise: NoiseSource) -> Iterator[Step]:
        return sampling.run(classifier_guided(score, classifier.gradient, label[rows], weight=guidance), noise)

    return loop


def last_images(batches: Iterator[Batch], count: int, steps: int, *, progress: bool) -> Iterator[NDArray[np.float32]]:
    """Runs batches to their ends: the images of each, ``[N, C, H, W]`` in [0, 1].

    Args:
        batches: of :func:`batches_of`.
        count: images of all batches.
        steps: of an image, 0 where it is not known before.
        progress: show how far it is on standard error: a bar on a terminal, else a line each half minute.
    """
    with ImagesBar(count, show=progress) as bar:
        for batch in batches:
            for step in bar.over(batch.steps, len(batch.seeds), steps):   # noqa: B007  # the last one is the result
                pass
            yield np.clip(step.x_mean, 0, 1)


def check_latents(latents: NDArray[np.float32], image_shape: tuple[int, int, int]) -> None:
    """``InputError`` where latents are not finite float32 ``[N, C, H, W]`` with N >= 1."""
    if not is_array(latents):
        raise InputError(f"latents is {type(latents).__name__}, expected a numpy array")
    if latents.dtype != np.float32 or latents.shape[1:] != image_shape or len(latents) == 0:
        raise InputError(f"latents is {latents.dtype} {list(latents.shape)}, expected float32 "
                         f"[N, {', '.join(map(str, image_shape))}] with N >= 1")
    if not np.isfinite(latents).all():
        raise InputError("latents holds NaN or infinity, expected finite numbers")


def _request(model: ScoreModel, sampling: Sampling | None, **asked: Any) -> Sampling:
    """The request as it was resolved, of this model, or what was asked for, resolved: not both."""
    checked_model(model)
    if sampling is None:
        return resolve(model.metadata, **asked)
    if not isinstance(sampling, Sampling):
        raise InputError(f"sampling is {one_line(sampling)}, expected what sde_onnx.resolve returns")
    if named := [name for name, value in asked.items() if value not in (None, {})]:
        raise InputError(f"sampling says how already: leave out {', '.join(named)}")
    sampling.check_model(model.metadata)
    return sampling


def label_of(seeds: Sequence[int], labels: LabelsInTurn) -> NDArray[np.int64] | None:
    """The label of each seed, ``[N]``: of several labels number ``seed % len(labels)``, whatever stands beside it."""
    if labels is None:
        return None
    several = np.atleast_1d(as_labels(labels))
    if several.ndim != 1 or several.size == 0 or several.max() >= 2**63:
        raise InputError(f"labels is {one_line(labels)}, expected a whole number or a list of them")
    return np.array([several[seed % len(several)] for seed in seeds], np.int64)


def steps_of(
    model: ScoreModel, noise: NoiseSource, images: int, sampling: Sampling, *, label: NDArray[np.int64] | None = None,
    loop: Callable[[Score, NoiseSource], Iterator[Step]] | None = None,
) -> Iterator[Step]:
    """The steps of a request: in the loop on the device, where the file has one and the solver a plan, or on the host.

    Args:
        model: a loaded model file.
        noise: returns the next standard normal array ``[N, C, H, W]`` at each call.
        images: N.
        sampling: how.
        label: of each image, of a model that has labels.
        loop: what runs on the host in place of the request's own.

    Raises:
        NonFiniteError: NaN or infinity appeared. Nothing is computed before the first step is asked for.
    """
    if loop is None and model.loop_for is not None and sampling.plan is not None and not sampling.wrappers:
        return _on_the_device(model.loop_for, sampling.plan, noise, images)
    score: Score = model if label is None else partial(model, label=label)
    for name in sampling.wrappers:
        score = WRAPPERS[name](score)
    return (loop or sampling.run)(score, noise)


def _on_the_device(
    loop_for: Callable[[int, int], DeviceLoop], plan: Plan, noise: NoiseSource, images: int
) -> Iterator[Step]:
    """The steps of a loop that is opened when the first of them is asked for."""
    yield from loop_for(images, room_for(len(plan.evaluations))).run(plan, noise)


def choose_batch_size(model: ScoreModel, images: int, asked: int | None, *, images_depend: bool = False) -> int:
    """Returns how many images to sample at a time: as asked, or by their size, and no more than fit into memory.

    Args:
        model: a loaded model file.
        images: to be sampled in all.
        asked: by the user, or ``None``.
        images_depend: whether an image depends on its batch, which then must not be split.

    Raises:
        InputError: less than 1, or more than fit where an image depends on its batch.
    """
    size = checked_batch_size(asked) or default_batch_size(model.metadata.image_shape)
    size = min(size, images)
    free = None if model.provider in ON_A_GPU else available_memory()
    need = image_memory(model.metadata)
    if free is None or size * need <= free or size == 1:
        return size
    fits = max(1, free // need)
    said = f"{size} images at a time need about {size * need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    if images_depend:
        raise InputError(f"{said}, and a smaller batch gives other images here: ask for one with --batch-size")
    warnings.warn(f"{said}: {fits} at a time", BatchSizeWarning, stacklevel=3)
    return fits


def default_batch_size(image_shape: tuple[int, int, int]) -> int:
    """Images to sample at a time: 64 at 32x32 and below, 2 at 256x256, 1 at 1024x1024."""
    return max(1, min(64, VALUES_A_BATCH // int(np.prod(image_shape))))

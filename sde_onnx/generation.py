"""Seeds to images: the model's own defaults, batches, and the noise that makes batches not matter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sde_onnx.device_loop import DeviceLoop
from sde_onnx.errors import InputError
from sde_onnx.memory import available_memory, image_memory
from sde_onnx.noise import NoiseSource, PortableNoise, check_seeds
from sde_onnx.samplers import Step
from sde_onnx.session import ON_A_GPU, ScoreModel
from sde_onnx.solvers import start_solver, step_count, what_is_meant
from sde_onnx.tables import SolverTable, solver_table
from sde_onnx.threads import available_cores

__all__ = ["Batch", "choose_batch_size", "default_batch_size", "sample", "sample_batches", "solver_steps"]

# Values of x in a batch: enough to fill the cores of a CPU, few enough that activations (some hundred times x) fit.
VALUES_A_BATCH = 1 << 19


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
    batch_size: int | None = None,
    progress: bool = False,
    **options: Any,
) -> NDArray[np.float32]:
    """Samples one image for each seed.

    Args:
        model: a loaded model file.
        seeds: 0 to 2^64 - 1 each. An image depends on its own seed alone, unless ``langevin_norm`` is ``"batch"`` or
            the solver ``"rk45"``, whose steps suit the whole batch.
        steps: noise levels; the solver's own number, or for ``"pc"`` the model's, if not given.
        solver: a key of :data:`sde_onnx.solvers.SOLVERS`; ``"pc"`` is the paper's.
        quality: in place of both, a key of :data:`sde_onnx.solvers.QUALITIES`; ``"balanced"`` if none of the three is
            given.
        batch_size: images at a time, >= 1; chosen by their size if not given. What does not fit into memory is split,
            with a ``ResourceWarning``.
        progress: show a progress bar on standard error if it is a terminal.
        options: of the solver, by the names in its entry of SOLVERS. ``"pc"`` has those of
            :func:`sde_onnx.samplers.predictor_corrector`, of which ``snr`` and ``n_corrector`` are the model's own if
            not given; the others those of :mod:`sde_onnx.fixed_steps`, and ``schedule`` and ``rho``, or those of
            :mod:`sde_onnx.adaptive`.

    Returns:
        ``[N, C, H, W]`` float32 in [0, 1].

    Raises:
        InputError: an argument out of its range, or an option that the solver does not have.
        NonFiniteError: NaN or infinity appeared.
    """
    solver, steps, options = what_is_meant(quality, solver, steps, options)
    batches = sample_batches(model, seeds, steps, solver=solver, batch_size=batch_size, **options)
    total = len(seeds) * step_count(solver, model.metadata.schedule, steps)
    images = []
    with tqdm(total=total or None, unit="step", disable=None if progress else True) as bar:
        for batch in batches:
            for step in batch.steps:   # noqa: B007  # the last one is the result
                bar.update(len(batch.seeds))
            images.append(np.clip(step.x_mean, 0, 1))
    return np.concatenate(images)


def sample_batches(
    model: ScoreModel,
    seeds: Sequence[int],
    steps: int | None = None,
    *,
    solver: str | None = None,
    quality: str | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Iterator[Batch]:
    """Returns the batches of :func:`sample`, each an iterator over its steps, for whoever wants to see them.

    Arguments and errors are those of :func:`sample`; they are checked before the first batch.
    """
    metadata = model.metadata
    check_seeds(seeds)
    solver, steps, options = what_is_meant(quality, solver, steps, options)
    size = choose_batch_size(model, len(seeds), batch_size, images_depend=options.get("langevin_norm") == "batch")
    threads = 1 if model.loop_for is None else available_cores() or 1   # where a GPU does the rest, the cores are free

    def start(chunk: Sequence[int]) -> Batch:
        noise = PortableNoise(chunk, metadata.image_shape, threads=threads)
        return Batch(list(chunk), solver_steps(model, noise, len(chunk), solver=solver, steps=steps, options=options))

    chunks = [seeds[first : first + size] for first in range(0, len(seeds), size)]
    start(chunks[0])   # bad arguments raise here; nothing is computed before the steps are asked for
    return map(start, chunks)


def solver_steps(
    model: ScoreModel, noise: NoiseSource, batch: int, *, solver: str, steps: int | None, options: Mapping[str, Any]
) -> Iterator[Step]:
    """The steps of a solver: in the loop on the device, where the file has one and the solver a table, or on the host.

    Args:
        model: a loaded model file; it decides ``snr`` and ``n_corrector`` where the options do not.
        noise: returns the next standard normal array ``[N, C, H, W]`` at each call.
        batch: N.
        solver, steps, options: see :func:`sample`.

    Raises:
        InputError: see :func:`sample`; at once, while nothing is computed before the first step is asked for.
    """
    metadata = model.metadata
    arguments: dict[str, Any] = {"model_options": metadata.solver_options, "options": options}
    table = None if model.loop_for is None else solver_table(solver, metadata.schedule, steps, **arguments)
    if table is None or model.loop_for is None:
        return start_solver(solver, model, noise, metadata.schedule, steps, **arguments)
    return _on_the_device(model.loop_for, table, noise, batch)


def _on_the_device(
    loop_for: Callable[[int, int], DeviceLoop], table: SolverTable, noise: NoiseSource, batch: int
) -> Iterator[Step]:
    """The steps of a loop that is opened when the first of them is asked for."""
    rows = 1 << (len(table.evaluations) - 1).bit_length()   # few sizes, so that a captured graph serves again
    yield from loop_for(batch, rows).run(table, noise)


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
    size = default_batch_size(model.metadata.image_shape) if asked is None else asked
    if size < 1:
        raise InputError(f"batch_size is {size}, expected at least 1")
    size = min(size, images)
    free = None if model.provider in ON_A_GPU else available_memory()
    need = image_memory(model.metadata)
    if free is None or size * need <= free or size == 1:
        return size
    fits = max(1, free // need)
    told = f"{size} images at a time need about {size * need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    if images_depend:
        raise InputError(f"{told}, and with langevin_norm 'batch' a smaller batch gives other images: sample fewer")
    warnings.warn(f"{told}: {fits} at a time", ResourceWarning, stacklevel=3)
    return fits


def default_batch_size(image_shape: tuple[int, int, int]) -> int:
    """Images to sample at a time: 64 at 32x32 and below, 2 at 256x256, 1 at 1024x1024."""
    return max(1, min(64, VALUES_A_BATCH // int(np.prod(image_shape))))

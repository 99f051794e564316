"""``sde-onnx restore``."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sde_onnx.cli.options import (
    OutputPath,
    given,
    label_list,
    method_options,
    note_shard,
    notes,
    request_options,
    resize_option,
    runtime_options,
    seed_list,
    shard_option,
    solver_options,
    split_model,
)
from sde_onnx.errors import counted
from sde_onnx.generate.shards import Shard
from sde_onnx.guidance.methods import METHODS, SOLVER

if TYPE_CHECKING:
    from sde_onnx.runtime.score_model import ScoreModel

__all__ = ["restore_command"]


@click.command("restore")
@click.argument("model_and_pictures", metavar="[MODEL] PICTURES...", nargs=-1, required=True, callback=split_model,
                type=click.Path(path_type=Path))
@click.option("--operator", required=True, metavar="OPERATOR[,...]",
              help="What the pictures went through: mask:FILE (white is known), box:X,Y,WIDTH,HEIGHT (is missing), "
                   "random:SHARE (is missing), gray, down:FACTOR, bicubic:FACTOR, blur:SIGMA, kernel:FILE; several, "
                   "one after another.")
@click.option("--degrade", is_flag=True, help="The pictures are clean: send them through the operator first.")
@click.option("--noise", type=click.FloatRange(min=0), default=0.0,
              help="Standard deviation of the measurement's noise, white is 1. --degrade adds it.")
@click.option("--method", type=click.Choice(list(METHODS)), show_default="posterior with a gradient, else null-space",
              help="How to restore.")
@click.option("--gradient", type=click.Path(path_type=Path), show_default="the bundled one, or MODEL if it is one",
              help="The gradient file of MODEL.")
@click.option("--seeds", callback=seed_list, default="0-7", metavar="LIST",
              help="A restoration for each: 7, 0-63, 0-3,8.")
@click.option("--label", "labels", callback=label_list, metavar="LIST",
              help="Of a model with labels: 3, or 0-9, which seeds take in turn.")
@resize_option
@method_options
@partial(request_options, default=f"none, but solver {SOLVER}")
@click.option("--batch-size", type=click.IntRange(min=1), show_default="by the images' size",
              help="Images at a time.")
@click.option("-o", "--output", type=OutputPath(file_okay=False, path_type=Path), default="restored",
              help="The folder: NAME.png is the panel of a picture, NAME/SEED.png its restorations.")
@click.option("--zoom", type=click.IntRange(1, 64), default=1, help="Enlarge the pixels of panels.")
@shard_option
@solver_options
@runtime_options
@click.option("--force", is_flag=True, help="Replace existing files.")
def restore_command(
    model_and_pictures: tuple[Path | None, list[Path]],
    operator: str,
    degrade: bool,
    noise: float,
    method: str | None,
    gradient: Path | None,
    seeds: list[int],
    labels: list[int] | None,
    resize: bool,
    quality: str | None,
    solver: str | None,
    steps: int | None,
    batch_size: int | None,
    output: Path,
    zoom: int,
    shard: Shard,
    provider: str,
    precision: str | None,
    threads: int | None,
    force: bool,
    **options: Any,
) -> None:
    """Restore pictures with missing parts or colours, small or blurred ones; with the bundled digits without MODEL.

    PICTURES are what the operator has left of images: files, folders of them, or .npz with an array `images`. A panel
    shows the measurement, the restorations, their mean, and their standard deviation: where it is bright the model does
    not know. A run that was stopped goes on where it was.

    \b
    Example: sde-onnx restore celebahq.onnx old.png --operator mask:scratches.png --seeds 0-7 -o restored/
             sde-onnx restore celebahq.onnx clean/ --degrade --operator blur:3,down:4 --noise 0.05
    """
    import time

    import numpy as np

    from sde_onnx.cli.outputs import RestoredPicture, picture_paths
    from sde_onnx.files import sha256
    from sde_onnx.generate.sample import default_batch_size
    from sde_onnx.generate.seeds import format_seeds
    from sde_onnx.guidance.measuring import degrade as degraded
    from sde_onnx.guidance.measuring import hidden_by
    from sde_onnx.image_files import digest, in_data_units, picture_files, read_images
    from sde_onnx.models import bundled_model
    from sde_onnx.operators.given import operator_for
    from sde_onnx.operators.text import files_of
    from sde_onnx.progress import ImagesBar
    from sde_onnx.restoration import resolve_restoration, restore_batches
    from sde_onnx.runtime.load import load

    given_model, paths = model_and_pictures
    model, pictures = given_model or bundled_model(), picture_files(paths)
    with notes():
        score_model = load(model, provider, precision=precision, threads=threads)
    image_shape = score_model.metadata.image_shape
    linear = operator_for(operator, image_shape)
    if degrade:
        names, images = read_images(pictures, image_shape, resize=resize)
    else:
        hidden = hidden_by(linear, image_shape)
        names, images = read_images(pictures, hidden.shape, resize=resize, noisy=True,
                                    wanted=f"measurements by {operator}")
        images = np.where(hidden, images.dtype.type(0), images)   # which is not read, and may be anything
    clean = images if degrade else None
    if degrade:
        digests = [hashlib.sha256(os.fsencode(name)).hexdigest() for name in names]
        by_name = [int(digest[:16], 16) for digest in digests]   # whatever is beside it
        images = degraded(in_data_units(images), linear, by_name, noise=noise)
    with notes():   # which may take minutes to make
        gradient = gradient or _gradient_of(score_model, given_model, method)
        gradient_model = None if gradient is None else load(gradient, provider, precision=precision, threads=threads)
    restoration = resolve_restoration(
        score_model.metadata, has_gradient=score_model.metadata.gradient or gradient is not None, method=method,
        solver=solver, quality=quality, steps=steps, options=given(options))
    batch_size = batch_size or default_batch_size(image_shape)
    settings = {
        "model": sha256(model), "gradient": gradient and sha256(gradient), "precision": score_model.precision,
        "operator": operator, "operator_files": [sha256(path) for path in files_of(operator)], "noise": noise,
        "labels": labels and format_seeds(labels), **restoration.to_json(),
    }
    panels = picture_paths(output, names, force=True, inputs=[model, *paths, *pictures, *files_of(operator)])
    mine = slice(shard.index, None, shard.count)   # every so many pictures, and each of them whole
    note_shard(shard, len(names[mine]), len(names), "pictures")
    panels, names, images, clean = panels[mine], names[mine], images[mine], None if clean is None else clean[mine]
    outputs = [RestoredPicture(path, zoom=zoom, force=force) for path in panels]
    with notes():
        batches = [restore_batches(score_model, measurement, linear, seeds, restoration, noise=noise,
                                   gradient=gradient_model, labels=labels, batch_size=batch_size)
                   for measurement in images]
    start, done, nfe, asked = time.monotonic(), 0, 0, len(seeds) * len(names)
    count = restoration.sampling.steps or 0
    begun = [partial(run.begun, {**settings, "measurement": digest(measurement)}, seeds,
                     batch_size, depends_on_batch=restoration.sampling.depends_on_batch)
             for run, measurement in zip(outputs, images, strict=True)]
    for begin in begun:
        with begin():   # refuses what it must before anything is sampled
            pass
    with ImagesBar(asked) as bar:
        for place, (run, measurement) in enumerate(zip(outputs, images, strict=True)):
            with begun[place]():
                for batch, is_there in run.turns(batches[place]):
                    if is_there:
                        bar.skip(len(batch.seeds))
                        continue
                    for step in bar.over(batch.steps, len(batch.seeds), count):   # noqa: B007  # the last one is the result
                        pass
                    done, nfe = done + run.write(batch.seeds, step.x_mean), max(nfe, step.nfe)
            bar.write(run.panel(seeds, measurement, None if clean is None else clean[place]))
    if done < asked:
        click.echo(f"{asked - done} of {asked} images were there already")
    if done:
        product_for = METHODS[restoration.method].product_for
        click.echo(f"{counted(done, 'image')}, {restoration}, nfe {nfe}"
                   f"{f' with {restoration.products} products {product_for}' * bool(restoration.products)}, "
                   f"{score_model.provider} {score_model.precision}, {time.monotonic() - start:.1f} s")


def _gradient_of(model: ScoreModel, given_model: Path | None, method: str | None) -> Path | None:
    """The gradient file of a model where the user names none: the bundled one, or one that is made if it is needed."""
    from sde_onnx.extras import has_export
    from sde_onnx.models import bundled_gradient

    needs_one = method is not None and METHODS[method].needs_gradient
    if given_model is None:
        return bundled_gradient() if needs_one or method is None else None
    if model.metadata.gradient or not needs_one or not has_export():
        return None
    from sde_onnx.export.cache import cached_gradient

    return cached_gradient(given_model)

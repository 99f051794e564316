"""``sde-onnx edit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sde_onnx.cli.options import (
    OutputPath,
    given,
    label_list,
    notes,
    picture_options,
    request_options,
    runtime_options,
    seed_list,
    solver_options,
)
from sde_onnx.errors import counted

__all__ = ["edit_command"]


@click.command("edit")
@picture_options
@click.option("--sigma", type=click.FloatRange(min=0, min_open=True), required=True,
              help="Noise to start from: the more, the freer. Data are in [0, 1].")
@click.option("--seeds", callback=seed_list, default="0", metavar="LIST",
              help="An edit of every picture for each: 0-3.")
@click.option("--label", "labels", callback=label_list, metavar="LIST",
              help="Of a model with labels: 3, or 0-9, which seeds take in turn.")
@request_options
@click.option("--batch-size", type=click.IntRange(min=1), show_default="by the images' size",
              help="Images at a time.")
@click.option("-o", "--output", type=OutputPath(file_okay=False, path_type=Path), required=True,
              help="The folder of PNGs, NAME-SEED.png.")
@solver_options
@runtime_options
@click.option("--force", is_flag=True, help="Replace existing files.")
def edit_command(
    model_and_pictures: tuple[Path | None, list[Path]],
    resize: bool,
    sigma: float,
    seeds: list[int],
    labels: list[int] | None,
    quality: str | None,
    solver: str | None,
    steps: int | None,
    batch_size: int | None,
    output: Path,
    provider: str,
    precision: str | None,
    threads: int | None,
    force: bool,
    **options: Any,
) -> None:
    """Add noise to pictures and sample from there (SDEdit); with the bundled digits without MODEL (a .onnx).

    PICTURES are files, folders of them, or .npz with an array `images`. Sketches and collages will do. A run that was
    stopped goes on where it was.

    \b
    Example: sde-onnx edit celebahq.onnx sketch.png --sigma 0.7 --seeds 0-3 -o faces/
    """
    from sde_onnx.cli.outputs import picture_paths
    from sde_onnx.cli.unfinished import UnfinishedRun
    from sde_onnx.codes import edit_batches, resolve_edit
    from sde_onnx.files import sha256
    from sde_onnx.image_files import digest, picture_files, read_images
    from sde_onnx.images import save_png, to_uint8
    from sde_onnx.models import bundled_model
    from sde_onnx.runtime.load import load

    given_model, paths = model_and_pictures
    model, pictures = given_model or bundled_model(), picture_files(paths)
    with notes():
        score_model = load(model, provider, precision=precision, threads=threads)
    names, images = read_images(pictures, score_model.metadata.image_shape, resize=resize)
    sampling = resolve_edit(score_model.metadata, sigma, solver=solver, quality=quality, steps=steps,
                            options=given(options))
    settings = {"model": sha256(model), "precision": score_model.precision, "sigma": sigma, **sampling.to_json(),
                "names": names, "images": digest(images), "seeds": seeds,
                "labels": labels, "batch_size": batch_size if sampling.depends_on_batch else None}
    images, each = images.repeat(len(seeds), axis=0), seeds * len(names)
    run = UnfinishedRun(output, settings, images.shape)
    outputs = picture_paths(output, [f"{name}-{seed:06d}" for name in names for seed in seeds],
                            force=force or run.began_to_write, inputs=[model, *paths, *pictures])
    edited = run.complete(lambda left: edit_batches(score_model, images[left], each[left], sampling, labels=labels,
                                                     batch_size=batch_size, progress=True))
    for path, picture in zip(outputs, to_uint8(edited), strict=True):
        save_png(path, picture)
    run.remove()
    click.echo(f"{output}: {counted(len(outputs), 'image')}, from sigma {sigma:g}")

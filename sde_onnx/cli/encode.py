"""``sde-onnx encode``."""

from __future__ import annotations

from pathlib import Path

import click

from sde_onnx.cli.options import (
    flow_options,
    flow_settings,
    label_option,
    labels_of,
    notes,
    picture_options,
    runtime_options,
)

__all__ = ["encode_command"]


@click.command("encode")
@picture_options
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default="codes.npz",
              help="The .npz of latents, names and settings.")
@label_option
@flow_options()
@runtime_options
@click.option("--force", is_flag=True, help="Replace an existing file.")
def encode_command(
    model_and_pictures: tuple[Path | None, list[Path]],
    resize: bool,
    output: Path,
    labels: int | list[int] | None,
    rtol: float,
    atol: float,
    steps: int | None,
    batch_size: int | None,
    provider: str,
    precision: str | None,
    threads: int | None,
    force: bool,
) -> None:
    """Turn pictures into the latents that decode to them; of the bundled digits without MODEL (a .onnx).

    PICTURES are files, folders of them, or .npz with an array `images`. A run that was stopped goes on where it was.

    \b
    Example: sde-onnx encode celebahq.onnx faces/ -o codes.npz
    """
    import json

    import numpy as np

    from sde_onnx.cli.outputs import check_names
    from sde_onnx.cli.unfinished import UnfinishedRun
    from sde_onnx.codes import encode_batches
    from sde_onnx.files import check_writable, replacing, sha256
    from sde_onnx.image_files import digest, picture_files, read_images
    from sde_onnx.models import bundled_model
    from sde_onnx.runtime.load import load

    given_model, paths = model_and_pictures
    model, pictures = given_model or bundled_model(), picture_files(paths)
    if output.suffix.lower() != ".npz":
        raise click.UsageError(f"--output {output}: expected a .npz")
    check_writable(output, force=True, inputs=[model, *pictures])
    with notes():
        score_model = load(model, provider, precision=precision, threads=threads)
    names, images = read_images(pictures, score_model.metadata.image_shape, resize=resize)
    check_names(names)   # which `decode` gives to files
    settings = {"model": sha256(score_model.path), "precision": score_model.precision,
                **flow_settings(rtol, atol, steps), "labels": labels}
    run = UnfinishedRun(output.parent, settings | {
        "output": output.name, "names": names, "images": digest(images)}, images.shape)
    check_writable(output, force=force or run.began_to_write, inputs=[model, *pictures])
    latents = run.complete(lambda left: encode_batches(
        score_model, images[left], labels=labels_of(labels, left), rtol=rtol, atol=atol,
        steps=steps, batch_size=batch_size, progress=True))
    with replacing(output) as temporary, temporary.open("wb") as file:
        np.savez(file, latents=latents, names=np.array(names), settings=np.array(json.dumps(settings)))
    run.remove()
    click.echo(f"{output}: {len(latents)} latents, standard deviation {latents.std():.4g}")

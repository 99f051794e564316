"""``sde-onnx decode``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sde_onnx.cli.options import (
    OutputPath,
    flow_options,
    flow_settings,
    label_option,
    labels_of,
    note,
    notes,
    runtime_options,
    split_model,
)
from sde_onnx.errors import InputError, counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["decode_command"]


@click.command("decode")
@click.argument("model_and_codes", metavar="[MODEL] CODES", nargs=-1, required=True, callback=split_model,
                type=click.Path(path_type=Path))
@click.option("-o", "--output", type=OutputPath(file_okay=False, path_type=Path), required=True,
              help="The folder of PNGs.")
@click.option("--denoise", is_flag=True, help="Write the denoised images at sigma_min: for latents that were drawn.")
@label_option
@flow_options()
@runtime_options
@click.option("--force", is_flag=True, help="Replace existing files.")
def decode_command(
    model_and_codes: tuple[Path | None, list[Path]],
    output: Path,
    denoise: bool,
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
    """Turn latents back into pictures, with the labels that they were encoded with if there is no other.

    A run that was stopped goes on where it was.

    \b
    Example: sde-onnx decode celebahq.onnx codes.npz -o faces-again/
    """
    from sde_onnx.cli.outputs import picture_paths
    from sde_onnx.cli.unfinished import UnfinishedRun
    from sde_onnx.codes import decode_batches
    from sde_onnx.files import sha256
    from sde_onnx.images import save_png, to_uint8
    from sde_onnx.models import bundled_model
    from sde_onnx.runtime.load import load

    given_model, files = model_and_codes
    model = given_model or bundled_model()
    if len(files) != 1:
        raise click.UsageError(f"{len(files)} files of codes, expected one")
    names, latents, settings = _read_codes(files[0])
    with notes():
        score_model = load(model, provider, precision=precision, threads=threads)
    if settings.get("model") != sha256(score_model.path):
        note(f"{files[0]} was not encoded with {score_model.path}")
    labels = settings.get("labels") if labels is None else labels
    run = UnfinishedRun(output, {
        "codes": sha256(files[0]), "model": sha256(score_model.path), "precision": score_model.precision,
        **flow_settings(rtol, atol, steps), "labels": labels, "denoise": denoise}, latents.shape)
    paths = picture_paths(output, names, force=force or run.began_to_write, inputs=[model, *files])
    images = run.complete(lambda left: decode_batches(
        score_model, latents[left], labels=labels_of(labels, left), rtol=rtol, atol=atol,
        steps=steps, denoise=denoise, batch_size=batch_size, progress=True))
    for path, picture in zip(paths, to_uint8(images), strict=True):
        save_png(path, picture)
    run.remove()
    click.echo(f"{output}: {counted(len(paths), 'image')}")


def _read_codes(path: Path) -> tuple[list[str], NDArray[np.float32], dict[str, Any]]:
    """Names, latents and settings that ``sde-onnx encode`` wrote."""
    import json

    from sde_onnx.errors import first_line
    from sde_onnx.files import UNREADABLE, arrays_of

    try:
        held = arrays_of(path, "names", "latents", "settings")
        names, latents, settings = held["names"].tolist(), held["latents"], json.loads(str(held["settings"]))
        if held["names"].dtype.kind != "U" or held["names"].ndim != 1:
            raise ValueError("its names are no list of texts")
        if len(names) != len(latents):
            raise ValueError(f"{len(names)} names for {len(latents)} latents")
        if not isinstance(settings, dict):
            raise ValueError("its settings are no JSON object")
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read as codes, expected a .npz of `sde-onnx encode`: {first_line(error)}"
                         ) from None
    return names, latents, settings

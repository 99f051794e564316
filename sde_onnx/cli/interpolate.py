"""``sde-onnx interpolate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sde_onnx.cli.options import flow_options, notes, resize_option, runtime_options
from sde_onnx.errors import counted

if TYPE_CHECKING:
    from sde_onnx.image_files import Images

__all__ = ["interpolate_command"]


@click.command("interpolate")
@click.argument("model", metavar="[MODEL]", required=False, type=click.Path(path_type=Path))
@click.option("--from", "first", required=True, metavar="PICTURE|SEED", help="Where to begin.")
@click.option("--to", "second", required=True, metavar="PICTURE|SEED", help="Where to end.")
@click.option("--frames", type=click.IntRange(min=2), default=8, help="Images, both ends among them.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default="strip.png",
              help="FILE.png (a strip) or FILE.gif (an animation).")
@click.option("--zoom", type=click.IntRange(1, 64), default=1, help="Enlarge the pixels.")
@click.option("--denoise", is_flag=True, help="Take the denoised images at sigma_min: for seeds.")
@click.option("--label", type=int, help="Of a model with labels: that of all images.")
@resize_option
@flow_options()
@runtime_options
@click.option("--force", is_flag=True, help="Replace an existing file.")
def interpolate_command(
    model: Path | None,
    first: str,
    second: str,
    frames: int,
    output: Path,
    zoom: int,
    denoise: bool,
    label: int | None,
    resize: bool,
    rtol: float,
    atol: float,
    steps: int | None,
    batch_size: int | None,
    provider: str,
    precision: str | None,
    threads: int | None,
    force: bool,
) -> None:
    """Go from one picture or seed to another, on the arc between their latents; of the bundled digits without MODEL.

    \b
    Example: sde-onnx interpolate --from 3 --to 8 --frames 9 --denoise --zoom 4 -o strip.png
    """
    from sde_onnx.codes import interpolate
    from sde_onnx.files import check_writable
    from sde_onnx.image_files import picture_files
    from sde_onnx.images import grid, save_gif, save_png, to_uint8
    from sde_onnx.models import bundled_model
    from sde_onnx.runtime.load import load

    model = model or bundled_model()
    if output.suffix.lower() not in (".png", ".gif"):
        raise click.UsageError(f"--output {output}: expected a .png or a .gif")
    pictures = [Path(end) for end in (first, second) if not end.isdecimal()]
    check_writable(output, force=force, inputs=[model, *(picture_files(pictures) if pictures else [])])
    with notes():
        score_model = load(model, provider, precision=precision, threads=threads)
    start, end = (_picture_or_seed(text, score_model.metadata.image_shape, resize=resize) for text in (first, second))
    with notes():
        images = interpolate(score_model, start, end, frames, label=label, rtol=rtol, atol=atol, steps=steps,
                             denoise=denoise, batch_size=batch_size, progress=True)
    strip = to_uint8(images)
    if output.suffix.lower() == ".png":
        save_png(output, grid(strip, zoom=zoom, columns=frames))
    else:
        save_gif(output, [grid(frame[None], zoom=zoom) for frame in strip])
    click.echo(f"{output}: {counted(frames, 'image')}")


def _picture_or_seed(text: str, image_shape: tuple[int, int, int], *, resize: bool) -> Images | int:
    from sde_onnx.image_files import read_images

    if text.isdecimal():
        return int(text)
    names, images = read_images([Path(text)], image_shape, resize=resize)
    if len(names) > 1:
        raise click.UsageError(f"{text} holds {len(names)} pictures, expected one")
    picture: Images = images[0]
    return picture

"""``sde-onnx sample``."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Literal

import click

from sde_onnx.cli.runtime import runtime_options
from sde_onnx.cli.seeds import format_seeds, parse_seeds

__all__ = ["sample_command"]


@click.command("sample")
@click.argument("model", metavar="[MODEL]", required=False, type=click.Path(path_type=Path))
@click.option("--seeds", callback=parse_seeds, default="0-15", metavar="LIST",
              help="An image for each: 7, 0-63, 0-3,8.")
@click.option("--steps", type=click.IntRange(min=1), show_default="the model's", help="Noise levels.")
@click.option("--batch-size", type=click.IntRange(min=1), show_default="by the images' size",
              help="Images at a time; they do not depend on it.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="samples.png",
              help="FILE.png (a grid if there are several), FILE.npz (float32 images and seeds), or a folder of PNGs.")
@click.option("--grid", is_flag=True, help="With a folder: also a grid.png of all images.")
@click.option("--gif", type=click.Path(dir_okay=False, path_type=Path), help="Also an animation of the denoising.")
@click.option("--zoom", type=click.IntRange(1, 64), default=1, help="Enlarge the pixels of grids and animations.")
@click.option("--snr", type=float, show_default="the model's", help="The corrector's signal-to-noise ratio.")
@click.option("--corrector-steps", type=click.IntRange(min=0), show_default="the model's", help="Corrections a step.")
@click.option("--langevin-norm", type=click.Choice(["image", "batch"]), default="image",
              help="Norms of each image, or averaged over the batch as the reference does.")
@runtime_options
@click.option("--force", is_flag=True, help="Replace existing files.")
def sample_command(
    model: Path | None,
    seeds: list[int],
    steps: int | None,
    batch_size: int | None,
    output: Path,
    grid: bool,
    gif: Path | None,
    zoom: int,
    snr: float | None,
    corrector_steps: int | None,
    langevin_norm: Literal["image", "batch"],
    provider: str,
    precision: str,
    threads: int | None,
    force: bool,
) -> None:
    """Sample a model file; the bundled digits without MODEL.

    \b
    Example: sde-onnx sample --seeds 0-63 --steps 500 -o digits.png --gif denoising.gif
    """
    from tqdm import tqdm

    from sde_onnx.cli.outputs import plan_outputs
    from sde_onnx.generation import sample_batches
    from sde_onnx.models import bundled_model
    from sde_onnx.session import load

    outputs = plan_outputs(output, seeds, grid=grid, gif=gif, zoom=zoom, force=force)
    score_model = load(model or bundled_model(), provider, precision=precision, threads=threads)
    steps = steps or score_model.metadata.schedule.num_scales
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        batches = sample_batches(
            score_model, seeds, steps, batch_size=batch_size, snr=snr, n_corrector=corrector_steps,
            langevin_norm=langevin_norm,
        )
    for warning in told:
        click.echo(f"Note: {warning.message}", err=True)
    start = time.monotonic()
    with tqdm(total=len(seeds) * steps, unit="step", disable=None) as bar:
        for batch in batches:
            for step in batch.steps:
                outputs.see(step, steps)
                bar.update(len(batch.seeds))
            outputs.finish(step)
    seconds = time.monotonic() - start
    for path in outputs.write():
        click.echo(path)
    click.echo(
        f"{len(seeds)} images, seeds {format_seeds(seeds)}, {steps} steps, nfe {step.nfe}, "
        f"{score_model.provider} {score_model.precision}, {seconds:.1f} s"
    )

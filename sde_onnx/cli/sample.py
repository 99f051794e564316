"""``sde-onnx sample``."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from sde_onnx.cli.runtime import notes, runtime_options
from sde_onnx.cli.seeds import format_seeds, parse_seeds
from sde_onnx.cli.solving import QUALITY_NAMES, SOLVER_NAMES, solver_options

__all__ = ["sample_command"]


@click.command("sample")
@click.argument("model", metavar="[MODEL]", required=False, type=click.Path(path_type=Path))
@click.option("--seeds", callback=parse_seeds, default="0-15", metavar="LIST",
              help="An image for each: 7, 0-63, 0-3,8.")
@click.option("--quality", type=click.Choice(list(QUALITY_NAMES)), show_default="balanced",
              help="A solver and its steps: 12 evaluations an image, 25, or the paper's sampler at its own length.")
@click.option("--solver", type=click.Choice(list(SOLVER_NAMES)), show_default="the quality's", help="How to sample.")
@click.option("--steps", type=click.IntRange(min=1), show_default="the quality's, the solver's, or the model's",
              help="Noise levels.")
@click.option("--batch-size", type=click.IntRange(min=1), show_default="by the images' size",
              help="Images at a time; they do not depend on it.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="samples.png",
              help="FILE.png (a grid if there are several), FILE.npz (float32 images and seeds), or a folder of PNGs.")
@click.option("--shards", is_flag=True, help="With a folder: a .npz (float32 images and seeds) a batch, not PNGs.")
@click.option("--grid", is_flag=True, help="With a folder: also a grid.png of all images.")
@click.option("--gif", type=click.Path(dir_okay=False, path_type=Path), help="Also an animation of the denoising.")
@click.option("--zoom", type=click.IntRange(1, 64), default=1, help="Enlarge the pixels of grids and animations.")
@solver_options
@runtime_options
@click.option("--force", is_flag=True, help="Replace existing files.")
def sample_command(
    model: Path | None,
    seeds: list[int],
    quality: str | None,
    solver: str | None,
    steps: int | None,
    batch_size: int | None,
    output: Path,
    shards: bool,
    grid: bool,
    gif: Path | None,
    zoom: int,
    provider: str,
    precision: str | None,
    threads: int | None,
    force: bool,
    **options: Any,
) -> None:
    """Sample a model file; the bundled digits without MODEL.

    \b
    Example: sde-onnx sample --seeds 0-63 --quality reference -o digits.png --gif denoising.gif
    """
    from tqdm import tqdm

    from sde_onnx.cli.outputs import plan_outputs
    from sde_onnx.files import sha256
    from sde_onnx.generation import choose_batch_size, sample_batches
    from sde_onnx.models import bundled_model
    from sde_onnx.session import load
    from sde_onnx.solvers import step_count, what_is_meant

    if quality is not None and (solver is not None or steps is not None):
        raise click.UsageError("--quality chooses the solver and its steps: leave out --solver and --steps")
    model = model or bundled_model()
    outputs = plan_outputs(output, seeds, model=model, shards=shards, grid=grid, gif=gif, zoom=zoom, force=force)
    with notes():
        score_model = load(model, provider, precision=precision, threads=threads)
    given = {name: value for name, value in options.items() if value is not None}
    solver, steps, options = what_is_meant(quality, solver, steps, given)
    count = step_count(solver, score_model.metadata.schedule, steps)
    depend = options.get("langevin_norm") == "batch"
    with notes():
        batch_size = choose_batch_size(score_model, len(seeds), batch_size or outputs.batch_size, images_depend=depend)
        batches = sample_batches(score_model, seeds, steps, solver=solver, batch_size=batch_size, **options)
    outputs.begin({
        "sde_onnx": version("sde-onnx"), "model": sha256(score_model.path), "provider": score_model.provider,
        "precision": score_model.precision, "solver": solver, "steps": count, "options": options,
        "batch_size": batch_size, "seeds": format_seeds(seeds) if depend else None,
    })
    resumed = nfe = 0
    start = time.monotonic()
    with tqdm(total=len(seeds) * count or None, unit="step", disable=None) as bar:
        for batch in batches:
            if outputs.has(batch.seeds):
                bar.update(len(batch.seeds) * count)
                resumed += len(batch.seeds)
                continue
            for step in batch.steps:
                outputs.see(step, count)
                bar.update(len(batch.seeds))
            outputs.finish(batch.seeds, step)
            nfe = max(nfe, step.nfe)
    seconds = time.monotonic() - start
    for path in outputs.write():
        click.echo(path)
    if resumed:
        click.echo(f"{resumed} of {len(seeds)} images were there already")
    if resumed == len(seeds):
        return
    chosen = "".join(f" {name} {value}" for name, value in options.items())
    click.echo(
        f"{len(seeds) - resumed} images, seeds {format_seeds(seeds)}, {solver}{chosen}, {count or 'adaptive'} steps, "
        f"nfe {nfe}, {score_model.provider} {score_model.precision}, {seconds:.1f} s"
    )

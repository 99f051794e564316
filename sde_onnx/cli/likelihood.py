"""``sde-onnx likelihood``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sde_onnx.cli.options import (
    flow_options,
    label_option,
    labels_of,
    note_shard,
    notes,
    picture_options,
    runtime_options,
    shard_option,
)
from sde_onnx.extras import has_export, require_matplotlib
from sde_onnx.generate.shards import Shard
from sde_onnx.solvers.options import FLOW_TOLERANCE, LIKELIHOOD_STEPS, PROBE_KINDS

if TYPE_CHECKING:
    from sde_onnx.runtime.score_model import ScoreModel

__all__ = ["likelihood_command"]


@click.command("likelihood")
@picture_options
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default="likelihood.csv",
              help="The .csv or .json: each image and the mean.")
@click.option("--probes", type=click.IntRange(min=1), default=2,
              help="Estimates of an image's divergence, each an evaluation more; their spread is its standard error.")
@click.option("--dequantizations", type=click.IntRange(min=1), default=1,
              help="How often each 8-bit picture is measured, with other noise below its last bit.")
@click.option("--kind", type=click.Choice(PROBE_KINDS), default=PROBE_KINDS[0], help="Of the probes.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the first image; the others follow.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path),
              help="Also a histogram, .png, .svg or .pdf. Needs matplotlib.")
@label_option
@shard_option
@flow_options(usual_steps=LIKELIHOOD_STEPS)
@runtime_options
@click.option("--force", is_flag=True, help="Replace existing files, and begin anew.")
def likelihood_command(
    model_and_pictures: tuple[Path | None, list[Path]],
    resize: bool,
    output: Path,
    probes: int,
    dequantizations: int,
    kind: str,
    seed: int,
    plot: Path | None,
    labels: int | list[int] | None,
    shard: Shard,
    rtol: float | None,
    atol: float | None,
    steps: int | None,
    batch_size: int | None,
    provider: str,
    precision: str | None,
    threads: int | None,
    force: bool,
) -> None:
    """Measure how likely a model finds pictures, in bits per dimension; the bundled digits without MODEL (a .onnx).

    PICTURES are files, folders of them, or .npz with an array `images`. MODEL is one that `sde-onnx gradient` has made;
    of another, the gradient is made into the cache, where the export extra is installed. A run that was stopped goes on
    where it was.

    \b
    Example: sde-onnx likelihood celebahq-gradient.onnx faces/ -o faces.csv --plot faces.png
    """
    from sde_onnx.cli.measurements import PLOTS, WRITERS, Measurements, plot_histogram
    from sde_onnx.files import check_writable, sha256
    from sde_onnx.image_files import digest, picture_files, read_images
    from sde_onnx.likelihood import log_likelihood_batches
    from sde_onnx.models import bundled_gradient

    for path, endings in ((output, WRITERS), (plot, PLOTS)):
        if path is not None and path.suffix not in endings:
            raise click.UsageError(f"{path} does not end in {', '.join(endings)}")
    if force and shard.count > 1:
        raise click.UsageError("--force would drop what other shards have measured: remove the output first")
    given_model, paths = model_and_pictures
    model, pictures = given_model or bundled_gradient(), picture_files(paths)
    if plot is not None:
        require_matplotlib()
        check_writable(plot, force=force, inputs=[model, output, *pictures])
    check_writable(output, force=force, inputs=[model, *pictures])
    with notes():
        score_model = _with_gradient(model, provider, precision, threads)
    names, images = read_images(pictures, score_model.metadata.image_shape, resize=resize)
    if isinstance(labels, list) and len(labels) != len(names):
        raise click.UsageError(f"{len(labels)} labels for {len(names)} pictures: give one, or one for each")
    if steps is None and rtol is None and atol is None:
        steps = LIKELIHOOD_STEPS
    elif steps is None:   # so that a default that is typed makes the same run
        rtol, atol = (FLOW_TOLERANCE if value is None else value for value in (rtol, atol))
    settings = {"model": sha256(model), "images": digest(images), "precision": score_model.precision, "probes": probes,
                "dequantizations": dequantizations, "kind": kind, "seed": seed, "labels": labels, "steps": steps,
                "rtol": rtol, "atol": atol}
    run = Measurements(output, settings, names, score_model.metadata.schedule.sigma_min, shard=shard, force=force)
    note_shard(shard, len(run.mine), len(names), "pictures")
    if run.finished:
        click.echo(f"{run.finished} of {len(run.mine)} images were measured already")
    left = slice(run.mine.start + run.finished, run.mine.stop)
    with notes():
        batches = log_likelihood_batches(
            score_model, images[left], range(seed, seed + len(names))[left], probes=probes,
            dequantizations=dequantizations, kind=kind, steps=steps, rtol=rtol, atol=atol,
            labels=labels_of(labels, left), batch_size=batch_size, progress=True,
        ) if run.finished < len(run.mine) else iter(())
    for batch in batches:
        run.add(batch)
    for line in run.write():
        click.echo(line)
    if plot is not None and run.is_whole:
        plot_histogram(run.rows, plot)
        click.echo(plot)


def _with_gradient(model: Path, provider: str, precision: str | None, threads: int | None) -> ScoreModel:
    """The loaded file, or that of its gradient, which is made if it was not before."""
    from sde_onnx.runtime.load import load

    found = load(model, provider, precision=precision, threads=threads)
    if found.metadata.gradient or not has_export():
        return found
    from sde_onnx.export.cache import cached_gradient

    return load(cached_gradient(model), provider, precision=precision, threads=threads)

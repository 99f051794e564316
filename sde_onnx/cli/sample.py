"""``sde-onnx sample``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sde_onnx.cli.options import (
    OutputPath,
    given,
    label_list,
    note_shard,
    notes,
    request_options,
    runtime_options,
    seed_list,
    shard_option,
    solver_options,
)
from sde_onnx.errors import counted
from sde_onnx.generate.seeds import format_seeds
from sde_onnx.generate.shards import WHOLE, Shard
from sde_onnx.solvers.options import GUIDANCE

if TYPE_CHECKING:
    from sde_onnx.cli.outputs import SampleOutput
    from sde_onnx.solvers.catalogue import Sampling

__all__ = ["sample_command"]

BATCHES_AN_ACTOR = 4   # on Ray, at least: so that none waits long for the last


@click.command("sample")
@click.argument("model", metavar="[MODEL]", required=False, type=click.Path(path_type=Path))
@click.option("--seeds", callback=seed_list, default="0-15", metavar="LIST",
              help="An image for each: 7, 0-63, 0-3,8.")
@click.option("--label", "labels", callback=label_list, metavar="LIST",
              help="Of a model with labels or of a classifier: 3, or 0-9, which seeds take in turn (seed 13 the 4th "
                   "of ten).")
@click.option("--classifier", type=click.Path(dir_okay=False, path_type=Path),
              show_default="the bundled one for the bundled digits",
              help="Guides a model without labels: an .onnx of x, sigma and v to logits and vjp.")
@click.option("--guidance", type=click.FloatRange(min=0), show_default=f"{GUIDANCE:g}",
              help="Weight of the classifier: 1 is Bayes' rule, more gives more typical images.")
@request_options
@click.option("--batch-size", type=click.IntRange(min=1), show_default="by the images' size",
              help="Images at a time.")
@click.option("-o", "--output", type=OutputPath(path_type=Path), default="samples.png",
              help="FILE.png (a grid if there are several), FILE.npz (float32 images and seeds), or a folder of PNGs.")
@click.option("--shards", is_flag=True, help="With a folder: a .npz (float32 images and seeds) a batch, not PNGs.")
@click.option("--subdirs", is_flag=True, help="With a folder: subfolders of a thousand seeds, as EDM has them.")
@click.option("--uint8", is_flag=True,
              help="With a .npz: arr_0, uint8 [N, H, W, C], which ADM's evaluator takes; no seeds.")
@click.option("--grid", is_flag=True, help="With a folder: also FOLDER.png beside it, a grid of all images.")
@click.option("--gif", type=click.Path(dir_okay=False, path_type=Path), help="Also an animation of the denoising.")
@click.option("--zoom", type=click.IntRange(1, 64), default=1, help="Enlarge the pixels of grids and animations.")
@shard_option
@click.option("--ray", is_flag=False, flag_value="auto", metavar="[ADDRESS]",
              help="Into a folder, by as many actors of --threads CPUs as a Ray cluster has room for. ADDRESS auto is "
                   "the cluster of this machine, or a new one here; MODEL stands before --ray.")
@solver_options
@runtime_options
@click.option("--force", is_flag=True, help="Replace existing files.")
def sample_command(
    model: Path | None,
    seeds: list[int],
    labels: list[int] | None,
    classifier: Path | None,
    guidance: float | None,
    quality: str | None,
    solver: str | None,
    steps: int | None,
    batch_size: int | None,
    output: Path,
    shards: bool,
    subdirs: bool,
    uint8: bool,
    grid: bool,
    gif: Path | None,
    zoom: int,
    shard: Shard,
    ray: str | None,
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
    from sde_onnx.cli.outputs import plan_outputs
    from sde_onnx.generate.sample import default_batch_size, sample_batches
    from sde_onnx.models import bundled_classifier, bundled_model
    from sde_onnx.progress import ImagesBar
    from sde_onnx.runtime.classifier import load_classifier
    from sde_onnx.runtime.load import load
    from sde_onnx.solvers.catalogue import resolve

    if model is None and labels is not None:
        classifier = classifier or bundled_classifier()
    if guidance is not None and classifier is None:
        raise click.UsageError("--guidance weighs a classifier: give --classifier, or --label for the bundled digits")
    guidance = GUIDANCE if guidance is None else guidance
    model = model or bundled_model()
    if ray is not None and shard.variables:   # of the job that Ray itself runs in
        shard = WHOLE
    outputs = plan_outputs(output, seeds, model=model, shards=shards, subdirs=subdirs, uint8=uint8, grid=grid, gif=gif,
                           zoom=zoom, shard=shard, force=force)
    if ray is not None:
        _sample_on_ray(outputs, seeds, ray, shard, batch_size=batch_size, provider=provider, precision=precision,
                       threads=threads, labels=labels, guidance=guidance,
                       request={"quality": quality, "solver": solver, "steps": steps, **given(options)},
                       model=model, classifier=classifier)
        return
    with notes():
        score_model = load(model, provider, precision=precision, threads=threads)
        guide = None if classifier is None else load_classifier(classifier, provider, threads=threads,
                                                                image_shape=score_model.metadata.image_shape)
    outputs.check_room(score_model.metadata.image_shape)
    sampling = resolve(score_model.metadata, quality=quality, solver=solver, steps=steps, options=given(options))
    count = sampling.steps or 0
    usual = default_batch_size(score_model.metadata.image_shape)
    fair = usual if shard.count == 1 else -(-len(seeds) // shard.count)
    batch_size = batch_size or outputs.batch_size or min(usual, fair)
    mine = shard.blocks(seeds, batch_size)
    note_shard(shard, len(mine), len(seeds), "images")
    if not mine:
        click.echo(f"shard {shard} has none of {counted(len(seeds), 'image')}, in batches of {batch_size}")
        return
    with notes():
        batches = sample_batches(score_model, mine, sampling=sampling, labels=labels, classifier=guide,
                                 guidance=guidance, batch_size=batch_size)
    settings = _settings(model, score_model.precision, sampling, labels, classifier, guidance)
    made = nfe = 0
    start = time.monotonic()
    with (notes(), outputs.begun(settings, batch_size=batch_size, depends_on_batch=sampling.depends_on_batch),
          ImagesBar(len(mine)) as bar):
        for batch, is_there in outputs.turns(batches):
            if is_there:
                bar.skip(len(batch.seeds))
                continue
            for step in bar.over(batch.steps, len(batch.seeds), count):
                outputs.see(step, count)
            made += outputs.finish(batch.seeds, step)
            nfe = max(nfe, step.nfe)
    _report(outputs, mine, made, f"{sampling}, nfe {nfe}, {score_model.provider} {score_model.precision}, "
                                 f"{time.monotonic() - start:.1f} s")


def _report(outputs: SampleOutput, mine: list[int], made: int, how: str) -> None:
    """Writes what is written at the end, and says what there is."""
    for path in outputs.write():
        click.echo(path)
    if made < len(mine):
        click.echo(f"{len(mine) - made} of {len(mine)} images were there already")
    if made:
        of = "" if made < len(mine) else f", seeds {format_seeds(mine)}"
        click.echo(f"{counted(made, 'image')}{of}, {how}")


def _settings(
    model: Path, precision: str, sampling: Sampling, labels: list[int] | None, classifier: Path | None, guidance: float
) -> dict[str, Any]:
    """Everything that an image depends on, but its seed."""
    from sde_onnx.files import sha256

    guided = {"classifier": sha256(classifier), "guidance": guidance} if classifier else {}
    return {"model": sha256(model), "precision": precision, "solver": sampling.solver, "steps": sampling.steps,
            **sampling.options, "labels": labels and format_seeds(labels), **guided}


def _sample_on_ray(
    outputs: SampleOutput, seeds: list[int], address: str, shard: Shard, *, model: Path, batch_size: int | None,
    provider: str, precision: str | None, threads: int | None, labels: list[int] | None, classifier: Path | None,
    guidance: float, request: dict[str, Any],
) -> None:
    """The same by actors of a Ray cluster, on machines that need not be like this one."""
    from sde_onnx.generate.folder import FolderRun
    from sde_onnx.generate.ray import Cluster, sample_into
    from sde_onnx.generate.sample import default_batch_size
    from sde_onnx.progress import ImagesBar
    from sde_onnx.runtime.load import read_metadata
    from sde_onnx.solvers.catalogue import resolve

    if not isinstance(outputs.run, FolderRun) or outputs.gif or shard.count > 1:
        raise click.UsageError("--ray goes with a folder, and without --gif and --shard")
    metadata = read_metadata(model)
    asked = {name: request.pop(name) for name in ("quality", "solver", "steps")}
    sampling = resolve(metadata, **asked, options=request)
    provider = metadata.target if metadata.target != "any" else provider
    cluster = Cluster(address, threads or 1, provider)
    fair = -(-len(seeds) // (BATCHES_AN_ACTOR * cluster.room()))
    size = batch_size or outputs.batch_size or min(default_batch_size(metadata.image_shape), fair)
    settings = _settings(model, precision or metadata.precision, sampling, labels, classifier, guidance)
    run, form = outputs.run, {"shards": outputs.run.shards, "subdirs": outputs.run.subdirs}
    made = nfe = 0
    start = time.monotonic()
    with (outputs.begun(settings, batch_size=size, depends_on_batch=sampling.depends_on_batch),
          ImagesBar(len(seeds)) as bar):
        left = [batch for first in range(0, len(seeds), size) if not run.has(batch := seeds[first : first + size])]
        bar.skip(len(seeds) - sum(map(len, left)))
        for count, new, its_nfe in sample_into(
            run.folder.absolute(), left, cluster, form=form, model=str(model.absolute()), precision=precision,
            labels=labels, classifier=classifier and str(classifier.absolute()), guidance=guidance, **asked, **request,
        ) if left else ():
            bar.update(count)
            made, nfe = made + new, max(nfe, its_nfe)
        run.has(seeds)   # finds what the actors have written
    _report(outputs, seeds, made, f"{sampling}, nfe {nfe}, on Ray, {time.monotonic() - start:.1f} s")

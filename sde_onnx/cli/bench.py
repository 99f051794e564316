"""``sde-onnx bench``."""

from __future__ import annotations

from pathlib import Path

import click

from sde_onnx.cli.options import notes, runtime_options

__all__ = ["bench_command"]


@click.command("bench")
@click.argument("model", metavar="[MODEL]", required=False, type=click.Path(path_type=Path))
@click.option("--batch-size", type=click.IntRange(min=1), show_default="by the images' size", help="Images at a time.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=10.0, help="How long to measure.")
@runtime_options
def bench_command(
    model: Path | None,
    batch_size: int | None,
    seconds: float,
    provider: str,
    precision: str | None,
    threads: int | None,
) -> None:
    """Time a model file on this machine; the bundled digits without MODEL.

    \b
    Example: sde-onnx bench celebahq.onnx --provider openvino --precision bf16
    """
    from sde_onnx.benchmark import benchmark
    from sde_onnx.models import bundled_model
    from sde_onnx.runtime.score_model import load
    from sde_onnx.solvers.catalogue import resolve

    with notes():
        score_model = load(model or bundled_model(), provider, precision=precision, threads=threads)
    result = benchmark(score_model, batch_size=batch_size, seconds=seconds)
    low, high = min(result.evaluations), max(result.evaluations)
    click.echo(f"{score_model.path.name}: {score_model.provider} {score_model.precision}, batch {result.batch_size}")
    click.echo(f"{result.evaluation * 1e3:.1f} ms an evaluation, median of {len(result.evaluations)} "
               f"({low * 1e3:.1f} to {high * 1e3:.1f}); the first took {result.first_evaluation:.2f} s")
    balanced = resolve(score_model.metadata, quality="balanced").evaluations or 0
    click.echo(f"{result.images_per_second * result.nfe / balanced:.3g} images/s with --quality balanced, {balanced} "
               f"evaluations; {result.images_per_second:.3g} with --quality reference, {result.nfe}")
    click.echo(f"{100 * result.loop_share:.1f}% of the time in the loop outside the network")

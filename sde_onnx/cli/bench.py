"""``sde-onnx bench``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sde_onnx.cli.options import notes, runtime_options

if TYPE_CHECKING:
    from sde_onnx.benchmark import Benchmark
    from sde_onnx.runtime.score_model import ScoreModel

__all__ = ["bench_command"]


@click.command("bench")
@click.argument("model", metavar="[MODEL]", required=False, type=click.Path(path_type=Path))
@click.option("--batch-size", type=click.IntRange(min=1), show_default="by the images' size", help="Images at a time.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=10.0, help="How long to measure.")
@click.option("-o", "--output", "form", type=click.Choice(["text", "md", "json"]), default="text",
              help="How to print it: for people, a table for a report, or everything with each evaluation's seconds.")
@runtime_options
def bench_command(
    model: Path | None,
    batch_size: int | None,
    seconds: float,
    form: str,
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
    from sde_onnx.runtime.load import load

    with notes():
        score_model = load(model or bundled_model(), provider, precision=precision, threads=threads)
    result = benchmark(score_model, batch_size=batch_size, seconds=seconds)
    click.echo(FORMS[form](_record(score_model, threads, result)))


def _record(model: ScoreModel, threads: int | None, result: Benchmark) -> dict[str, Any]:
    """What was measured, of what, and on what."""
    import platform
    from importlib.metadata import version

    import numpy as np
    import onnxruntime

    from sde_onnx.files import sha256
    from sde_onnx.runtime.machine import available_cores, processor
    from sde_onnx.solvers.catalogue import QUALITIES, resolve

    evaluations = {name: resolve(model.metadata, quality=name).evaluations or 0 for name in QUALITIES}
    return {
        "file": model.path.name, "sha256": sha256(model.path), "image_shape": list(model.metadata.image_shape),
        "provider": model.provider, "precision": model.precision, "batch_size": result.batch_size,
        "processor": processor(), "threads": threads or available_cores(),
        "versions": {"sde_onnx": version("sde-onnx"), "onnxruntime": onnxruntime.__version__,
                     "numpy": np.__version__, "python": platform.python_version()},
        "milliseconds": {"median": 1e3 * result.evaluation, "least": 1e3 * min(result.evaluations),
                         "most": 1e3 * max(result.evaluations), "first": 1e3 * result.first_evaluation},
        "loop_share": result.loop_share,
        "qualities": {name: {"evaluations": count,
                             "images_per_second": result.images_per_second * result.nfe / count}
                      for name, count in evaluations.items()},
        "evaluation_seconds": result.evaluations,
    }


def _text(record: dict[str, Any]) -> str:
    times = record["milliseconds"]
    return "\n".join([
        f"{record['file']}: {record['provider']} {record['precision']}, batch {record['batch_size']}, "
        f"{_threads(record)} of {record['processor']}",
        f"{times['median']:.1f} ms an evaluation, median of {len(record['evaluation_seconds'])} "
        f"({times['least']:.1f} to {times['most']:.1f}); the first took {times['first'] / 1e3:.2f} s",
        *(f"{quality['images_per_second']:.3g} images/s with --quality {name}, {quality['evaluations']} evaluations"
          for name, quality in record["qualities"].items()),
        f"{100 * record['loop_share']:.1f}% of the time in the loop outside the network"])


def _table(record: dict[str, Any]) -> str:
    times, qualities = record["milliseconds"], record["qualities"]
    cells = {
        "file": record["file"], "provider": f"{record['provider']} {record['precision']}",
        "batch": str(record["batch_size"]), "threads": str(record["threads"] or ""), "processor": record["processor"],
        "ms an evaluation": f"{times['median']:.1f} ({times['least']:.1f} to {times['most']:.1f})",
        **{f"images/s, {name}": f"{quality['images_per_second']:.3g}" for name, quality in qualities.items()},
        "outside the network": f"{100 * record['loop_share']:.1f}%",
        "onnxruntime": record["versions"]["onnxruntime"],
    }
    return "\n".join(["| " + " | ".join(row) + " |" for row in (cells.keys(), ["---"] * len(cells), cells.values())])


def _threads(record: dict[str, Any]) -> str:
    count = record["threads"]
    return "threads by the runtime" if count is None else f"{count} thread{'s' * (count > 1)}"


FORMS: dict[str, Callable[[dict[str, Any]], str]] = {
    "text": _text, "md": _table, "json": lambda record: json.dumps(record, indent=1)}

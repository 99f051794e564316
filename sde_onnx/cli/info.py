"""``sde-onnx info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sde_onnx.errors import shown_size

if TYPE_CHECKING:
    from sde_onnx.runtime.metadata import ModelMetadata

__all__ = ["info_command"]


@click.command("info")
@click.argument("model", metavar="[MODEL]", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything that the file says of itself, as JSON.")
@click.option("--providers", is_flag=True, help="What can run models here, on what, and why the others cannot.")
def info_command(model: Path | None, as_json: bool, providers: bool) -> None:
    """Say what a model file is, and what sampling it will do; the bundled digits without MODEL.

    \b
    Example: sde-onnx info celebahq.onnx
    """
    from sde_onnx.models import bundled_model
    from sde_onnx.runtime.load import read_metadata

    if providers:
        if model is not None or as_json:
            raise click.UsageError("--providers is of this machine: leave out MODEL and --json")
        from sde_onnx.runtime.providers import choose_provider, describe_providers

        for name, text in describe_providers().items():
            click.echo(f"{name:13}{text}")
        click.echo(f"{'auto':13}{choose_provider('auto')}")
        return
    model = model or bundled_model()
    metadata = read_metadata(model)
    if as_json:
        click.echo(json.dumps(json.loads(metadata.to_json()), indent=2))
        return
    for name, text in _lines(model, metadata):
        click.echo(f"{name:11}{text}")


def _lines(model: Path, metadata: ModelMetadata) -> list[tuple[str, str]]:
    from sde_onnx.solvers.catalogue import QUALITIES, resolve

    channels, height, width = metadata.image_shape
    schedule, architecture = metadata.schedule, metadata.architecture
    colours = {1: "gray", 2: "gray and alpha", 3: "RGB", 4: "RGBA"}.get(channels, f"{channels} channels")
    parameters = architecture.get("parameters")
    network = [str(architecture.get("class", "NCSN++")),
               *([] if parameters is None else [f"{parameters / 1e6:.1f} million parameters"]),
               *(["discrete noise levels"] if architecture.get("discrete") else [])]
    labels = f"0 to {metadata.labels - 1}" + ", or none" * metadata.label_optional if metadata.labels else "none"
    where = "any provider" if metadata.target == "any" else f"{metadata.target} alone"
    told = "relative to the network, at export", "of vjp, relative to torch's reverse mode"
    errors = [[value for case, value in metadata.parity.items() if case.startswith("vjp ") == of_vjp]
              for of_vjp in (False, True)]
    error = "; ".join(f"{max(found):.1e} {name}" for found, name in zip(errors, told, strict=True) if found)
    samplings = [(name, resolve(metadata, quality=name)) for name in QUALITIES]
    return [
        ("file", f"{model.name}, {shown_size(model.stat().st_size)}, {metadata.precision}"
                 f"{', weights fp16' * (metadata.weights == 'fp16')}, for {where}"),
        ("source", f"{metadata.source.get('name')}, sha256 {str(metadata.source.get('sha256'))[:12]}..."),
        ("network", ", ".join(network)),
        ("images", f"{width}x{height}, {colours}"),
        ("labels", labels),
        ("sigma", f"{schedule.sigma_min:g} to {schedule.sigma_max:g}, for data in [0, 1]"),
        ("error", error or "not measured"),
        *([("gradient", "vjp, of an input v; for sampling alone a file without it is faster")]
          if metadata.gradient else []),
        *((name, f"--quality {name}: {sampling}, {sampling.evaluations} evaluations an image")
          for name, sampling in samplings),
        ("versions", ", ".join(f"{name} {number}" for name, number in metadata.versions.items())),
    ]

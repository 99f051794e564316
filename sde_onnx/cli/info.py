"""``sde-onnx info``."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["info_command"]


@click.command("info")
@click.argument("model", metavar="FILE", type=click.Path(path_type=Path))
def info_command(model: Path) -> None:
    """Print what a model file says of itself, as JSON.

    \b
    Example: sde-onnx info celebahq.onnx
    """
    from sde_onnx.runtime.score_model import read_metadata

    click.echo(json.dumps(json.loads(read_metadata(model).to_json()), indent=2))

"""``sde-onnx gradient``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sde_onnx.errors import shown_size

if TYPE_CHECKING:
    from sde_onnx.runtime.metadata import ModelMetadata

__all__ = ["gradient_command", "told_of_gradient"]


@click.command("gradient")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The .onnx file.")
@click.option("--of", metavar="OUTPUT", help="Of any ONNX graph: the output to differentiate. Needs --at.")
@click.option("--at", metavar="INPUT", help="And the input to differentiate at.")
@click.option("--target", type=click.Choice(["any", "cpu"]), default="any", show_default=True,
              help="Of a model file: the execution provider to write the graph for, as in `sde-onnx export`.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def gradient_command(model: Path, output: Path, of: str | None, at: str | None, target: str, force: bool) -> None:
    """Add a gradient to an ONNX graph: the product v^T J of a vector with its Jacobian.

    Of a model file, the new one maps x, sigma and v to score and vjp, and `likelihood` takes it. It is checked against
    torch's reverse mode. Of any other graph, --of and --at name what to differentiate: the new one has an input v of
    the output's shape, and an output vjp of the input's. Needs the export extra.

    \b
    Example: sde-onnx gradient celebahq.onnx -o celebahq-gradient.onnx
             sde-onnx gradient resnet.onnx -o resnet-gradient.onnx --of logits --at image
    """
    from sde_onnx.extras import require_export

    require_export()
    from sde_onnx.export.gradient.model_file import export_gradient, export_gradient_of_graph

    if (of is None) != (at is None):
        raise click.UsageError("--of and --at go together")
    if of is not None and at is not None:
        if target != "any":
            raise click.UsageError("--target is for model files, without --of and --at")
        export_gradient_of_graph(model, output, of, at, force=force)
        click.echo(f"{output}: {shown_size(output.stat().st_size)}, input v like {of}, output vjp like {at}")
        return
    for line in told_of_gradient(export_gradient(model, output, target=target, force=force), output):
        click.echo(line)


def told_of_gradient(metadata: ModelMetadata, path: Path) -> list[str]:
    """What there is to say of a gradient file that was made."""
    errors = [f"relative error {error:.1e} of {case}" for case, error in metadata.parity.items()
              if case.startswith("vjp ")]
    label = ", label" * bool(metadata.labels)
    target = f", for {metadata.target}" * (metadata.target != "any")
    return [*errors, f"{path}: {shown_size(path.stat().st_size)}, x, sigma{label}, v to score, vjp{target}"]

"""The command line. A command parses and calls; what is heavy is imported when a command runs, not for its help."""

from __future__ import annotations

from typing import Any

import click

from sde_onnx.cli.bench import bench_command
from sde_onnx.cli.decode import decode_command
from sde_onnx.cli.edit import edit_command
from sde_onnx.cli.embed import embed_command, verify_command
from sde_onnx.cli.encode import encode_command
from sde_onnx.cli.export import export_command
from sde_onnx.cli.gradient import gradient_command
from sde_onnx.cli.info import info_command
from sde_onnx.cli.interpolate import interpolate_command
from sde_onnx.cli.likelihood import likelihood_command
from sde_onnx.cli.restore import restore_command
from sde_onnx.cli.sample import sample_command
from sde_onnx.errors import SdeOnnxError

__all__ = ["main"]


class _OneLineErrors(click.Group):
    """Turns the library's errors into one line on stderr and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SdeOnnxError as error:
            raise click.ClickException(str(error)) from error


COMMANDS = [
    bench_command, decode_command, edit_command, embed_command, encode_command, export_command, gradient_command,
    info_command, interpolate_command, likelihood_command, restore_command, sample_command, verify_command,
]
SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


@click.group(cls=_OneLineErrors, commands=COMMANDS, context_settings=SETTINGS)
@click.version_option(package_name="sde-onnx")
def main() -> None:
    """Score-SDE (NCSN++) models as ONNX files, sampled without PyTorch.

    \b
    sde-onnx sample --seeds 0-15 -o digits.png      sample the bundled model
    sde-onnx export google/ncsnpp-celebahq-256 -o celebahq.onnx
    """

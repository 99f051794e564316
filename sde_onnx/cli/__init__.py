"""The command line. A command parses and calls; what is heavy is imported when a command runs, not for its help."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from typing import IO, Any

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
from sde_onnx.errors import SdeOnnxError, escaped, first_line

__all__ = ["main", "open_streams"]


class _OneLineErrors(click.Group):
    """Turns errors of the library, of memory and of standard streams into one line on stderr and exit status 1.

    Errors of usage have status 2, and lines of usage before theirs.
    """

    def main(self, *arguments: Any, **settings: Any) -> Any:
        open_streams()
        try:
            try:
                return super().main(*arguments, **settings)
            finally:
                sys.stdout.flush()
        except OSError as error:
            if not _is_of_standard_output(error):
                raise
            sys.stdout = _nothing("w")   # which Python flushes at the end
            click.echo(f"Error: standard output cannot be written: {error.strerror}", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            said = error.format_message()   # quotes what was typed
            if escaped(said) == said:
                raise
            raise click.UsageError(escaped(said), error.ctx) from error
        except SdeOnnxError as error:
            raise click.ClickException(str(error)) from error
        except ImportError as error:
            if not str(error.name).startswith("onnxruntime"):
                raise
            raise click.ClickException(
                f"ONNX Runtime cannot be imported ({first_line(error)}): of its packages install one alone, such as "
                "`pip install --force-reinstall --no-deps onnxruntime-gpu`") from error
        except (MemoryError, RuntimeError) as error:   # numpy's and torch's own
            if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
                raise
            raise click.ClickException(f"there is not enough memory for this: {first_line(error)}") from error


def open_streams() -> None:
    """Opens standard streams that were closed, lest a file takes their place; and lets them write any file's name."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _nothing("r" if name == "stdin" else "w"))
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if name == "stdout" else "backslashreplace")


def _nothing(mode: str) -> IO[str]:
    """A stream that reads and writes nothing."""
    return open(os.devnull, mode, encoding="utf-8")   # noqa: PTH123


def _is_of_standard_output(error: OSError) -> bool:
    """Whether an error came of writing a line for people, and not of a file."""
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return error.errno != errno.EPIPE and frames[-1] in ("echo", "main")


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

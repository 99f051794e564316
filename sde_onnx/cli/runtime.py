"""What every command that runs a network has: options for provider, precision and threads, and notes on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from sde_onnx.errors import SlowPrecisionWarning

__all__ = ["notes", "runtime_options"]

NOTES = (ResourceWarning, SlowPrecisionWarning)   # of these a user of the command line is told


@contextmanager
def notes() -> Iterator[None]:
    """Says at its end what was warned of in it, a line each."""
    with warnings.catch_warnings(record=True) as told:
        for category in NOTES:
            warnings.simplefilter("always", category)
        yield
    for warning in told:
        if issubclass(warning.category, NOTES):
            click.echo(f"Note: {warning.message}", err=True)


def runtime_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--provider``, ``--precision`` and ``--threads`` to a command, in this order of its help."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), show_default="the physical cores at hand",
                     help="CPU threads of an evaluation."),
        click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]), show_default="the file's",
                     help="What the network computes in: tf32 under cuda, bf16 under openvino, fp16 under tensorrt."),
        click.option("--provider", type=click.Choice(["auto", "cuda", "tensorrt", "openvino", "cpu"]), default="auto",
                     help="Execution provider; auto is the first of cuda, openvino and cpu that runs here."),
    ):
        command = option(command)
    return command

"""The options of every command that runs a network: provider, precision, threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["runtime_options"]


def runtime_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--provider``, ``--precision`` and ``--threads`` to a command, in this order of its help."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), show_default="the physical cores at hand",
                     help="CPU threads of an evaluation."),
        click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), show_default="the file's",
                     help="What the network computes in; bf16 needs provider openvino, fp16 a file exported so."),
        click.option("--provider", type=click.Choice(["auto", "cuda", "openvino", "cpu"]), default="auto",
                     help="Execution provider; auto is the first of these that runs here."),
    ):
        command = option(command)
    return command

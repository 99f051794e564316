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
        click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]), show_default="the file's",
                     help="What the network computes in: tf32 under cuda, bf16 under openvino, fp16 under tensorrt."),
        click.option("--provider", type=click.Choice(["auto", "cuda", "tensorrt", "openvino", "cpu"]), default="auto",
                     help="Execution provider; auto is the first of cuda, openvino and cpu that runs here."),
    ):
        command = option(command)
    return command

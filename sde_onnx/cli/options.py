"""Options that several commands have: those of solvers, made from their table, and those of running a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from sde_onnx.errors import SlowPrecisionWarning
from sde_onnx.solvers.catalogue import DEFAULT_QUALITY, QUALITIES, SOLVERS, defaults_of
from sde_onnx.solvers.options import OPTIONS, Choice, Number, Option, Switch

__all__ = ["PROVIDER", "given", "notes", "request_options", "runtime_options", "solver_options"]

PROVIDER = click.Choice(["auto", "cuda", "tensorrt", "openvino", "cpu"])
NOTES = (ResourceWarning, SlowPrecisionWarning)   # of these a user of the command line is told


@contextmanager
def notes() -> Iterator[None]:
    """Says at its end what was warned of in it, a line each."""
    with warnings.catch_warnings(record=True) as caught:
        for category in NOTES:
            warnings.simplefilter("always", category)
        yield
    for warning in caught:
        if issubclass(warning.category, NOTES):
            click.echo(f"Note: {warning.message}", err=True)


def runtime_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--provider``, ``--precision`` and ``--threads`` to a command, in this order of its help."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), show_default="the physical cores at hand",
                     help="CPU threads of an evaluation."),
        click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]), show_default="the file's",
                     help="What the network computes in: tf32 under cuda, bf16 under openvino, fp16 under tensorrt."),
        click.option("--provider", type=PROVIDER, default="auto",
                     help="Execution provider; auto is the first of cuda, openvino and cpu that runs here."),
    ):
        command = option(command)
    return command


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--quality``, ``--solver`` and ``--steps`` to a command."""
    for option in (
        click.option("--steps", type=click.IntRange(min=1), show_default="the quality's, the solver's, or the model's",
                     help="From one noise level to the next."),
        click.option("--solver", type=click.Choice(list(SOLVERS)), show_default="the quality's", help="How to sample."),
        click.option("--quality", type=click.Choice(list(QUALITIES)), show_default=DEFAULT_QUALITY,
                     help="A solver and its steps: 12 evaluations an image, 25, or the paper's sampler at its own "
                          "length."),
    ):
        command = option(command)
    return command


def solver_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of all solvers to a command; whether they go with the chosen one, the solver says."""
    for name, option in reversed(OPTIONS.items()):
        command = _click_option(name, option)(command)
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those options that were typed."""
    return {name: value for name, value in options.items() if value is not None}


def _click_option(name: str, option: Option) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    defaults = defaults_of(name)
    owners = [solver for solver, entry in SOLVERS.items() if name in entry.options]
    usual, *others = sorted(defaults, key=lambda value: -len(defaults[value]))
    shown = "; ".join([usual, *(f"{value} of {', '.join(defaults[value])}" for value in others)])
    details: dict[str, Any] = {"show_default": shown, "help": f"{option.help} [{', '.join(owners)}]"}
    if isinstance(option, Switch):
        return click.option(option.flag, name, is_flag=True, default=None, **details)
    return click.option(option.flag, name, type=_click_type(option), **details)


def _click_type(option: Option) -> click.ParamType[Any]:
    if isinstance(option, Choice):
        return click.Choice(option.choices)
    assert isinstance(option, Number)
    if option.whole:
        return click.IntRange(min=int(option.least))
    return click.FloatRange(min=option.least, min_open=option.open)

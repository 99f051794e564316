"""Options that several commands have: those of solvers, made from their table, and those of running a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from sde_onnx.errors import (
    BatchSizeWarning,
    InputError,
    InstallationWarning,
    ProviderWarning,
    SlowPrecisionWarning,
    escaped,
)
from sde_onnx.generate.seeds import parse_seeds
from sde_onnx.generate.shards import Shard, parse_shard, shard_of_environment
from sde_onnx.guidance.methods import METHOD_OPTIONS, METHODS
from sde_onnx.solvers.catalogue import DEFAULT_QUALITY, QUALITIES, SOLVERS, defaults_of
from sde_onnx.solvers.options import FLOW_TOLERANCE, OPTIONS, Choice, Number, Option, Switch

__all__ = ["PROVIDER", "OutputPath", "flow_options", "flow_settings", "given", "label_list", "label_option",
           "labels_of", "method_options", "note", "note_shard", "notes", "picture_options", "request_options",
           "runtime_options", "seed_list", "shard_option", "solver_options", "split_model"]

PROVIDER = click.Choice(["auto", "cuda", "tensorrt", "tensorrt-rtx", "webgpu", "openvino", "cpu"])
MOST_LABELS = 1_000_000
# Of these a user of the command line is told.
NOTES = (BatchSizeWarning, InstallationWarning, ProviderWarning, SlowPrecisionWarning)


@contextmanager
def notes() -> Iterator[None]:
    """Says at its end what was warned of in it, a line each; nothing with ``--quiet``."""
    with warnings.catch_warnings(record=True) as caught:
        for category in NOTES:
            warnings.simplefilter("always", category)
        yield
    for warning in caught:
        if issubclass(warning.category, NOTES):
            note(str(warning.message))


def note(text: str) -> None:
    """Says something on standard error, a line; nothing with ``--quiet``."""
    from sde_onnx.progress import QUIET

    if not QUIET.get():
        click.echo(f"Note: {escaped(text)}", err=True)


class OutputPath(click.Path):
    """The name of an output, which an empty text is not: as a path it would be the folder that the command runs in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)


def seed_list(context: click.Context, parameter: click.Parameter, text: str | None) -> list[int] | None:
    """A callback of options whose values are lists of seeds."""
    try:
        return None if text is None else parse_seeds(text)
    except InputError as error:
        raise click.BadParameter(str(error)) from None


def label_list(context: click.Context, parameter: click.Parameter, text: str | None) -> list[int] | None:
    """A callback of options whose values are labels that seeds take in turn: as seeds, but one may come again."""
    try:
        return None if text is None else parse_seeds(text, most=MOST_LABELS, repeated=True, what="labels")
    except InputError as error:
        raise click.BadParameter(str(error)) from None


def split_model(context: click.Context, parameter: click.Parameter, paths: tuple[Path, ...]
                ) -> tuple[Path | None, list[Path]]:
    """A callback of arguments ``[MODEL] FILES...``: the model, if the first ends in .onnx, and the other files.

    Raises:
        click.UsageError: no files, or a model among them.
    """
    has_model = paths[0].suffix.lower() == ".onnx"
    files = list(paths[has_model:])
    if not files:
        raise click.UsageError(f"{paths[0]} is a model: give the files as well")
    if models := [path for path in files if path.suffix.lower() == ".onnx"]:
        raise click.UsageError(f"{models[0]} is a {'second model: give one' if has_model else 'model: put it first'}")
    return (paths[0] if has_model else None), files


def picture_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``[MODEL] PICTURES...`` as ``model_and_pictures``, of :func:`split_model`, and ``--resize``."""
    command = resize_option(command)
    return click.argument("model_and_pictures", metavar="[MODEL] PICTURES...", nargs=-1, required=True,
                          callback=split_model, type=click.Path(path_type=Path))(command)


def resize_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--resize`` to a command."""
    return click.option("--resize", is_flag=True,
                        help="Put alpha on white, crop the middle to the model's aspect and resize, where a picture "
                             "needs it.")(command)


def shard_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--shard`` as a ``Shard``, which a launcher's environment gives where the user does not."""
    return click.option("--shard", callback=_shard, metavar="I/N", show_default="RANK/WORLD_SIZE of torchrun, or "
                        "SLURM_PROCID/SLURM_NTASKS, or all",
                        help="Do part I of N, the first is 0/N, into an output that all of them share.")(command)


def _shard(context: click.Context, parameter: click.Parameter, text: str | None) -> Shard:
    try:
        return shard_of_environment() if text is None else parse_shard(text)
    except InputError as error:
        raise click.BadParameter(str(error)) from None


def note_shard(shard: Shard, mine: int, of: int, what: str) -> None:
    """Says in a line which part this process does, where it was not the user who said it."""
    if shard.variables and shard.count > 1:
        by = " and ".join(shard.variables)
        note(f"shard {shard} by {by}: {mine} of {of} {what}; --shard 0/1 does all")


def label_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--label`` as ``labels`` to a command of several pictures."""
    return click.option("--label", "labels", metavar="LABEL,...", callback=_labels_of_each,
                        help="Of a model with labels: one for all pictures, or one for each, such as 3,3,5.")(command)


def _labels_of_each(context: click.Context, parameter: click.Parameter, text: str | None) -> int | list[int] | None:
    try:
        labels = [int(part) for part in (text or "").split(",") if text]
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of labels such as 3 or 3,3,5") from None
    return labels[0] if len(labels) == 1 else labels or None


def labels_of(labels: int | list[int] | None, rows: slice) -> int | list[int] | None:
    """The labels of some pictures, of what :func:`label_option` gives."""
    return labels[rows] if isinstance(labels, list) else labels


def flow_options(usual_steps: int | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds ``--rtol``, ``--atol``, ``--steps`` and ``--batch-size``, of the probability flow, to a command.

    Args:
        usual_steps: of a command that takes tolerances only if they are given.
    """
    tolerance = ({"default": FLOW_TOLERANCE} if usual_steps is None
                 else {"show_default": f"{FLOW_TOLERANCE:g} with the other, else --steps"})
    steps = "by the tolerances" if usual_steps is None else str(usual_steps)
    options = (
        click.option("--batch-size", type=click.IntRange(min=1), show_default="by the images' size",
                     help="Images at a time."),
        click.option("--steps", type=click.IntRange(min=1), show_default=steps,
                     help="So many equal steps in ln sigma, six evaluations each."),
        click.option("--atol", type=click.FloatRange(min=0, min_open=True), **tolerance,
                     help="Absolute tolerance of a step."),
        click.option("--rtol", type=click.FloatRange(min=0, min_open=True), **tolerance,
                     help="Relative tolerance of a step."),
    )

    def added(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in options:
            command = option(command)
        return command

    return added


def flow_settings(rtol: float, atol: float, steps: int | None) -> dict[str, float | None]:
    """What of :func:`flow_options` a result depends on: steps stand in place of the tolerances."""
    return {"rtol": None, "atol": None, "steps": steps} if steps else {"rtol": rtol, "atol": atol, "steps": None}


def runtime_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--provider``, ``--precision``, ``--threads`` and ``--quiet`` to a command, in this order of its help."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_keep_quiet,
                     help="No progress and no notes on standard error: errors alone."),
        click.option("--threads", type=click.IntRange(min=1), show_default="the physical cores at hand",
                     help="CPU threads of an evaluation."),
        click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]), show_default="the file's",
                     help="What the network computes in: tf32 under cuda, bf16 under openvino, fp16 under tensorrt."),
        click.option("--provider", type=PROVIDER, default="auto",
                     help="Execution provider; auto is the first of cuda, webgpu, openvino and cpu that runs here."),
    ):
        command = option(command)
    return command


def _keep_quiet(context: click.Context, parameter: click.Parameter, quiet: bool) -> None:
    from sde_onnx.progress import QUIET

    QUIET.set(quiet)


def request_options(command: Callable[..., Any], *, default: str = DEFAULT_QUALITY) -> Callable[..., Any]:
    """Adds ``--quality``, ``--solver`` and ``--steps`` to a command; ``default`` is what it takes without them."""
    for option in (
        click.option("--steps", type=click.IntRange(min=1), show_default="the quality's, the solver's, or the model's",
                     help="From one noise level to the next."),
        click.option("--solver", type=click.Choice(list(SOLVERS)), show_default="the quality's", help="How to sample."),
        click.option("--quality", type=click.Choice(list(QUALITIES)), show_default=default,
                     help="A solver and its steps: 12, 25 or 50 evaluations an image, or the paper's sampler at its "
                          "own length."),
    ):
        command = option(command)
    return command


def solver_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of all solvers to a command; whether they go with the chosen one, the solver says."""
    for name, option in reversed(OPTIONS.items()):
        owners = [solver for solver, entry in SOLVERS.items() if name in entry.options]
        command = _click_option(name, option, defaults_of(name), owners)(command)
    return command


def method_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of all methods of restoration to a command; whether they go with the chosen one, it says."""
    for name, option in reversed(METHOD_OPTIONS.items()):
        owner, = (owner for owner, entry in METHODS.items() if name in entry.options)
        default = option.shown(METHODS[owner].options[name])
        command = _click_option(name, option, {default: [owner]}, [owner])(command)
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those options that were typed."""
    return {name: value for name, value in options.items() if value is not None}


def _click_option(
    name: str, option: Option, defaults: Mapping[str, list[str]], owners: list[str]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option of those that have it, with its defaults and who has which."""
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
        return click.IntRange(min=int(option.least), max=None if option.most is None else int(option.most))
    return click.FloatRange(min=option.least, max=option.most, min_open=option.open)

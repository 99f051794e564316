"""Writes what the documentation takes from the code: `make docs`; tests/test_docs.py holds it true.

The rooms of docs/architecture.md are the first lines of the modules; docs/solvers.md is made from the tables of solvers
and their options; the operators of docs/gradients.md are those that have a rule; docs/cli.md is what commands say for
`--help`.
"""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import click

from sde_onnx.cli import COMMANDS
from sde_onnx.cli import main as command_line
from sde_onnx.export.gradient.rules import RULES
from sde_onnx.solvers.catalogue import DEFAULT_QUALITY, QUALITIES, SOLVERS, defaults_of
from sde_onnx.solvers.options import OPTIONS, Choice, Number, Option

ROOT = Path(__file__).parents[1]
ARCHITECTURE, SOLVER_PAGE, GRADIENT_PAGE, CLI_PAGE = (ROOT / "docs" / f"{name}.md" for name in (
    "architecture", "solvers", "gradients", "cli"))
HELP_WIDTH = 110
WIDTH = 30   # of the column of names


def rooms() -> str:
    """The tree of modules, each with the first line of its docstring."""
    lines = ["```"]
    for top in ("sde_onnx", "export"):
        lines += _room(ROOT / top, 0)
    return "\n".join([*lines, "```"])


def _room(folder: Path, depth: int) -> list[str]:
    files = sorted(folder.glob("*.py"))
    lines = [_line(f"{folder.name}/", folder / "__init__.py", depth)]
    lines += [_line(path.name, path, depth + 1) for path in files if path.name != "__init__.py"]
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        lines += _room(inner, depth + 1)
    return lines


def _line(name: str, path: Path, depth: int) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return f"{'  ' * depth + name:{WIDTH}} {text.splitlines()[0].removesuffix('.')}"


def architecture() -> str:
    """docs/architecture.md with the rooms as they are."""
    return _between_marks(ARCHITECTURE, "rooms", rooms())


def gradient_page() -> str:
    """docs/gradients.md with the operators that have a rule."""
    return _between_marks(GRADIENT_PAGE, "rules", "\n".join(textwrap.wrap(", ".join(sorted(RULES)) + ".", 120)))


def _between_marks(page: Path, mark: str, text: str) -> str:
    written = page.read_text(encoding="utf-8")
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    return f"{written[: written.index(first)]}{first}\n{text}\n{written[written.index(last) :]}"


def cli_page() -> str:
    """docs/cli.md: what `--help` prints, command by command."""
    lines = ["# Commands", "", "Made by `make docs` from the commands: what `sde-onnx COMMAND --help` prints.", ""]
    with click.Context(command_line, info_name="sde-onnx", **command_line.context_settings) as parent:
        for command in COMMANDS:
            settings = command_line.context_settings | {"terminal_width": HELP_WIDTH}
            with click.Context(command, parent, info_name=command.name, **settings) as context:
                lines += [f"## {command.name}", "", "```", command.get_help(context), "```", ""]
    return "\n".join(lines)


def solver_page() -> str:
    """docs/solvers.md."""
    return "\n".join([
        "# Solvers and their options",
        "",
        "Made by `make docs` from `sde_onnx/solvers/catalogue.py` and `sde_onnx/solvers/options.py`.",
        "What solvers cost and lose, and what restarts are: [quality.md](quality.md).",
        "",
        "| solver | | steps | options |",
        "| --- | --- | --- | --- |",
        *(f"| `{name}` | {solver.about} | {'adapted' if solver.steps is None else solver.steps} | "
          f"{', '.join(f'`{OPTIONS[option].flag}`' for option in solver.options)} |"
          for name, solver in SOLVERS.items()),
        "",
        "| quality | |",
        "| --- | --- |",
        *(f"| `{name}`{' (the default)' if name == DEFAULT_QUALITY else ''} | `{solver}`"
          f"{'' if steps is None else f' `--steps {steps}`'}"
          f"{''.join(f' `{OPTIONS[option].flag} {value}`' for option, value in options.items())} |"
          for name, (solver, steps, options) in QUALITIES.items()),
        "",
        "| option | in Python | | values | default |",
        "| --- | --- | --- | --- | --- |",
        *(f"| `{option.flag}` | `{name}` | {option.help} | {_values(option)} | {_defaults(name)} |"
          for name, option in OPTIONS.items()),
        "",
    ])


def _values(option: Option) -> str:
    if isinstance(option, Choice):
        return ", ".join(f"`{choice}`" for choice in option.choices)
    return option.wanted if isinstance(option, Number) else "yes, no"


def _defaults(name: str) -> str:
    defaults = defaults_of(name)
    if len(defaults) == 1:
        return next(iter(defaults))
    return "; ".join(f"{value} (`{'`, `'.join(solvers)}`)" for value, solvers in defaults.items())


def main() -> None:
    ARCHITECTURE.write_text(architecture(), encoding="utf-8")
    GRADIENT_PAGE.write_text(gradient_page(), encoding="utf-8")
    SOLVER_PAGE.write_text(solver_page(), encoding="utf-8")
    CLI_PAGE.write_text(cli_page(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The original's config trees: by name, from JSON, or from its Python files, which are read and never run.

A Python config is a function that fills a tree with assignments: ``training = config.training``,
``model.nf = 128``. Such a function is followed statement by statement, that of the file with its defaults too. Anything
else in it (a branch, a loop, a call) is refused: what it does could only be known by running it.
"""

from __future__ import annotations

import ast
import json
import warnings
from pathlib import Path
from typing import Any

from sde_onnx.errors import CheckpointError, first_line
from sde_onnx.export.checkpoints.presets import PRESETS
from sde_onnx.files import UNREADABLE, regular

__all__ = ["read_config"]

FUNCTIONS = ("get_config", "get_default_configs")
SECTIONS = ("model", "data", "sampling", "training")


def read_config(config: str) -> dict[str, dict[str, Any]]:
    """Returns a config tree with the sections model, data, sampling and training.

    Args:
        config: a preset's name, or a file: ``.json`` or ``.py``.

    Raises:
        CheckpointError: neither a preset nor a file, a file that cannot be read, or a section that is missing.
    """
    if config in PRESETS:
        return PRESETS[config]
    path = Path(config)
    if path.suffix not in (".json", ".py"):
        raise CheckpointError(
            f"config {config!r} is neither a .json or .py file nor one of: {', '.join(PRESETS)}"
        )
    try:
        text = regular(path).read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else _follow(path, text)
    except CheckpointError:
        raise
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CheckpointError(f"{path} cannot be read: {reason}") from None
    if not isinstance(tree, dict) or not all(isinstance(tree.get(section), dict) for section in SECTIONS):
        raise CheckpointError(f"{path} is no config of score_sde: it needs the sections {', '.join(SECTIONS)}")
    return tree


def _follow(path: Path, text: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tree that a Python config's function returns; ``above`` are the files that took their defaults from it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # of style, in a file that is read and never run
        module = ast.parse(text, str(path))
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS]
    if len(functions) != 1:
        raise CheckpointError(f"{path} has no function {' or '.join(FUNCTIONS)}: it is no config of score_sde")
    imported = {
        alias.asname or alias.name: node.module or ""
        for node in module.body if isinstance(node, ast.ImportFrom) for alias in node.names if alias.name in FUNCTIONS
    }
    return _Follower(path, imported, (*above, path.resolve())).run(functions[0])


class _Follower:
    """Follows the assignments of a config function.

    Args:
        path: its file, for messages and to find the file with its defaults.
        imported: functions of config files that it can call, and their modules.
        above: the files that took their defaults from it, and its own.
    """

    def __init__(self, path: Path, imported: dict[str, str], above: tuple[Path, ...]) -> None:
        self.path = path
        self.above = above
        self.imported = imported
        self.names: dict[str, Any] = {}

    def run(self, function: ast.FunctionDef) -> dict[str, Any]:
        for statement in function.body:
            if isinstance(statement, ast.Return) and isinstance(statement.value, ast.Name):
                tree = self.names.get(statement.value.id)
                if isinstance(tree, dict):
                    return tree
            if isinstance(statement, ast.Assign):
                value = self._value(statement.value)
                for target in statement.targets:
                    self._assign(target, value)
            elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                raise self._refusal(statement)
        raise CheckpointError(f"{self.path}: its function {function.name} returns no config")

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name | ast.Attribute):
            return self._lookup(node)
        if isinstance(node, ast.Call) and not node.args and not node.keywords:
            called = ast.unparse(node.func)
            if called.endswith("ConfigDict"):
                return {}
            if called in self.imported:
                return self._defaults(self.imported[called])
        try:
            return ast.literal_eval(node)
        except ValueError:
            # Such as torch.device(...): it matters only if the network's options read it, and then it is refused there.
            return f"<{ast.unparse(node)}>"

    def _lookup(self, node: ast.expr) -> Any:
        try:
            if isinstance(node, ast.Name):
                return self.names[node.id]
            if isinstance(node, ast.Attribute):
                return self._lookup(node.value)[node.attr]
        except (KeyError, TypeError):   # never assigned, or no tree
            pass
        raise self._refusal(node)

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Attribute) and isinstance(holder := self._lookup(target.value), dict):
            holder[target.attr] = value
        else:
            raise self._refusal(target)

    def _defaults(self, module: str) -> dict[str, Any]:
        """The tree of the file with the defaults: ``configs.default_x`` is looked for beside the file and above it."""
        name = module.rpartition(".")[2] + ".py"
        for folder in self.path.resolve().parents:
            found = folder / name
            if found in self.above:
                raise CheckpointError(f"{self.path} takes its defaults from {found}, which takes its own from there")
            if found.is_file():
                return _follow(found, found.read_text(encoding="utf-8"), self.above)
        raise CheckpointError(
            f"{self.path} takes its defaults from {module}, and {name} is neither beside it nor above"
        )

    def _refusal(self, node: ast.AST) -> CheckpointError:
        line = getattr(node, "lineno", 0)
        return CheckpointError(
            f"{self.path}, line {line}: `{ast.unparse(node).splitlines()[0]}` is no plain assignment, and a config is "
            "not run: write its tree as JSON"
        )

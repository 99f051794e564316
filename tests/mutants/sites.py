"""Small faults that a hand could make: an operator, a comparison, a constant, a flag, a jump."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mutant", "mutants_of", "sample"]

COMPARISONS = {"==": "!=", "!=": "==", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "in": "not in", "not in": "in",
               "is": "is not", "is not": "is"}
ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "%": "//", "**": "*", "|": "&", "&": "|", "^": "|",
              "<<": ">>", ">>": "<<", "@": "*"}
JUMPS = {ast.Break: "continue", ast.Continue: "break"}


@dataclass(frozen=True)
class Mutant:
    """One change of a file."""

    file: Path
    line: int
    start: int   # characters of the file
    end: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before!r} -> {self.after!r}"

    def source(self, root: Path) -> str:
        """The changed file."""
        text = (root / self.file).read_text()
        assert text[self.start:self.end] == self.before, f"{self.file} is another one"
        return text[:self.start] + self.after + text[self.end:]


def sample(root: Path, mutants: Iterable[Mutant], count: int, seed: int) -> dict[str, Mutant]:
    """Some of the mutants, by a name of file, line of code and change: drawn by a hash of it.

    So when code is changed elsewhere the sample stays, but for what is no more and what is new.
    """
    named: dict[str, Mutant] = {}
    seen: Counter[str] = Counter()
    for mutant in mutants:
        text = (root / mutant.file).read_text()
        until, after = text[:mutant.start].rpartition("\n")[2], text[mutant.end:].partition("\n")[0]
        name = f"{mutant.file}: {until.lstrip()}{{{mutant.before} -> {mutant.after}}}{after}"
        seen[name] += 1   # the same line may stand in a file twice
        named[f"{name} ({seen[name]})"] = mutant
    drawn = sorted(named, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())[:count]
    return {name: named[name] for name in drawn}


def mutants_of(root: Path, file: Path) -> Iterator[Mutant]:
    """Every change of a file that is tried; what only type checkers and readers see is left alone."""
    text = (root / file).read_text()
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    encoded = text.encode()

    def place(line: int, column: int) -> int:
        return len(encoded[:starts[line - 1] + column].decode())

    def span(node: ast.AST) -> tuple[int, int]:
        return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def mutant(line: int, start: int, end: int, after: str) -> Mutant:
        return Mutant(file, line, start, end, text[start:end], after)

    def between(left: ast.AST, right: ast.AST, words: dict[str, str]) -> Iterator[Mutant]:
        """The operator between two operands."""
        start, end = span(left)[1], span(right)[0]
        written = text[start:end]
        word = written.strip(" ()\n\\")
        if word in words:
            first = start + written.index(word)
            yield mutant(text.count("\n", 0, first) + 1, first, first + len(word), words[word])

    for node in _seen(ast.parse(text)):
        if isinstance(node, ast.Compare):
            for left, right in zip([node.left, *node.comparators], node.comparators, strict=False):
                yield from between(left, right, COMPARISONS)
        elif isinstance(node, ast.BinOp):
            yield from between(node.left, node.right, ARITHMETIC)
        elif isinstance(node, ast.AugAssign):
            yield from between(node.target, node.value, {f"{key}=": f"{value}=" for key, value in ARITHMETIC.items()})
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from between(left, right, {"and": "or", "or": "and"})
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield mutant(node.lineno, span(node)[0], span(node.operand)[0], "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield mutant(node.lineno, *span(node), str(not node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield mutant(node.lineno, *span(node), f"({node.value!r} + 1)")
        elif isinstance(node, ast.Break | ast.Continue):
            yield mutant(node.lineno, *span(node), JUMPS[type(node)])


def _seen(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run: without annotations, docstrings, and what is under TYPE_CHECKING."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            # For the type checker, or of what cannot be.
            is_assertion = isinstance(child, ast.Assert) or (
                isinstance(child, ast.keyword) and child.arg == "strict" and getattr(node, "func", None) is not None
                and ast.unparse(node.func) == "zip")   # type: ignore[attr-defined]
            if isinstance(child, ast.AST) and not is_for_types and not is_assertion:
                yield from _seen(child)

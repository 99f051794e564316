"""The search for faults that no test sees does see some, and calls no unchanged code one."""

from __future__ import annotations

from pathlib import Path

import pytest

from mutants import __main__ as program
from mutants.sites import Mutant, mutants_of

SOURCE = '''"""A docstring of 3 words."""

LIMIT: int | None = 3


def function(x: int | None = -1) -> bool:
    """With ``1 + 1``."""
    assert x is not None
    if x < (LIMIT) and not x % 2:   # naïve
        x += 1
    return x in (2.5,) or True
    zip(x, strict=True)
'''


def test_the_faults_of_a_file(tmp_path):
    (tmp_path / "some.py").write_text(SOURCE, encoding="utf-8")
    found = list(mutants_of(tmp_path, Path("some.py")))
    assert sorted((mutant.line, mutant.before, mutant.after) for mutant in found) == [
        (3, "3", "(3 + 1)"), (6, "-", ""), (6, "1", "(1 + 1)"),
        (9, "%", "//"), (9, "2", "(2 + 1)"), (9, "<", "<="), (9, "and", "or"), (9, "not ", ""),
        (10, "+=", "-="), (10, "1", "(1 + 1)"), (11, "2.5", "(2.5 + 1)"), (11, "True", "False"),
        (11, "in", "not in"), (11, "or", "and")]
    for mutant in found:
        compile(mutant.source(tmp_path), "some.py", "exec")


@pytest.mark.thorough
@pytest.mark.parametrize(("file", "before", "after", "killer"), [
    ("sde_onnx/solvers/noise.py", "^ ", "^ ", None),
    ("sde_onnx/solvers/noise.py", "^ ", "| ", "FAILED tests/solvers/test_noise.py::"),
    ("export/embedding/update.py", "| int,", "& int,", "status 4"),   # which conftest.py imports
], ids=["none", "an operator", "a type"])
def test_a_fault_dies_by_a_test_and_what_is_none_lives(file, before, after, killer, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "WORK", tmp_path)
    text = (program.ROOT / file).read_text()
    start = text.index(before)
    mutant = Mutant(Path(file), text.count("\n", 0, start) + 1, start, start + len(before), before, after)
    found = program._killer(mutant, ["tests/solvers/test_noise.py"], {})
    assert found is None if killer is None else found.startswith(killer)

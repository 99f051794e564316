"""The search for faults that no test sees does see some, and calls no unchanged code one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mutants import __main__ as program
from mutants.sites import Mutant, mutants_of, sample

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


def test_a_sample_stays_when_code_elsewhere_is_changed(tmp_path):
    def drawn(count: int, seed: int) -> dict[str, Mutant]:
        return sample(tmp_path, mutants_of(tmp_path, Path("some.py")), count, seed)

    (tmp_path / "some.py").write_text(SOURCE + SOURCE, encoding="utf-8")
    assert len(drawn(100, 0)) == 28
    before = drawn(10, 0)
    assert "some.py: x {+= -> -=} 1 (2)" in drawn(100, 0) and set(before) != set(drawn(10, 1))
    (tmp_path / "some.py").write_text("TWO = 1\n" * 2 + SOURCE + SOURCE, encoding="utf-8")
    after = drawn(12, 0)   # two may be new
    assert set(before) <= set(after)
    assert all(after[name].line == mutant.line + 2 for name, mutant in before.items())


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A package of two lines, each with a test in a file of its own, in place of this one."""
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "WORK", tmp_path / "work")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])]))
    for folder in ("work", "sde_onnx", "export", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sde_onnx" / "code.py").write_text(
        "def plus(x):\n    return x + 1\n\n\ndef minus(x):\n    return x - 1\n")
    for name, value in (("plus", 1), ("minus", -1)):
        (tmp_path / "tests" / f"test_of_{name}.py").write_text(
            f"from sde_onnx.code import {name}\n\n\ndef test_{name}():\n    assert {name}(0) == {value}\n")
    return tmp_path


@pytest.mark.thorough
def test_when_tests_alone_change_only_they_are_recorded_again(project, monkeypatch):
    recorded = []
    record = program._Tests._record

    def told(self, data, times, arguments):
        recorded.append(arguments)
        record(self, data, times, arguments)

    monkeypatch.setattr(program._Tests, "_record", told)
    code, plus = project / "sde_onnx" / "code.py", project / "tests" / "test_of_plus.py"
    report = project / "work" / "report-0.json"
    rows = {"alive": None, "by plus": "FAILED tests/test_of_plus.py::test_plus", "in time": "time",
            "by minus": "FAILED tests/test_of_minus.py::test_minus"}

    def tests_of(line: int) -> list[str]:
        recorded.clear()
        start = code.read_text().index("1")
        return program._Tests().of(Mutant(code.relative_to(project), line, start, start + 1, "1", "2"))

    assert tests_of(2) == ["tests/test_of_plus.py::test_plus"]
    assert recorded == [[]]
    report.write_text(json.dumps({name: {"by": killer} for name, killer in rows.items()}))
    assert tests_of(6) == ["tests/test_of_minus.py::test_minus"]
    assert recorded == []
    plus.write_text(plus.read_text().replace("test_plus", "test_more"))
    assert tests_of(2) == ["tests/test_of_plus.py::test_more"]
    assert recorded == [["--cov-append", "tests/test_of_plus.py"]]
    assert list(json.loads(report.read_text())) == ["by minus"]
    plus.unlink()
    assert tests_of(6) == ["tests/test_of_minus.py::test_minus"]
    assert tests_of(2) == ["tests/test_of_minus.py::test_minus"]   # of a line that none runs, those of its file
    code.write_text(code.read_text() + "\n")
    assert tests_of(6) == ["tests/test_of_minus.py::test_minus"]
    assert recorded == [[]]
    assert not report.exists()


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

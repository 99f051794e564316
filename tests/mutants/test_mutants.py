"""The search for faults that no test sees does see some, and calls no unchanged code one."""

from __future__ import annotations

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


def test_what_is_recorded_again(tmp_path, monkeypatch):
    recorded = []

    def record(tests, data, times, arguments):
        recorded.append(arguments)
        times.write_text("{}")

    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(program, "WORK", tmp_path / "work")
    monkeypatch.setattr(program._Tests, "_record", record)
    code, test, gone = (tmp_path / name for name in ("export/some.py", "tests/test_a.py", "tests/test_b.py"))
    for folder in ("work", "sde_onnx", "export", "tests"):
        (tmp_path / folder).mkdir()
    for path in (code, test, gone):
        path.write_text("1")
    report = tmp_path / "work" / "report-0.json"

    def run_again() -> list[str]:
        recorded.clear()
        program._Tests()
        return [" ".join(arguments) for arguments in recorded]

    assert run_again() == [""]
    report.write_text("{}")
    assert run_again() == []
    test.write_text("2")
    gone.unlink()
    assert run_again() == ["--cov-append tests/test_a.py"]
    assert report.exists()
    code.write_text("2")
    assert run_again() == [""]
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

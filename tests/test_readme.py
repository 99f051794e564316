import json
import re
import sys
from pathlib import Path

import pytest

import fresh_clone
import report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_timings_are_those_of_the_committed_run():
    results = ROOT / "benchmarks" / "results" / "fresh_clone.json"
    start, end = (README.index(mark) for mark in fresh_clone.MARKS)
    claimed = README[start + len(fresh_clone.MARKS[0]) : end].strip()
    # Without a committed run there is nothing to claim.
    assert claimed == (fresh_clone.timings(json.loads(results.read_text())) if results.exists() else "")


@pytest.mark.parametrize(("page", "section", "write", "names"), [
    (page, *section) for page, sections in report.PAGES.items() for section in sections
], ids=lambda part: getattr(part, "__name__", ""))
def test_a_benchmark_section_is_what_the_committed_results_say(page, section, write, names):
    text = page.read_text(encoding="utf-8")
    marks = report.marks(section)
    start, end = (text.index(mark) for mark in marks)
    claimed = text[start + len(marks[0]) : end].strip()
    assert claimed == write(*map(report.result, names))


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_names_it_uses_exist():
    import sde_onnx.export

    for name in set(re.findall(r"\bsde_onnx\.(\w+)", README)) - {"export"}:
        assert name in sde_onnx.__all__
    [imported] = re.findall(r"from sde_onnx.export import (.+)", README)
    assert set(imported.split(", ")) <= set(sde_onnx.export.__all__)


@pytest.mark.skipif(sys.platform == "win32", reason="make")
def test_the_make_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert targets
    for target in targets:
        assert f"\n{target}:" in makefile

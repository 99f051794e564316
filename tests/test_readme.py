import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fresh_clone
import report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")] + sorted(
    path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*.md")
    if "node_modules" not in path.parts)
RUN = {"README.md": {"examples/digits/checkpoint": "my-checkpoint"}, "docs/tutorial.md": {"examples": "examples"}}


def test_it_is_a_page():
    assert README.count("\n") <= 120


def test_the_timings_are_those_of_the_committed_run():
    results = ROOT / "benchmarks" / "results" / "fresh_clone.json"
    page = fresh_clone.PAGE.read_text(encoding="utf-8")
    start, end = (page.index(mark) for mark in fresh_clone.MARKS)
    claimed = page[start + len(fresh_clone.MARKS[0]) : end].strip()
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """To files of the repository, and to headings in them."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
            assert heading in slugs, target


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="commands of a shell")
@pytest.mark.parametrize("page", list(RUN))
def test_the_commands_of_a_page_run(page, tmp_path):
    """Each block in the order of the page, in one folder; `make` is for the clone itself."""
    for source, name in RUN[page].items():
        (tmp_path / name).symlink_to(ROOT / source)
    found = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    blocks = [(language, text) for language, text in found if not text.startswith("make ")]
    assert len(blocks) >= 5
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                   "SDE_ONNX_CACHE": str(tmp_path / "cache")}
    for language, text in blocks:
        command = [sys.executable, "-c", text] if language == "python" else ["sh", "-e", "-c", text]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{text}\n{result.stderr}"


def test_the_names_it_uses_exist():
    import sde_onnx.export

    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in (
        "README.md", "docs/library.md", "docs/checkpoints.md", "docs/tutorial.md"))
    for name in set(re.findall(r"\bsde_onnx\.(\w+)", text)) - {"export"}:
        assert name in sde_onnx.__all__
    for imported in re.findall(r"from sde_onnx.export import (.+)", text):
        assert set(imported.split(", ")) <= set(sde_onnx.export.__all__)


@pytest.mark.skipif(sys.platform == "win32", reason="make")
def test_the_make_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert targets
    for target in targets:
        assert f"\n{target}:" in makefile

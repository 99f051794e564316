"""Puts small faults into the code, one at a time, and says which of them no test sees: ``make mutants``.

    PYTHONPATH=tests python -m mutants [--count 200] [--seed 0]

First the suite runs once, to see which tests run which line. A mutant then meets the tests of its line, the quickest
first, until one fails; each core has a mutant of its own. What is finished is kept in build/mutants; a run that was
stopped goes on. When files of tests alone were changed since, these run once more, and the survivors and what these
killed are tried again; when other Python code was, all begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from typing import Any

from mutants.sites import Mutant, mutants_of, sample
from sde_onnx.files import sha256

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "mutants"
ROOMS = ("sde_onnx", "export")
MOST_SECONDS = 300.0   # that the tests that run a mutant's line take when nothing is wrong: those beyond are not run
BROKEN = r"^(\d+ errors? in |ImportError while loading conftest)"   # what pytest says of files with the mutant
KILLER = r"(?:FAILED|ERROR) ([^:]+\.py)"   # in what is said of a killed mutant, if a test did it
PATIENCE = 4           # times as long may they take: what hangs is dead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    tests = _Tests()
    report = WORK / f"report-{arguments.seed}.json"
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    sites = [mutant for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))
             for mutant in mutants_of(ROOT, path.relative_to(ROOT))]
    drawn = sample(ROOT, sites, arguments.count, arguments.seed)
    cores = Queue[int]()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    with ThreadPoolExecutor(cores.qsize(), initializer=lambda: os.sched_setaffinity(0, {cores.get()})) as pool:
        tried = {pool.submit(_killer, drawn[name], of_it, tests.seconds): (name, of_it)
                 for name in drawn if name not in found for of_it in [tests.of(drawn[name])]}
        for future in as_completed(tried):
            (name, of_it), killer = tried[future], future.result()
            found[name] = {"dead": killer is not None, "by": killer, "tests": len(of_it)} | {
                "mutant": asdict(drawn[name]) | {"file": str(drawn[name].file)}}
            report.write_text(json.dumps(found, indent=1) + "\n")
            if killer is None:
                print(f"{drawn[name]} lives, {len(of_it)} tests", flush=True)
    dead = sum(found[name]["dead"] for name in drawn)
    print(f"{dead} of {len(drawn)} mutants died ({dead / len(drawn):.1%}), of {len(sites)} that there are")
    raise SystemExit(0 if dead >= 0.9 * len(drawn) else 1)


class _Tests:
    """Which tests run which lines, and how long they take."""

    def __init__(self) -> None:
        data, times, hashes = WORK / "coverage", WORK / "seconds.json", WORK / "hashes.json"
        now = {str(path.relative_to(ROOT)): sha256(path) for room in (*ROOMS, "tests")
               for path in (ROOT / room).rglob("*.py")}
        before: dict[str, str] = json.loads(hashes.read_text()) if hashes.exists() else {}
        changed = {file for file in now.keys() | before.keys() if now.get(file) != before.get(file)}
        tests = {file for file in changed if Path(file).name.startswith("test_")}
        if changed - tests:
            for path in WORK.iterdir():   # what was found of other code
                path.unlink()
            self._record(data, times, [])
        elif tests:
            self._forget(tests, times)
            if there := sorted(tests & now.keys()):
                self._record(data, times, ["--cov-append", *there])
        hashes.write_text(json.dumps(now))
        from coverage import CoverageData

        self._data = CoverageData(str(data))
        self._data.read()
        self.seconds: dict[str, float] = json.loads(times.read_text())

    @staticmethod
    def _forget(files: Collection[str], times: Path) -> None:
        """Forgets these files' tests, and the mutants that may fare otherwise now: survivors, and those they killed."""
        seconds: dict[str, float] = json.loads(times.read_text())
        seconds = {name: each for name, each in seconds.items() if name.partition("::")[0] not in files}
        times.write_text(json.dumps(seconds))
        for report in WORK.glob("report-*.json"):
            found: dict[str, Any] = json.loads(report.read_text())
            stay = {name: row for name, row in found.items()
                    if (killer := re.match(KILLER, row["by"] or "")) and killer[1] not in files}
            report.write_text(json.dumps(stay, indent=1) + "\n")

    def _record(self, data: Path, times: Path, arguments: Sequence[str]) -> None:
        """Runs the suite, or these tests."""
        environment = {**os.environ, "SDE_ONNX_SECONDS": str(times), "COVERAGE_FILE": str(data)}
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "auto", "-p", "mutants.recorder",
                        *(f"--cov={room}" for room in ROOMS), "--cov-context=test", "--cov-report=", *arguments],
                       cwd=ROOT, env=environment, check=True)

    def of(self, mutant: Mutant) -> list[str]:
        """The files of tests that are named after the mutant's, whole, and the quickest tests that run its line.

        They come file by file: what a file's tests share is made once. Of a line that runs at import, the tests of its
        file.
        """
        named = f"test_{mutant.file.stem.strip('_')}*.py"
        whole = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob(named))]
        chosen = {file: list[str]() for file in whole}
        lines = self._data.contexts_by_lineno(str(ROOT / mutant.file))
        of_line = {context.rpartition("|")[0] for context in lines.get(mutant.line, [])}
        of_file = {context.rpartition("|")[0] for contexts in lines.values() for context in contexts}
        known = self.seconds.keys()   # of some tests that are no more there are lines still
        names = of_line & known or of_file & known
        total = 0.0
        for name in sorted(names, key=lambda name: (self.seconds[name], name)):
            total += self.seconds[name]
            if total > MOST_SECONDS:
                break
            chosen.setdefault(name.partition("::")[0], []).append(name)
        return [name for file, own in chosen.items() for name in ([file] if file in whole else own)]


def _killer(mutant: Mutant, names: Sequence[str], seconds: dict[str, float]) -> str | None:
    """The first test that fails with the mutant in place."""
    if not names:
        return None
    changed = WORK / f"mutant-{threading.get_native_id()}.py"
    changed.write_text(mutant.source(ROOT))
    usual = 20 + sum(each for name, each in seconds.items() if name in names or name.partition("::")[0] in names)
    path = os.pathsep.join([str(Path(__file__).parent / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path,
                   "SDE_ONNX_MUTANT": os.pathsep.join([str(ROOT / mutant.file), str(changed)])}
    listed = WORK / f"names-{threading.get_native_id()}"
    listed.write_text("\n".join(names))
    try:
        result = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider",
                                 f"@{listed}"],
                                cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE * usual)
    except subprocess.TimeoutExpired:
        return "time"
    if result.returncode == 0:
        return None
    said = result.stdout + result.stderr
    broken = result.returncode == 4 and re.search(BROKEN, said, re.MULTILINE)
    if result.returncode not in (1, 2) and not broken:   # tests failed, or could not be imported
        raise SystemExit(f"{mutant}: pytest ended with {result.returncode}: {said[-500:]}")
    failed = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0] if failed else f"status {result.returncode}: {result.stdout[-200:]}"


if __name__ == "__main__":
    main()

"""A fixed number of hostile cases, the same each time; `make fuzz` runs more."""

from __future__ import annotations

import os
import re
import sys

import pytest

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(sys.platform != "linux", reason="limits of a process")]

CASES = 12   # of each kind


def test_hostile_input_ends_in_success_or_in_one_line():
    from fuzz.harness import run_cases
    from fuzz.kinds import KINDS, prepare

    cases = [(kind, seed) for seed in range(CASES) for kind in KINDS]
    failures = [failure for *_, failure in run_cases(KINDS, cases, prepare) if failure is not None]
    assert failures == []


def test_the_harness_sees_what_breaks_the_promise():
    """Else the test above could not fail."""
    from fuzz.broken import BROKEN
    from fuzz.harness import run_cases

    cases = [(kind, 0) for kind in BROKEN if kind != "works"]
    found = {kind: failure.problem for kind, _, failure in run_cases(BROKEN, cases, seconds=4) if failure}
    for kind, problem in {"raises": "ZeroDivisionError", "several_lines": "several lines", "leaves": "left ['half']",
                          "changes": "changed ['input']", "dies": "died", "noisy": "on stderr", "memory": "MemoryError",
                          "waits": "no end in 12 s"}.items():
        assert problem in found[kind], found
    assert "good" not in found


def test_what_works_for_ever_is_ended_by_the_time_it_takes_of_processors(monkeypatch):
    """However long that is on the clock of a busy machine."""
    from fuzz import harness
    from fuzz.broken import BROKEN

    monkeypatch.setattr(harness, "PATIENCE", 100)
    (_, _, failure), = harness.run_cases(BROKEN, [("works", 0)], seconds=1)
    assert "no end in 1 s of processors" in failure.problem


def test_each_core_has_a_worker():
    from fuzz.broken import tells
    from fuzz.harness import run_cases

    cores = sorted(os.sched_getaffinity(0))
    cases = [("tells", seed) for seed in range(6)]
    answers = list(run_cases({"tells": tells}, cases, cores=[cores[0], cores[-1]]))
    assert [(kind, seed) for kind, seed, _ in answers] == cases
    told = {re.search(r"process (\d+) on \[(\d+)\]", failure.problem).groups() for *_, failure in answers}
    assert len(told) == 2
    assert {int(core) for _, core in told} == {cores[0], cores[-1]}

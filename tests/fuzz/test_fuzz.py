"""A fixed number of hostile cases, the same each time; `make fuzz` runs more."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize("count", [0, 2], ids=["one worker", "two, each on its core"])
def test_the_harness_sees_what_breaks_the_promise(count):
    """Else the test above could not fail."""
    from fuzz.broken import BROKEN
    from fuzz.harness import run_cases

    cases = [(kind, 0) for kind in BROKEN]
    answers = list(run_cases(BROKEN, cases, seconds=4, cores=sorted(os.sched_getaffinity(0))[:count]))
    assert [(kind, seed) for kind, seed, _ in answers] == cases
    found = {kind: failure.problem for kind, _, failure in answers if failure}
    for kind, problem in {"raises": "ZeroDivisionError", "several_lines": "several lines", "leaves": "left ['half']",
                          "changes": "changed ['input']", "dies": "died", "noisy": "on stderr", "memory": "MemoryError",
                          "waits": "no end in 4 s", "works": "no end in 4 s"}.items():
        assert problem in found[kind], found
    assert "good" not in found

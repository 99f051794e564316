"""A few disturbed processes, the same moments each time; `make faults` runs more."""

from __future__ import annotations

import random
import sys

import pytest

from faults.faults import FAULTS, can_mount

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(sys.platform != "linux", reason="signals and a disk in memory")]
CASES = [("interrupted", "folder", 2), ("interrupted", "array", 1), ("interrupted", "likelihood", 1),
         ("killed", "encode", 1), ("interrupted", "decode", 1), ("full", "edit", 1),
         ("killed", "shards", 1), ("full", "folder", 1), ("full", "array", 1), ("shared", "shards", 1)]


@pytest.mark.parametrize(("fault", "name", "rounds"), CASES)
def test_a_disturbed_process_leaves_nothing_half(fault, name, rounds, tmp_path):
    if fault == "full" and not can_mount(tmp_path / "disk"):
        pytest.skip("this process may not mount a disk")
    disturb, _ = FAULTS[fault]
    assert [disturb(name, random.Random(number), tmp_path / str(number)) for number in range(rounds)] == [[]] * rounds

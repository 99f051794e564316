"""A few disturbed processes, the same moments each time; `make faults` runs more."""

from __future__ import annotations

import random
import sys

import pytest

from faults.faults import FAULTS, can_mount

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(sys.platform != "linux", reason="signals and a disk in memory")]
# The last are seeds: 0 draws SIGTERM and a disk that is full late, 1 Ctrl-C, kill -9 and a disk that is full early.
CASES = [("interrupted", "folder", [0, 1]), ("interrupted", "array", [0]), ("interrupted", "likelihood", [1]),
         ("killed", "encode", [0]), ("interrupted", "decode", [1]), ("full", "edit", [0]),
         ("killed", "shards", [0]), ("full", "folder", [1]), ("full", "array", [0]), ("shared", "shards", [1])]


@pytest.mark.parametrize(("fault", "name", "seeds"), CASES)
def test_a_disturbed_process_leaves_nothing_half(fault, name, seeds, tmp_path):
    if fault == "full" and not can_mount(tmp_path / "disk"):
        pytest.skip("this process may not mount a disk")
    disturb, _ = FAULTS[fault]
    assert [disturb(name, random.Random(seed), tmp_path / str(seed)) for seed in seeds] == [[]] * len(seeds)

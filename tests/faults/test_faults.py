"""A few disturbed processes, the same moments each time; `make faults` runs more."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

import pytest

from faults.faults import FAULTS, can_mount
from faults.subjects import COMMAND

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(sys.platform != "linux", reason="signals and a disk in memory")]
CASES = [("interrupted", "folder", 4), ("interrupted", "array", 1), ("interrupted", "likelihood", 2),
         ("killed", "shards", 2), ("full", "folder", 2), ("full", "array", 1), ("shared", "shards", 2)]


@pytest.mark.parametrize(("fault", "name", "rounds"), CASES)
def test_a_disturbed_process_leaves_nothing_half(fault, name, rounds, tmp_path):
    if fault == "full" and not can_mount(tmp_path / "disk"):
        pytest.skip("this process may not mount a disk")
    disturb, _ = FAULTS[fault]
    assert [disturb(name, random.Random(number), tmp_path / str(number)) for number in range(rounds)] == [[]] * rounds


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_process_that_is_told_to_end_cleans_up(name, tmp_path):
    sign = getattr(signal, name)
    command = [*COMMAND, "sample", "--provider", "cpu", "--seeds", "0-9999", "--batch-size", "4", "-o", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(sign, signal.SIG_DFL))   # which nohup would ignore
    while not (tmp_path / "out" / "000003.png").exists():
        assert process.poll() is None, process.stderr.read()
    process.send_signal(sign)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 128 + sign
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []

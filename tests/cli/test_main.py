"""``python -m sde_onnx`` as a process."""

import signal
import subprocess
import sys

import pytest
from faults.subjects import COMMAND


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="signals")
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

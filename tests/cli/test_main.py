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


@pytest.mark.parametrize(("wrapped", "status", "said"), [
    ("os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM, ""),
    ("raise KeyboardInterrupt", 1, "Aborted!\n"), ("raise ZeroDivisionError", 1, "Traceback"),
])
def test_a_signal_that_a_library_takes_for_a_failure_of_its_own(wrapped, status, said):
    """As torch's export does, and the import of a module in C."""
    program = f"""
import os, signal, sde_onnx.cli, sde_onnx.__main__
def main(**_):
    try:
        {wrapped}
    except BaseException as error:
        raise RuntimeError("initialization failed") from error
sde_onnx.cli.main = main
sde_onnx.__main__.run()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == status
    assert result.stderr.startswith(said) and (said or not result.stderr)

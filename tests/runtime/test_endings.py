"""Runs that end before their graph does."""

import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from commands import done, refuses
from faults.subjects import COMMAND
from onnx import TensorProto, helper

from sde_onnx import golden
from sde_onnx.models import bundled_model
from sde_onnx.runtime.endings import ending


def _without_end(source, path, name):
    """A copy whose output goes round a Loop for ever."""
    model = onnx.load(source)
    output = next(item for item in model.graph.output if item.name == name)
    for node in model.graph.node:
        node.output[:] = [f"{name}_made" if value == name else value for value in node.output]
        node.input[:] = [f"{name}_made" if value == name else value for value in node.input]
    element = output.type.tensor_type.elem_type
    values = [helper.make_tensor_value_info("round", TensorProto.INT64, []),
              helper.make_tensor_value_info("on", TensorProto.BOOL, []),
              helper.make_tensor_value_info("value", element, None)]
    results = [helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
               helper.make_tensor_value_info("result", element, None)]
    body = helper.make_graph([helper.make_node("Identity", ["on"], ["goes_on"]),
                              helper.make_node("Identity", ["value"], ["result"])], "body", values, results)
    model.graph.initializer.append(helper.make_tensor("for_ever", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("Loop", ["", "for_ever", f"{name}_made"], [name], body=body))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """The digits' model file, whose score is never done."""
    return _without_end(bundled_model(), tmp_path_factory.mktemp("endless") / "m.onnx", "score")


def test_a_run_ends_when_its_time_is_over_and_the_next_has_its_own(endless):
    session = ort.InferenceSession(endless, providers=["CPUExecutionProvider"])
    inputs = {"x": np.zeros((1, 3, 16, 16), np.float32), "sigma": np.ones(1, np.float32)}
    for _ in range(2):
        with ending(0.2) as options, pytest.raises(Exception, match="terminate"):
            session.run(["score"], inputs, options)
        assert options.terminate
    with ending(0.01) as options:
        pass
    time.sleep(0.05)
    assert not options.terminate   # what is over in time is left alone


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="signals")
@pytest.mark.parametrize(("name", "status", "said"), [("SIGINT", 1, "Aborted!\n"), ("SIGTERM", 128 + 15, "")])
def test_a_signal_ends_an_evaluation_under_way(endless, tmp_path, name, status, said):
    """Python's handlers alone would wait for its end."""
    sign = getattr(signal, name)
    process = subprocess.Popen([*COMMAND, "sample", endless, "--provider", "cpu", "--seeds", "0-3", "-o", "out"],
                               cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(sign, signal.default_int_handler if name == "SIGINT"
                                                                else signal.SIG_DFL))
    while not (tmp_path / "out" / "run.json").exists():   # written before the first evaluation
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(sign)
    try:
        assert process.communicate(timeout=60)[1].endswith(said)
    finally:
        process.kill()   # which would never end
    assert process.returncode == status
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


@pytest.mark.parametrize("kind", ["sampler", "evaluation"])
def test_verify_gives_a_file_so_much_time(kind, tmp_path):
    path, values = tmp_path / "s.onnx", tmp_path / "g.npz"
    done("embed", "-o", path, "--steps", 2, "--kind", kind, "--golden", values)
    file = _without_end(path, tmp_path / "endless.onnx", "image" if kind == "sampler" else "x_next")
    refuses("endless.onnx did not end in 0.5 s: raise --timeout", "verify", file, values, "--timeout", 0.5)
    assert golden.verify(path, values, timeout=1e300).passed   # more than a clock can be set to
    with pytest.raises(golden.InputError, match="timeout is 0, expected seconds above 0"):
        golden.verify(path, values, timeout=0)

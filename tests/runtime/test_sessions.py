"""Sessions of a file under CUDA, where a fake takes ONNX Runtime's place: how they are opened, what is said."""

import gc
import threading
import time
import weakref
from types import SimpleNamespace

import onnxruntime as ort
import pytest

import sde_onnx
from sde_onnx.errors import ProviderError, ProviderWarning
from sde_onnx.runtime import sessions as module
from sde_onnx.runtime.sessions import Sessions, default_options

INPUTS = [SimpleNamespace(name="x", shape=["N", 3, 16, 16]), SimpleNamespace(name="label", shape=["N"])]


@pytest.fixture
def made(monkeypatch, model):
    """``made(runs)``: sessions that call ``runs(search, inputs)`` when they run, and the ways that were tried."""
    def make(runs, target="any"):
        asked = []

        def open_session(path, provider, options, *, search, **how):
            asked.append(search)
            alone = options.get_session_config_entry if target == "cuda" else None
            return SimpleNamespace(get_inputs=lambda: INPUTS, run=lambda names, inputs: runs(search, inputs),
                                   option=alone)

        monkeypatch.setattr(module, "open_session", open_session)
        metadata = SimpleNamespace(target=target, image_shape=model.metadata.image_shape)
        return Sessions(model.path, metadata, "cuda", precision="fp32", threads=None, options=default_options), asked

    return make


def test_cudnn_is_asked_in_another_way_where_it_has_no_plan(made):
    def runs(search, inputs):
        if search != "DEFAULT":
            raise RuntimeError(f"No valid plans for {search}\nand more")

    sessions, asked = made(runs)
    with pytest.warns(ProviderWarning) as warned:
        session = sessions.session(2)
    assert [str(item.message) for item in warned] == [
        f"cuDNN has no plan by {failed} for a convolution of this network, {following} is tried: No valid plans for "
        f"{failed}" for failed, following in (("EXHAUSTIVE", "HEURISTIC"), ("HEURISTIC", "DEFAULT"))]
    assert sessions.session(2) is session
    sessions.session(3)   # said and tried once
    assert asked == ["EXHAUSTIVE", "HEURISTIC", "DEFAULT", "DEFAULT"]


def test_two_threads_try_each_way_once(made):
    def runs(search, inputs):
        if search == "EXHAUSTIVE":
            time.sleep(0.1)   # in which the other thread begins
            raise RuntimeError("no plan")

    sessions, asked = made(runs)
    threads = [threading.Thread(target=sessions.session, args=(batch,)) for batch in (2, 3)]
    with pytest.warns(ProviderWarning) as warned:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert asked == ["EXHAUSTIVE", "HEURISTIC", "HEURISTIC"]
    assert len(warned) == 1


def test_a_session_is_tried_on_images_and_the_first_label(made):
    given = []
    sessions, _ = made(lambda search, inputs: given.append(inputs))
    sessions.session(2)
    [inputs] = given
    assert (inputs["x"].shape, inputs["x"].min()) == ((2, 3, 16, 16), 1)
    assert inputs["label"].tolist() == [0, 0]


def test_a_file_for_cuda_leaves_the_cpu_no_work(made):
    entry = "session.disable_cpu_ep_fallback"
    sessions, _ = made(lambda search, inputs: None, target="cuda")
    assert sessions.session(2).option(entry) == "1"


@pytest.mark.parametrize("error", [RuntimeError("CUDA failure 2: out of memory"), ZeroDivisionError("ours")])
def test_what_no_other_plan_would_mend_is_told_as_it_is(error, made):
    def runs(search, inputs):
        raise error

    sessions, asked = made(runs)
    with pytest.raises(type(error), match=str(error)):
        sessions.session(2)
    assert asked == ["EXHAUSTIVE"]


def test_a_provider_that_was_left_out_is_told_as_it_is(made, monkeypatch):
    """It is a RuntimeError as well, and no plan of cuDNN's would mend it."""
    sessions, _ = made(lambda search, inputs: None)
    left_out = ProviderError("ONNX Runtime left CUDAExecutionProvider out")
    monkeypatch.setattr(module, "open_session", lambda *_, **__: (_ for _ in ()).throw(left_out))
    with pytest.raises(ProviderError) as error:
        sessions.session(2)
    assert error.value is left_out


def test_a_model_that_nobody_holds_gives_its_memory_back(model_file):
    """At once, and not when Python next looks for cycles."""
    gc.disable()
    try:
        model = sde_onnx.load(model_file, "cpu")
        session = weakref.ref(model._open_for(1))
        assert model._open_for(1) is session()
        del model
        assert session() is None
    finally:
        gc.enable()


def test_a_loop_is_captured(made, monkeypatch):
    sessions, _ = made(lambda search, inputs: None, target="cuda")
    monkeypatch.setattr(ort, "__version__", "1.31.1")
    opened = []
    monkeypatch.setattr(module, "open_session", lambda *_, **how: opened.append(how["capture"]))
    monkeypatch.setattr(module, "DeviceLoop", lambda session, device, shape, capacity: (device, shape, capacity))
    assert sessions.loop(2, 64) is sessions.loop(2, 64)
    assert sessions.loop(2, 64) == ("cuda", (2, 3, 16, 16), 64)
    assert opened == [True]


def test_the_last_two_sessions_are_kept(made):
    sessions, asked = made(lambda search, inputs: None)
    for batch in (1, 2, 1, 3, 1):   # 2 is the one that was used longest ago
        sessions.session(batch)
    assert len(asked) == 3
    sessions.session(2)
    assert len(asked) == 4


def test_the_loop_under_cuda_needs_a_runtime_that_captures_rightly(made, monkeypatch):
    sessions, asked = made(lambda search, inputs: None, target="cuda")
    monkeypatch.setattr(ort, "__version__", "1.30.2")
    with pytest.raises(ProviderError, match=r"the loop under cuda needs onnxruntime-gpu 1.31 or later, this is 1.30.2"):
        sessions.loop(2, 64)
    assert asked == []

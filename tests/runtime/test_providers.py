import re
import warnings
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from commands import done, refuses

import sde_onnx
from sde_onnx.errors import InputError, InstallationWarning, ProviderError, ProviderWarning
from sde_onnx.runtime import providers
from sde_onnx.runtime.machine import processor
from sde_onnx.runtime.providers import doubled_installation


def test_the_probe_is_one_convolution_that_doubles():
    model = onnx.load_from_string(providers.PROBE_MODEL)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Expand", "Conv"]
    session = ort.InferenceSession(providers.PROBE_MODEL, providers=["CPUExecutionProvider"])
    x = np.ones(providers.PROBE_SHAPE, np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], 2 * x)


def test_the_cpu_is_always_usable():
    assert providers.usable_providers()[-1] == "cpu"
    assert providers.choose_provider("auto") in providers.usable_providers()
    assert providers.choose_provider("cpu") == "cpu"


def test_a_listed_provider_that_fails_is_not_offered(monkeypatch):
    """What the GPU wheel does on a machine without a GPU: CUDA is listed, and the session runs on the CPU."""

    class CpuInDisguise:
        def __init__(self, *args, **kwargs):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

        def run(self, *args):
            return [np.ones((1, 1, 1, 1))]

    monkeypatch.setattr(providers.ort, "get_available_providers",
                        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(providers.ort, "InferenceSession", CpuInDisguise)
    preloaded = []
    monkeypatch.setattr(providers.ort, "preload_dlls", lambda: preloaded.append(True))
    providers._failure.cache_clear()
    try:
        assert providers.usable_providers() == ["cpu"]
        assert preloaded == [True]   # for CUDA, and for nothing else that is here
        with pytest.raises(ProviderError, match="its libraries or its device are missing; for an NVIDIA GPU"):
            providers.choose_provider("cuda")
    finally:
        providers._failure.cache_clear()


@pytest.mark.parametrize(("said", "told"), [
    ("tensorrt_provider_factory.cc:59 Please install TensorRT libraries", "TensorRT is missing; for an NVIDIA GPU"),
    ("no kernel image is available\nand more", "no kernel image is available; for an NVIDIA GPU"),
])
def test_what_tensorrt_misses_is_said_in_words(said, told, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError(said)

    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(providers, "open_session", fails)
    monkeypatch.setattr(providers.ort, "preload_dlls", lambda: None)
    providers._failure.cache_clear()
    try:
        assert providers._failure("tensorrt").startswith(told)
    finally:
        providers._failure.cache_clear()


def test_an_unknown_provider_is_refused():
    known = "auto, cuda, tensorrt, tensorrt-rtx, webgpu, openvino, cpu"
    with pytest.raises(InputError, match=f"provider 'rocm' is unknown, expected one of: {known}"):
        providers.choose_provider("rocm")


def test_tensorrt_is_never_chosen_unasked(monkeypatch):
    """It builds an engine for minutes."""
    monkeypatch.setattr(providers, "_failure", lambda name: None if name in ("tensorrt", "cpu") else "not here")
    assert providers.choose_provider("auto") == "cpu"
    assert providers.choose_provider("tensorrt", "fp16") == "tensorrt"


def test_tensorrt_is_missed_in_one_line():
    if "tensorrt" in providers.usable_providers():
        pytest.skip("TensorRT is here")
    with pytest.raises(ProviderError) as error:
        providers.choose_provider("tensorrt")
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt-cu13" in str(error.value)
    assert "\n" not in str(error.value)


def test_providers_get_their_options(monkeypatch, tmp_path):
    """TensorFloat-32 only where it was asked for; CUDA graphs only where buffers are bound."""
    seen = []

    class Session:
        def __init__(self, model, options, providers, enable_fallback):
            seen.append(dict(providers))
            self.providers = [name for name, _ in providers]

        def get_providers(self):
            return self.providers

    monkeypatch.setattr(providers.ort, "InferenceSession", Session)
    monkeypatch.setenv("SDE_ONNX_CACHE", str(tmp_path))
    for provider, options in (("cuda", {}), ("cuda", {"precision": "tf32", "capture": True}),
                              ("cuda", {"precision": "fp16", "search": "HEURISTIC"}),
                              ("tensorrt", {"precision": "fp16"}), ("cpu", {})):
        providers.open_session("m.onnx", provider, providers.ort.SessionOptions(), **options)
    plain, captured, half, tensorrt, cpu = seen
    for chosen, tf32, fused, graphs, search in ((plain, "0", "0", "0", "EXHAUSTIVE"),
                                                (captured, "1", "1", "1", "EXHAUSTIVE"),
                                                (half, "1", "1", "0", "HEURISTIC")):
        options = chosen["CUDAExecutionProvider"]
        assert [options[name] for name in ("use_tf32", "fuse_conv_bias", "enable_cuda_graph",
                                           "cudnn_conv_algo_search")] == [tf32, fused, graphs, search]
    assert list(tensorrt) == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    assert tensorrt["TensorrtExecutionProvider"]["trt_fp16_enable"] == "1"
    assert tensorrt["TensorrtExecutionProvider"]["trt_engine_cache_path"].startswith(str(tmp_path))
    assert cpu == {"CPUExecutionProvider": {}}


def test_every_provider_says_why_it_can_or_cannot_run(model_file):
    lines = dict(line.split(maxsplit=1) for line in done("info", "--providers").stdout.splitlines())
    assert list(lines) == [*providers.PROVIDERS, "auto"]
    for name in providers.PROVIDERS:
        usable = name in providers.usable_providers()
        assert lines[name].startswith("runs in fp32" if usable else "cannot run here: "), lines[name]
    assert lines["cpu"] == f"runs in fp32 on {processor()}"
    assert lines["auto"] == providers.choose_provider("auto")
    refuses("leave out MODEL and --json", "info", model_file, "--providers", status=2)


def test_a_probe_leaves_onnxruntimes_warnings_on(monkeypatch):
    """They are off while it runs: what a provider that is not here says is told in one line."""
    levels = []
    monkeypatch.setattr(providers.ort, "set_default_logger_severity", levels.append)
    assert providers._failure.__wrapped__("cpu") is None
    assert levels == [4, 2]   # ONNX Runtime's own default is 2


@pytest.mark.parametrize(("mark", "said"), [
    ("driver", "an NVIDIA GPU is here and not used, provider cpu is: cuda cannot run here (not here)"),
    ("renderD128", "a GPU is here and not used, provider cpu is: webgpu cannot run here (not here)"),
])
def test_a_gpu_that_is_not_used_is_told(mark, said, model_file, monkeypatch, tmp_path):
    """To whom did not choose; and not where there is none, or it is used."""
    monkeypatch.setattr(providers, "_failure", lambda name: None if name == "cpu" else "not here")
    monkeypatch.setattr(providers, "NVIDIA_DRIVER", (tmp_path / "none", tmp_path / "driver"))
    monkeypatch.setattr(providers, "GPU_NODES", tmp_path)
    monkeypatch.setattr(providers.sys, "platform", "linux")
    assert providers.gpu_note("cpu") is None
    (tmp_path / mark).touch()
    assert providers.gpu_note("cuda") is None
    with pytest.warns(ProviderWarning, match=f"^{re.escape(said)}$"):
        sde_onnx.load(model_file)
    assert f"Note: {said}\n" in done("sample", model_file, "--steps", 2, "-o", tmp_path / "s.png").stderr
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProviderWarning)
        sde_onnx.load(model_file, "cpu")


def test_names_that_are_no_utf8_are_an_error_of_onnx_runtimes(monkeypatch):
    """Its message quotes them, and its binding fails on that."""
    def fails(*arguments, **options):
        b"\x9f".decode()

    monkeypatch.setattr(providers.ort, "InferenceSession", fails)
    with pytest.raises(RuntimeError, match="the file holds names that are no UTF-8") as error:
        providers.open_session("m.onnx", "cpu", providers.ort.SessionOptions())
    assert isinstance(error.value, providers.ORT_ERRORS)


@pytest.mark.gpu
def test_cuda_is_chosen_where_it_runs():
    assert providers.choose_provider("auto") == "cuda"


def test_two_packages_of_onnx_runtime_are_noticed(model_file, monkeypatch, tmp_path):
    """They have one folder: whichever is installed last replaces the other's libraries, without a word."""
    installed = metadata.distributions

    def with_another(**query):
        yield from installed(**query)
        if query.get("name") == "onnxruntime":
            yield SimpleNamespace()

    assert doubled_installation() is None
    monkeypatch.setattr(metadata, "distributions", with_another)
    with pytest.warns(InstallationWarning, match="^onnxruntime and onnxruntime-gpu are installed, and which") as said:
        sde_onnx.load(model_file, "cpu")
    mend = ": pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
    assert str(said[0].message).endswith(mend)
    told = done("sample", model_file, "--steps", 2, "--provider", "cpu", "-o", tmp_path / "s.png").stderr
    assert told.startswith("Note: onnxruntime and onnxruntime-gpu are installed")
    assert told.count("\n") == 1

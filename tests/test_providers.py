import numpy as np
import onnx
import pytest

from sde_onnx import providers
from sde_onnx.errors import InputError, ProviderError


def test_the_probe_is_one_convolution_that_doubles():
    model = onnx.load_from_string(providers.PROBE_MODEL)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    assert onnx.numpy_helper.to_array(model.graph.initializer[0]).item() == 2


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
    monkeypatch.setattr(providers.ort, "preload_dlls", lambda: None)
    providers._failure.cache_clear()
    try:
        assert providers.usable_providers() == ["cpu"]
        with pytest.raises(ProviderError, match="its libraries or its device are missing"):
            providers.choose_provider("cuda")
    finally:
        providers._failure.cache_clear()


def test_an_unknown_provider_is_refused():
    with pytest.raises(InputError, match="provider 'rocm' is unknown, expected one of: auto, cuda, openvino, cpu"):
        providers.choose_provider("rocm")


@pytest.mark.gpu
def test_cuda_is_chosen_where_it_runs():
    if "cuda" not in providers.usable_providers():
        pytest.skip("no CUDA device that ONNX Runtime can use")
    assert providers.choose_provider("auto") == "cuda"

import dataclasses
import json
import warnings
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

import sde_onnx
from sde_onnx.cli import main
from sde_onnx.errors import InputError, ProviderError
from sde_onnx.runtime import openvino, plugins, providers

from networks import noisy_images, worst_relative_error

runs_here = pytest.mark.skipif(plugins.why_not("openvino") is not None, reason=str(plugins.why_not("openvino")))
SIGMAS = (0.01, 0.5, 50.0)
pytestmark = pytest.mark.filterwarnings("ignore::sde_onnx.errors.SlowPrecisionWarning")   # true of some machines


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SDE_ONNX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture
def missing(monkeypatch):
    absent = dataclasses.replace(plugins.PLUGINS["openvino"], module="no_such_package")
    monkeypatch.setitem(plugins.PLUGINS, "openvino", absent)
    providers._failure.cache_clear()
    yield
    providers._failure.cache_clear()


@runs_here
# float32 leaves the rounding of log sigma, which phases of 10^3 rad enlarge; bfloat16 has 8 bits, rounded layer by
# layer. Phases in bfloat16 would be off by turns and pass this bound by far.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 3e-5), ("bf16", 3e-2)])
def test_scores_are_those_of_the_cpu_provider(precision, tolerance, model_file, model, rng):
    fast = sde_onnx.load(model_file, "openvino", precision=precision)
    x, sigma = noisy_images(rng, SIGMAS, (3, 16, 16))
    x /= 5   # small images leave the embedding more say
    assert worst_relative_error(fast(x, sigma), model(x, sigma)) < tolerance
    assert (fast.provider, fast.precision) == ("openvino", precision)


@runs_here
def test_compiled_models_are_kept(model_file, cache, rng):
    x, sigma = noisy_images(rng, SIGMAS, (3, 16, 16))
    sde_onnx.load(model_file, "openvino")(x, sigma)
    files = set(cache.iterdir())
    assert files
    sde_onnx.load(model_file, "openvino")(x, sigma)
    assert set(cache.iterdir()) == files


@runs_here
def test_auto_prefers_it_in_fp32_and_says_so(model_file, tmp_path):
    if "cuda" in providers.usable_providers():
        pytest.skip("CUDA comes first")
    arguments = ["sample", str(model_file), "--seeds", "1", "--steps", "2", "-o", str(tmp_path / "s.npz")]
    result = CliRunner().invoke(main, arguments)
    assert "openvino fp32" in result.output
    assert sde_onnx.load(model_file, precision="bf16").provider == "openvino"


@runs_here
@pytest.mark.parametrize("flags", ["avx512_bf16", "avx512_bf16 amx_bf16 amx_tile"])
def test_bf16_without_matrix_units_is_said_to_be_slow(flags, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu avx2 {flags}\n")
    monkeypatch.setattr(openvino, "CPUINFO", tmp_path / "cpuinfo")
    arguments = ["bench", "--seconds", "0.1", "--batch-size", "1", "--provider", "openvino", "--precision"]
    slow, plain = (CliRunner().invoke(main, [*arguments, precision]) for precision in ("bf16", "fp32"))
    assert slow.exit_code == plain.exit_code == 0, slow.output + plain.output
    told = "Note: bf16 is slower than fp32 on this processor, which has no matrix units for it (AMX)\n"
    assert slow.stderr == ("" if "amx" in flags else told)
    assert plain.stderr == ""


@runs_here
def test_session_options_are_refused(model_file):
    with pytest.raises(InputError, match="session_options go with every provider but openvino"):
        sde_onnx.load(model_file, "openvino", session_options=ort.SessionOptions)


def test_no_other_provider_is_called_slow(model_file, monkeypatch):
    monkeypatch.setattr(openvino, "why_slow", lambda precision: "slower than float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sde_onnx.load(model_file, "cpu")


def test_without_the_package_it_is_not_offered(missing, model_file, monkeypatch):
    processor = SimpleNamespace(type=ort.OrtHardwareDeviceType.CPU, vendor_id=openvino.INTEL, vendor="Intel")
    monkeypatch.setattr(ort, "get_ep_devices", lambda: [SimpleNamespace(device=processor, ep_name="none")])
    assert "openvino" not in providers.usable_providers()
    for provider in ("openvino", "auto"):
        with pytest.raises(ProviderError, match=r"cannot run here.*pip install 'sde-onnx\[openvino\]'"):
            sde_onnx.load(model_file, provider, precision="bf16")


def test_a_processor_that_the_plugin_does_not_take_is_named(monkeypatch, model_file):
    pytest.importorskip(plugins.PLUGINS["openvino"].module)
    processor = SimpleNamespace(type=ort.OrtHardwareDeviceType.CPU, vendor_id=0x1022, vendor="AMD")
    monkeypatch.setattr(ort, "get_ep_devices", lambda: [SimpleNamespace(device=processor, ep_name="none")])
    providers._failure.cache_clear()
    try:
        with pytest.raises(ProviderError, match="takes Intel's processors only, this one is of AMD"):
            sde_onnx.load(model_file, "openvino")
    finally:
        providers._failure.cache_clear()


def test_a_precision_that_a_provider_has_not_is_refused(model_file):
    with pytest.raises(InputError, match="provider cpu computes in fp32; bf16 needs provider openvino"):
        sde_onnx.load(model_file, "cpu", precision="bf16")
    with pytest.raises(InputError, match="precision 'fp8' is unknown, expected one of: fp32, tf32, fp16, bf16"):
        sde_onnx.load(model_file, precision="fp8")


def test_threads_and_precision_reach_openvino():
    options = openvino.openvino_options(precision="bf16", threads=3, cached=False)
    assert json.loads(options["load_config"])["CPU"] == {
        "INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": 3, "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1"}


def test_threads_reach_onnx_runtime(model_file):
    model = sde_onnx.load(model_file, "cpu", threads=1)
    assert model._open_for(2).get_session_options().intra_op_num_threads == 1
    with pytest.raises(InputError, match="threads is 0"):
        sde_onnx.load(model_file, "cpu", threads=0)
    assert np.isfinite(model(np.zeros((2, 3, 16, 16), np.float32), np.ones(2, np.float32))).all()

"""Plugins that are not at hand, or whose device is not: what is registered, taken, told and refused.

tests/runtime/test_webgpu.py runs one.
"""

import dataclasses
import functools
import sys
from types import SimpleNamespace

import onnxruntime as ort
import pytest

import sde_onnx
from sde_onnx.cli.options import PROVIDER
from sde_onnx.errors import ProviderError
from sde_onnx.runtime import plugins, providers
from sde_onnx.runtime.plugins import PLUGINS


def listed(name, kind=ort.OrtHardwareDeviceType.GPU, **metadata):
    """A device as ONNX Runtime lists it."""
    device = SimpleNamespace(type=kind, vendor="NVIDIA", vendor_id=0x10DE, metadata=metadata)
    return SimpleNamespace(ep_name=providers.PROVIDERS[name], device=device, ep_metadata={})


@pytest.fixture
def plugin(monkeypatch):
    """A package of a plugin, as Python and ONNX Runtime see it; gives what ONNX Runtime was told."""
    told = SimpleNamespace(registered=[], added=[], devices=[listed("webgpu")])
    module = SimpleNamespace(get_library_path=lambda: "/libplugin.so")
    monkeypatch.setitem(sys.modules, "a_plugin", module)
    monkeypatch.setitem(plugins.PLUGINS, "webgpu", dataclasses.replace(PLUGINS["webgpu"], module="a_plugin"))
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda *given: told.registered.append(given))
    monkeypatch.setattr(ort, "get_ep_devices", lambda: told.devices)
    told.options = SimpleNamespace(add_provider_for_devices=lambda *given: told.added.append(given))
    told.module = module
    monkeypatch.setattr(plugins, "_register", functools.cache(plugins._register.__wrapped__))
    return told


@pytest.fixture
def runs(monkeypatch):
    """``runs(*names)``: those providers and the CPU run here, as far as a probe can tell."""
    def runs(*names):
        monkeypatch.setattr(providers, "_failure", lambda name: None if name in (*names, "cpu") else "not here")

    return runs


def test_every_plugin_is_a_provider_that_can_be_asked_for():
    assert set(PLUGINS) < set(providers.PROVIDERS)
    assert list(PROVIDER.choices) == ["auto", *providers.PROVIDERS]


def test_a_plugin_is_registered_once_and_gets_its_gpu_and_its_options(plugin):
    plugin.devices = [listed("cpu"), listed("webgpu", ort.OrtHardwareDeviceType.CPU), listed("webgpu", is_virtual="1"),
                      listed("webgpu")]
    for _ in range(2):
        own = PLUGINS["webgpu"].options(precision="fp32", threads=None, cached=True, on_cpu=["a/Sin1", "a/Cos2"])
        plugins.add_plugin("webgpu", plugin.options, own, is_built_in=False)
    assert plugin.registered == [("sde_onnx_webgpu", "/libplugin.so")]
    assert plugin.added == 2 * [([plugin.devices[3]], {"powerPreference": "high-performance",
                                                       "forceCpuNodeNames": "a/Sin1\na/Cos2"})]


def test_a_provider_that_is_built_in_gets_the_options_alone(plugin):
    options = ort.SessionOptions()
    own = PLUGINS["webgpu"].options(precision="fp32", threads=None, cached=True, on_cpu=())
    assert plugins.add_plugin("webgpu", options, own, is_built_in=True) == [("WebGpuExecutionProvider", {})]
    assert options.get_session_config_entry("ep.webgpuexecutionprovider.powerPreference") == "high-performance"
    assert not plugin.registered


def test_devices_that_are_none_are_not_taken(plugin):
    plugin.devices = [listed("webgpu", is_virtual="1"), listed("cpu")]
    with pytest.raises(RuntimeError, match="^onnxruntime-ep-webgpu finds no device here .*: it needs a GPU"):
        plugins.device_of("webgpu")


def test_a_package_that_cannot_be_loaded_is_named(plugin):
    def broken():
        raise OSError("libcudart.so.13: cannot open shared object file")

    plugin.module.get_library_path = broken
    with pytest.raises(RuntimeError, match="^onnxruntime-ep-webgpu cannot be loaded: libcudart"):
        plugins.device_of("webgpu")


@pytest.mark.parametrize(("name", "how"), [("webgpu", r"pip install 'sde-onnx\[webgpu\]'"),
                                           ("tensorrt-rtx", "pip install onnxruntime-ep-nv-tensorrt-rtx")])
def test_a_package_that_is_missing_is_named_with_what_installs_it(name, how, monkeypatch, model_file):
    monkeypatch.setitem(plugins.PLUGINS, name, dataclasses.replace(PLUGINS[name], module="no_such_package"))
    providers._failure.cache_clear()
    try:
        with pytest.raises(ProviderError, match=f"provider {name} cannot run here .* is not installed: .*{how}"):
            sde_onnx.load(model_file, name)
    finally:
        providers._failure.cache_clear()


def test_without_a_gpu_the_package_is_refused_in_one_line(model_file):
    pytest.importorskip(PLUGINS["webgpu"].module)
    if "webgpu" in providers.usable_providers():
        pytest.skip("WebGPU runs here")
    with pytest.raises(ProviderError, match="onnxruntime-ep-webgpu finds no device here that it can use") as error:
        sde_onnx.load(model_file, "webgpu")
    assert "\n" not in str(error.value)


def test_auto_takes_webgpu_where_a_gpu_is_listed_and_cuda_does_not_run(plugin, runs, monkeypatch, tmp_path):
    monkeypatch.setattr(providers, "NVIDIA_DRIVER", (tmp_path / "none",))
    monkeypatch.setattr(providers, "GPU_NODES", tmp_path)
    runs("webgpu", "openvino")
    assert providers.choose_provider("auto") == "webgpu"
    assert providers.gpu_note("webgpu") == "provider webgpu is used, on NVIDIA GPU"
    monkeypatch.setattr(providers, "NVIDIA_DRIVER", (tmp_path,))
    assert providers.gpu_note("webgpu") == "provider webgpu is used, on NVIDIA GPU: cuda cannot run here (not here)"
    runs("webgpu", "cuda")
    assert providers.choose_provider("auto") == "cuda"
    runs("webgpu", "openvino")
    plugin.devices = [listed("webgpu", is_virtual="1")]   # it runs, in software
    assert providers.choose_provider("auto") == "openvino"
    assert providers.choose_provider("webgpu") == "webgpu"


def test_a_line_of_source_is_no_reason(monkeypatch):
    """Which is what onnxruntime-webgpu gives where no driver is found."""
    def fails(*_, **__):
        raise RuntimeError("/onnxruntime_src/onnxruntime/core/providers/webgpu/webgpu_context.cc:65 onnxruntime::")

    monkeypatch.setattr(providers.ort, "get_available_providers", lambda: ["WebGpuExecutionProvider"])
    monkeypatch.setattr(providers, "open_session", fails)
    providers._failure.cache_clear()
    try:
        assert providers._failure("webgpu") == (
            "it finds no device here that it can use: it needs a GPU with its driver for Vulkan, Metal or Direct3D 12")
    finally:
        providers._failure.cache_clear()

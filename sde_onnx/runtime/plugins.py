"""Execution providers that are packages of their own, which ONNX Runtime loads when it is told to: plugins.

    provider       package                          runs on                                      tested on
    openvino       onnxruntime-ep-openvino          Intel's processors                           processors
    webgpu         onnxruntime-ep-webgpu            GPUs, by Vulkan, Metal or Direct3D 12        a software Vulkan
    tensorrt-rtx   onnxruntime-ep-nv-tensorrt-rtx   NVIDIA's RTX GPUs from Ampere on             nothing

A new one is a row of PLUGINS, and a name among those of ``--provider`` (``cli/options.py``). Source: ONNX Runtime's
documentation, "Plugin Execution Provider Libraries", and the packages' own pages for names and options.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from sde_onnx.errors import first_line
from sde_onnx.runtime import openvino

__all__ = ["PLUGINS", "Plugin", "add_plugin", "device_of", "why_not"]


@dataclass(frozen=True)
class Plugin:
    """A provider's package, what it is told, and which of its devices is taken."""

    package: str      # as pip knows it
    module: str       # as Python knows it
    ep_name: str      # the provider, as ONNX Runtime knows it
    get: str          # the command that installs it
    precisions: tuple[str, ...]                    # of a file that leaves it open; the first is the default
    takes: Callable[[ort.OrtEpDevice], bool]       # whether a device of it is one to run on
    options: Callable[..., Mapping[str, str]]      # its own, of open_session's precision, threads, cached and on_cpu
    hindrance: Callable[[], str | None] = lambda: None   # why this machine is none for it, as far as that is known
    needs: str = "a device of its own"                   # what it finds where it can run


def _is_gpu(device: ort.OrtEpDevice) -> bool:
    hardware = device.device
    return bool(hardware.type == ort.OrtHardwareDeviceType.GPU) and hardware.metadata.get("is_virtual") != "1"


def _of_webgpu(*, on_cpu: Sequence[str], **_: Any) -> dict[str, str]:
    return {"powerPreference": "high-performance"} | (   # of two GPUs in a laptop the faster
        {"forceCpuNodeNames": "\n".join(on_cpu)} if on_cpu else {})


PLUGINS: Mapping[str, Plugin] = {
    "tensorrt-rtx": Plugin(
        package="onnxruntime-ep-nv-tensorrt-rtx", module="onnxruntime_ep_nv_tensorrt_rtx",
        ep_name="NvTensorRTRTXExecutionProvider",
        get="for an NVIDIA RTX GPU install its driver and `pip install onnxruntime-ep-nv-tensorrt-rtx`",
        precisions=("fp32",), takes=_is_gpu, options=lambda **_: {}, needs="an NVIDIA RTX GPU with its driver"),
    "webgpu": Plugin(
        package="onnxruntime-ep-webgpu", module="onnxruntime_ep_webgpu",
        ep_name="WebGpuExecutionProvider", get="pip install 'sde-onnx[webgpu]'",
        precisions=("fp32",), takes=_is_gpu, options=_of_webgpu,
        needs="a GPU with its driver for Vulkan, Metal or Direct3D 12"),
    "openvino": Plugin(
        package="onnxruntime-ep-openvino", module="onnxruntime_ep_openvino",
        ep_name="OpenVINOExecutionProvider", get="pip install 'sde-onnx[openvino]'",
        precisions=tuple(openvino.PRECISIONS), takes=lambda device: device.ep_metadata.get("ov_device") == "CPU",
        options=openvino.openvino_options, hindrance=openvino.why_not),
}


def why_not(name: str) -> str | None:
    """Why a plugin, a key of PLUGINS, cannot run here, or ``None`` if nothing is known that would stop it."""
    plugin = PLUGINS[name]
    if (reason := plugin.hindrance()) is not None:   # before the user is told to install it
        return reason
    if importlib.util.find_spec(plugin.module) is None:
        return f"{plugin.package} is not installed: {plugin.get}"
    return None


def add_plugin(name: str, options: ort.SessionOptions, own: Mapping[str, str], *, is_built_in: bool
               ) -> list[tuple[str, dict[str, str]]] | None:
    """Makes a session run under a plugin; returns the providers that it is to name.

    Args:
        name: a key of PLUGINS.
        options: the session's options, changed in place.
        own: the provider's.
        is_built_in: whether this onnxruntime was built with the provider, which is then named and not added.

    Raises:
        RuntimeError: the package cannot be loaded, or finds no device.
    """
    if not is_built_in:
        options.add_provider_for_devices([device_of(name)], dict(own))
        return None
    for key, value in own.items():   # where a plugin's options end up as well
        options.add_session_config_entry(f"ep.{PLUGINS[name].ep_name.lower()}.{key}", value)
    return [(PLUGINS[name].ep_name, {})]


def device_of(name: str) -> ort.OrtEpDevice:
    """The device that a plugin, a key of PLUGINS, runs on; ``RuntimeError`` if there is none."""
    plugin = PLUGINS[name]
    _register(name)
    for device in ort.get_ep_devices():
        if device.ep_name == plugin.ep_name and plugin.takes(device):
            return device
    raise RuntimeError(f"{plugin.package} finds no device here that it can use: it needs {plugin.needs}")


@functools.cache
def _register(name: str) -> None:
    """Loads a plugin, once a process."""
    plugin = PLUGINS[name]
    try:
        library = importlib.import_module(plugin.module).get_library_path()
        ort.register_execution_provider_library(f"sde_onnx_{name}", library)
    except (ImportError, OSError) as error:
        raise RuntimeError(f"{plugin.package} cannot be loaded: {first_line(error)}") from None

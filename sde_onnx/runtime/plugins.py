"""Execution providers that are packages of their own, which ONNX Runtime loads when it is told to: plugins.

    provider       package                          runs on                                      tested on
    openvino       onnxruntime-ep-openvino          Intel's processors                           processors
    webgpu         onnxruntime-ep-webgpu            GPUs, by Vulkan, Metal or Direct3D 12        a software Vulkan
    tensorrt-rtx   onnxruntime-ep-nv-tensorrt-rtx   NVIDIA's RTX GPUs from Ampere on             nothing

A new one is a row of PLUGINS. Source: ONNX Runtime's documentation, "Plugin Execution Provider Libraries", and the
packages' own pages for names and options.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
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
    get: str          # the command that installs it
    precisions: tuple[str, ...]                    # of a file that leaves it open; the first is the default
    takes: Callable[[ort.OrtEpDevice], bool]       # whether a device of it is one to run on
    options: Callable[..., Mapping[str, str]]      # its own, for `precision`, `threads` and `cached` of open_session
    hindrance: Callable[[], str | None] = lambda: None   # why this machine is none for it, as far as that is known


def _is_gpu(device: ort.OrtEpDevice) -> bool:
    hardware = device.device
    return bool(hardware.type == ort.OrtHardwareDeviceType.GPU) and hardware.metadata.get("is_virtual") != "1"


def _of_webgpu(**_: Any) -> dict[str, str]:
    return {"powerPreference": "high-performance"}   # of two GPUs in a laptop the faster


PLUGINS: Mapping[str, Plugin] = {
    "tensorrt-rtx": Plugin(
        package="onnxruntime-ep-nv-tensorrt-rtx", module="onnxruntime_ep_nv_tensorrt_rtx",
        get="for an NVIDIA RTX GPU install its driver and `pip install onnxruntime-ep-nv-tensorrt-rtx`",
        precisions=("fp32",), takes=_is_gpu, options=lambda **_: {}),
    "webgpu": Plugin(
        package="onnxruntime-ep-webgpu", module="onnxruntime_ep_webgpu", get="pip install 'sde-onnx[webgpu]'",
        precisions=("fp32",), takes=_is_gpu, options=_of_webgpu),
    "openvino": Plugin(
        package="onnxruntime-ep-openvino", module="onnxruntime_ep_openvino", get="pip install 'sde-onnx[openvino]'",
        precisions=tuple(openvino.PRECISIONS), takes=lambda device: device.ep_metadata.get("ov_device") == "CPU",
        options=openvino.openvino_options, hindrance=openvino.why_not),
}


def why_not(name: str) -> str | None:
    """Why a plugin, a key of PLUGINS, cannot run here, or ``None`` if nothing is known that would stop it."""
    plugin = PLUGINS[name]
    if importlib.util.find_spec(plugin.module) is None:
        return f"{plugin.package} is not installed: {plugin.get}"
    return plugin.hindrance()


def add_plugin(
    name: str, options: ort.SessionOptions, *, precision: str, threads: int | None, cached: bool,
) -> None:
    """Makes a session run under a plugin.

    Args:
        name: a key of PLUGINS.
        options: the session's options, changed in place.
        precision, threads, cached: see :func:`sde_onnx.runtime.providers.open_session`.

    Raises:
        RuntimeError: the package cannot be loaded, or finds no device.
    """
    own = PLUGINS[name].options(precision=precision, threads=threads, cached=cached)
    options.add_provider_for_devices([device_of(name)], dict(own))


def device_of(name: str) -> ort.OrtEpDevice:
    """The device that a plugin, a key of PLUGINS, runs on; ``RuntimeError`` if there is none."""
    plugin, ep_name = PLUGINS[name], _registered(name)
    for device in ort.get_ep_devices():
        if device.ep_name == ep_name and plugin.takes(device):
            return device
    raise RuntimeError(f"{plugin.package} finds no device here that it can use")


@functools.cache
def _registered(name: str) -> str:
    """ONNX Runtime's name of a plugin's provider; loads the plugin, once a process."""
    plugin = PLUGINS[name]
    try:
        module = importlib.import_module(plugin.module)
        ort.register_execution_provider_library(f"sde_onnx_{name}", module.get_library_path())
    except (ImportError, OSError) as error:
        raise RuntimeError(f"{plugin.package} cannot be loaded: {first_line(error)}") from None
    ep_name: str = module.get_ep_name()
    return ep_name

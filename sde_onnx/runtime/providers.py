"""Execution providers: what is really usable here, and under which name.

ONNX Runtime lists the providers that it was built with, whether or not the machine has their hardware and libraries,
and runs on the CPU without a word where one fails. Here a provider counts only once it has run a convolution.
"""

from __future__ import annotations

import contextlib
import functools
import io
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from sde_onnx.checks import checked_choice
from sde_onnx.errors import InputError, ProviderError
from sde_onnx.files import regular
from sde_onnx.runtime.cuda_options import (
    CUDA_PRECISIONS,
    HOW_TO_GET,
    SEARCHES,
    TENSORRT_PRECISIONS,
    cuda_options,
    tensorrt_options,
)
from sde_onnx.runtime.machine import available_cores, processor
from sde_onnx.runtime.plugins import PLUGINS, add_plugin, why_not

__all__ = ["KNOWN_PRECISIONS", "OF_NVIDIA", "ORT_ERRORS", "PRECISIONS", "PROVIDERS", "checked_provider",
           "choose_provider", "describe_providers", "doubled_installation", "gpu_note", "open_session",
           "usable_providers"]

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-webgpu", "onnxruntime-directml")   # packages of one module
# Our names for ONNX Runtime's, the preferred first.
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    **{name: plugin.ep_name for name, plugin in PLUGINS.items()},
    "cpu": "CPUExecutionProvider",
}
AUTO = ("cuda", "webgpu", "openvino", "cpu")   # not what builds engines for minutes
OF_NVIDIA = ("cuda", "tensorrt", "tensorrt-rtx")
NVIDIA_DRIVER = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("C:/Windows/System32/nvcuda.dll"))   # one, where it is
GPU_NODES = Path("/dev/dri")   # Linux's, of any vendor
# What a provider can compute in where the file leaves it open; the first is the default.
PRECISIONS = {"cuda": CUDA_PRECISIONS, "tensorrt": TENSORRT_PRECISIONS, "cpu": ("fp32",)} | {
    name: plugin.precisions for name, plugin in PLUGINS.items()}
KNOWN_PRECISIONS = tuple({precision: None for choices in PRECISIONS.values() for precision in choices})

# An ONNX model (opset 20) of one 1x1 convolution of x [1, 8, 8, 8] with 8 filters of 0.25: a provider without its
# convolution library must fail here, not in the middle of a run, and of channels and sizes that every library takes.
# tests/runtime/test_providers.py runs it.
PROBE_SHAPE = (1, 8, 8, 8)
PROBE_MODEL = bytes.fromhex(
    "080812003a7d0a110a01760a01731201772206457870616e640a0f0a01780a01771201792204436f6e761201672a0b100122"
    "040000803e4201762a0d080410073a04080801014201735a1b0a017812160a14080112100a0208010a0208080a0208080a02"
    "0808621b0a017912160a14080112100a0208010a0208080a0208080a02080842040a001014"
)

# ONNX Runtime's exceptions share no base class of their own.
ORT_ERRORS = (
    ort_errors.EPFail, ort_errors.EngineError, ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf, ort_errors.NoModel, ort_errors.NoSuchFile, ort_errors.NotImplemented,
    ort_errors.RuntimeException, RuntimeError,
)


def doubled_installation() -> str | None:
    """What is wrong where several packages of ONNX Runtime are installed, which have one folder; else ``None``."""
    found = [name for name in RUNTIMES if any(metadata.distributions(name=name))]
    if len(found) < 2:
        return None
    return (f"{' and '.join(found)} are installed, and whichever came last has replaced the files of the others: "
            f"pip uninstall {' '.join(found)}, then pip install {found[-1]}")


def checked_provider(name: str) -> str:
    """A key of PROVIDERS, or ``"auto"``; ``InputError``."""
    return checked_choice("provider", name, ["auto", *PROVIDERS])


def choose_provider(name: str, precision: str = "fp32") -> str:
    """Returns the provider to use, a key of PROVIDERS that can run here.

    Args:
        name: ``"auto"``, or one of PROVIDERS.
        precision: what it must be able to compute in.

    Raises:
        InputError: an unknown name, or a precision that no provider or not this one has.
        ProviderError: the provider was asked for by name and cannot run here, or no usable one has the precision.
    """
    checked_provider(name)
    checked_choice("precision", precision, KNOWN_PRECISIONS)
    able = [provider for provider in PROVIDERS if precision in PRECISIONS[provider]]
    if name == "auto":
        for provider in able:
            if provider in AUTO and _failure(provider) is None and (provider != "webgpu" or _gpu_of_webgpu()):
                return provider
        reasons = "; ".join(f"{provider} " + (f"cannot run here: {reason}" if (reason := _failure(provider)) else
                                              "is taken where it is named") for provider in able)
        raise ProviderError(f"precision {precision} needs provider {' or '.join(able)}. {reasons}")
    if name not in able:
        raise InputError(f"provider {name} computes in {', '.join(PRECISIONS[name])}; {precision} needs provider "
                         f"{' or '.join(able)}")
    if (reason := _failure(name)) is not None:
        raise ProviderError(f"provider {name} cannot run here ({reason}); usable: {', '.join(usable_providers())}")
    return name


def usable_providers() -> list[str]:
    """The keys of PROVIDERS that can run here, the preferred first."""
    return [name for name in PROVIDERS if _failure(name) is None]


def describe_providers() -> dict[str, str]:
    """Of each provider, the preferred first: its devices and precisions, or why it cannot run here."""
    told = {}
    for name in PROVIDERS:
        reason = _failure(name)   # which registers a plugin, and only then its devices are listed
        devices = [_described(entry.device) for entry in ort.get_ep_devices() if entry.ep_name == PROVIDERS[name]]
        where = processor() if name == "cpu" else ", ".join(dict.fromkeys(devices))
        told[name] = (f"runs in {' or '.join(PRECISIONS[name])}" + f" on {where}" * bool(where) if reason is None else
                      f"cannot run here: {reason}")
    return told


def gpu_note(chosen: str) -> str | None:
    """What to say of this machine's GPU where ``"auto"`` chose a provider: why it is not used, or that WebGPU does.

    ``None`` where CUDA uses it, and where no GPU is known of.
    """
    of_nvidia = any(path.exists() for path in NVIDIA_DRIVER)
    if chosen in OF_NVIDIA or not (of_nvidia or _has_gpu()):
        return None
    if chosen == "webgpu":
        return (f"provider webgpu is used, on {_gpu_of_webgpu()}"
                + f": cuda cannot run here ({_failure('cuda')})" * of_nvidia)
    whose, missing = ("an NVIDIA", "cuda") if of_nvidia else ("a", "webgpu")
    if _failure(missing) is None:   # it runs, and not in the precision that was asked for, or in software
        return None
    return f"{whose} GPU is here and not used, provider {chosen} is: {missing} cannot run here ({_failure(missing)})"


def _gpu_of_webgpu() -> str | None:
    """The GPU that WebGPU would run on, for people; ``None`` where none is listed: it runs without one, in software."""
    for entry in ort.get_ep_devices():
        if entry.ep_name == PROVIDERS["webgpu"] and PLUGINS["webgpu"].takes(entry):
            return _described(entry.device)
    return None


def _has_gpu() -> bool:
    """Whether this machine has a GPU, as far as that can be told without its libraries."""
    return bool(_gpu_of_webgpu()) or any(GPU_NODES.glob("renderD*")) or (
        sys.platform == "darwin" and platform.machine() == "arm64")


def _described(device: ort.OrtHardwareDevice) -> str:
    """A device for people: whose, what, and its name where it has one."""
    kind = str(device.type).rpartition(".")[2]
    return " ".join(filter(None, (device.vendor, kind, device.metadata.get("Description", ""))))


def open_session(
    model: str | bytes,
    provider: str,
    options: ort.SessionOptions,
    *,
    precision: str = "fp32",
    threads: int | None = None,
    cached: bool = True,
    capture: bool = False,
    search: str = SEARCHES[0],
    on_cpu: Sequence[str] = (),
) -> ort.InferenceSession:
    """Opens a session under one provider, never quietly under another.

    Args:
        model: a file's path, or its content.
        provider: a key of PROVIDERS that can run here.
        options: ONNX Runtime's; the provider and the threads are added to them.
        precision: one of the provider's PRECISIONS.
        threads: of a network evaluation, >= 1. If not given, ``options`` decide, and where they do not either, the
            cores that this process may use.
        cached: keep what the provider compiles for the next time.
        capture: under cuda, evaluations as CUDA graphs: on bound buffers only.
        search: under cuda, one of :data:`sde_onnx.runtime.cuda_options.SEARCHES`.
        on_cpu: under webgpu, the names of nodes that are left to the CPU: WGSL promises no precision of a sine beyond
            pi, and has no operators on bits, so that noise there would be another, and copied back and forth.

    Raises:
        ProviderError: ONNX Runtime has left the provider out.
        ORT_ERRORS: whatever ONNX Runtime raises, and of the same kind for a pipe.
    """
    if threads or options.intra_op_num_threads == 0:
        options.intra_op_num_threads = threads or available_cores() or 0
    settings: list[tuple[str, dict[str, str]]] | None = [(PROVIDERS[provider], {})]
    if provider == "cuda":
        settings = [(PROVIDERS["cuda"], cuda_options(precision, search=search, capture=capture))]
    elif provider == "tensorrt":   # what it does not take, CUDA does
        settings = [(PROVIDERS["tensorrt"], tensorrt_options(precision, cached=cached)),
                    (PROVIDERS["cuda"], cuda_options(precision))]
    elif provider in PLUGINS:
        own = PLUGINS[provider].options(precision=precision, threads=threads, cached=cached, on_cpu=on_cpu)
        settings = add_plugin(provider, options, own, is_built_in=_is_built_in(provider))
    try:
        if isinstance(model, str):
            regular(model)   # ONNX Runtime would wait for the end of a pipe
        session = ort.InferenceSession(model, options, providers=settings, enable_fallback=0)
    except OSError as error:
        raise RuntimeError(str(error)) from None
    except UnicodeDecodeError:   # of ONNX Runtime's own message, which quotes a damaged file
        raise RuntimeError("the file holds names that are no UTF-8") from None
    if PROVIDERS[provider] not in session.get_providers():
        raise ProviderError(f"ONNX Runtime left {PROVIDERS[provider]} out: its libraries or its device are missing")
    return session


def _is_built_in(provider: str) -> bool:
    return PROVIDERS[provider] in ort.get_available_providers()


@functools.cache
def _failure(name: str) -> str | None:
    """Why a provider cannot run here, or ``None`` if it has just run a convolution."""
    if not _is_built_in(name):
        if name not in PLUGINS:
            return f"this onnxruntime was built without it: {HOW_TO_GET[name]}"
        if reason := why_not(name):
            return reason
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if name in HOW_TO_GET:
        # Finds the libraries of the nvidia wheels. It prints what is missing; the error below says it in one line.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    ort.set_default_logger_severity(4)
    try:
        session = open_session(PROBE_MODEL, name, options, cached=False)
        session.run(None, {"x": np.ones(PROBE_SHAPE, np.float32)})
    except (*ORT_ERRORS, ProviderError) as error:
        reason = str(error)
        if name == "tensorrt" and "Please install" in reason:   # its libraries are missed by a line of C++ source
            reason = "TensorRT is missing"
        elif name in PLUGINS and ".cc:" in reason:   # and a plugin's device, where the plugin is built in
            reason = f"it finds no device here that it can use: it needs {PLUGINS[name].needs}"
        return reason.splitlines()[0][:200] + (f"; {HOW_TO_GET[name]}" if name in HOW_TO_GET else "")
    finally:
        ort.set_default_logger_severity(2)
    return None

"""Execution providers: what is really usable here, and under which name.

ONNX Runtime lists the providers that it was built with, whether or not the machine has their hardware and libraries,
and runs on the CPU without a word where one fails. Here a provider counts only once it has run a convolution.
"""

from __future__ import annotations

import contextlib
import functools
import io

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from sde_onnx.errors import InputError, ProviderError

__all__ = ["ORT_ERRORS", "PROVIDERS", "choose_provider", "usable_providers"]

# Our names for ONNX Runtime's, in the order of preference of "auto".
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}

# An ONNX model (opset 20) of one 1x1 convolution of x [1, 1, 1, 1] with the weight 2: a provider without its
# convolution library must fail here, not in the middle of a run. tests/test_providers.py decodes it.
PROBE_MODEL = bytes.fromhex(
    "08093a670a0f0a01780a01771201792204436f6e76120570726f62652a13080108010801080110012204000000404201775a"
    "1b0a017812160a14080112100a0208010a0208010a0208010a020801621b0a017912160a14080112100a0208010a0208010a"
    "0208010a02080142040a001014"
)

# ONNX Runtime's exceptions share no base class of their own.
ORT_ERRORS = (
    ort_errors.EPFail, ort_errors.EngineError, ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf, ort_errors.NoModel, ort_errors.NoSuchFile, ort_errors.NotImplemented,
    ort_errors.RuntimeException, RuntimeError,
)


def choose_provider(name: str) -> str:
    """Returns the provider to use.

    Args:
        name: ``"auto"``, or one of PROVIDERS.

    Returns:
        A key of PROVIDERS that can run here.

    Raises:
        InputError: an unknown name.
        ProviderError: the provider was asked for by name and cannot run here.
    """
    if name == "auto":
        return usable_providers()[0]
    if name not in PROVIDERS:
        raise InputError(f"provider {name!r} is unknown, expected one of: auto, {', '.join(PROVIDERS)}")
    if (reason := _failure(name)) is not None:
        raise ProviderError(
            f"provider {name} cannot run here ({reason}); usable: {', '.join(usable_providers())}. For an NVIDIA GPU "
            "install its driver and `pip install onnxruntime-gpu[cuda,cudnn]`"
        )
    return name


def usable_providers() -> list[str]:
    """The keys of PROVIDERS that can run here, the preferred first."""
    return [name for name in PROVIDERS if _failure(name) is None]


@functools.cache
def _failure(name: str) -> str | None:
    """Why a provider cannot run here, or ``None`` if it has just run a convolution."""
    if PROVIDERS[name] not in ort.get_available_providers():
        return "this onnxruntime was built without it"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if name == "cuda":
        # Finds the libraries of the nvidia wheels. It prints what is missing; the error below says it in one line.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    ort.set_default_logger_severity(4)
    try:
        session = ort.InferenceSession(PROBE_MODEL, options, providers=[PROVIDERS[name]], enable_fallback=0)
        if PROVIDERS[name] not in session.get_providers():
            return "its libraries or its device are missing"
        session.run(None, {"x": np.ones((1, 1, 1, 1), np.float32)})
    except ORT_ERRORS as error:
        return str(error).splitlines()[0][:200]
    finally:
        ort.set_default_logger_severity(2)
    return None

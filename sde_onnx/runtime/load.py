"""Model files: what they say of themselves, whether they are ours, and under which provider they run."""

from __future__ import annotations

import functools
import os
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from sde_onnx.checks import checked_choice, checked_path, checked_threads
from sde_onnx.errors import (
    InputError,
    InstallationWarning,
    ModelFileError,
    ProviderError,
    ProviderWarning,
    SlowPrecisionWarning,
    first_line,
    one_line,
)
from sde_onnx.runtime import openvino
from sde_onnx.runtime.cuda_options import CUDA_PRECISIONS, SEARCHES
from sde_onnx.runtime.device_loop import ALONE, DeviceLoop, alone_on
from sde_onnx.runtime.metadata import KEY, ROWS_KEY, SAMPLER_KEY, ModelMetadata, metadata_properties, telling_damage
from sde_onnx.runtime.providers import (
    KNOWN_PRECISIONS,
    ORT_ERRORS,
    choose_provider,
    doubled_installation,
    open_session,
    unused_gpu,
)
from sde_onnx.runtime.score_model import COTANGENT, GRADIENT, INPUTS, LABEL, OUTPUTS, ScoreModel
from sde_onnx.solvers.plan import ROWS_FORMAT

__all__ = ["load", "read_metadata"]

BATCH = "N"   # name of the free dimension
LEAST_FOR_LOOPS = (1, 31)   # before, a captured Concat of unequal widths reads where its inputs lay at the capture
Opened = TypeVar("Opened")


def load(
    path: str | os.PathLike[str],
    provider: str = "auto",
    *,
    precision: str | None = None,
    threads: int | None = None,
    session_options: Callable[[], ort.SessionOptions] | None = None,
) -> ScoreModel:
    """Loads a model file.

    Args:
        path: an ``.onnx`` file made by ``sde-onnx export``.
        provider: ``"auto"`` (the first that really runs here of cuda, openvino, cpu), one of those, or ``"tensorrt"``.
            A file that was exported for CUDA runs under cuda alone.
        precision: what the network computes in: the file's own if not given; of a float32 file under cuda also
            ``"tf32"``, under openvino ``"bf16"``, under tensorrt ``"fp16"``. Scores are float32 always.
        threads: CPU threads of an evaluation, >= 1; the physical cores that this process may use if not given.
        session_options: makes ONNX Runtime's own options, called for each session: one is opened for each batch size,
            which is written into them. Not for openvino.

    Raises:
        InputError: an unknown provider or precision, or one that does not go with the other; threads below 1.
        ModelFileError: the file is missing, damaged, or not ours.
        ProviderError: the provider was asked for by name and cannot run here.

    Warns with a ``SlowPrecisionWarning`` where the precision is slower than float32 on this processor, with an
    ``InstallationWarning`` where two packages of ONNX Runtime are installed, and with a ``ProviderWarning`` where
    ``"auto"`` leaves an NVIDIA GPU unused or cuDNN's first choice of plans fails.
    """
    path, threads = checked_path("path", path), checked_threads(threads)
    metadata = read_metadata(path)
    asked = precision
    if (both := doubled_installation()) is not None:
        warnings.warn(both, InstallationWarning, stacklevel=2)
    chosen, precision = _provider_for(path, metadata, provider, precision)
    if provider == "auto" and (unused := unused_gpu(chosen)) is not None:
        warnings.warn(unused, ProviderWarning, stacklevel=2)
    if session_options is not None and chosen == "openvino":
        raise InputError("session_options go with every provider but openvino, which takes precision and threads")
    if session_options is not None and not callable(session_options):
        raise InputError(f"session_options is {type(session_options).__name__}, expected a function that makes them: a "
                         "session is opened for each batch size")
    if chosen == "openvino" and (reason := openvino.why_slow(precision)) is not None:
        warnings.warn(reason, SlowPrecisionWarning, stacklevel=2)

    def options_for(batch: int) -> ort.SessionOptions:
        options = (session_options or _options)()
        if not isinstance(options, ort.SessionOptions):
            raise InputError(f"session_options made {one_line(options)}, expected ONNX Runtime's SessionOptions")
        options.add_free_dimension_override_by_name(BATCH, batch)
        return options

    def opened(batch: int, search: str, *, capture: bool = False) -> ort.InferenceSession:
        options = options_for(batch)
        if chosen == metadata.target == "cuda":   # what CUDA does not take is a fault of the file, and no work for CPUs
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return open_session(os.fspath(path), chosen, options, precision=precision, threads=threads, search=search,
                            capture=capture)

    searches = list(SEARCHES if chosen == "cuda" else SEARCHES[:1])   # those that have not failed

    @functools.lru_cache(maxsize=2)   # full batches, and the rest of the images
    def open_for(batch: int) -> ort.InferenceSession:
        def tried(search: str) -> ort.InferenceSession:
            with alone_on(chosen):
                session = opened(batch, search)
                if chosen == "cuda":
                    session.run(None, _some_inputs(session, batch))
            return session

        return _first_that_works(searches, tried)

    def open_loop(batch: int, capacity: int) -> DeviceLoop:
        def tried(search: str) -> DeviceLoop:
            with alone_on(chosen):
                return DeviceLoop(opened(batch, search, capture=True), chosen, (batch, *metadata.image_shape), capacity)

        return _first_that_works(searches, tried)

    loops = threading.local()   # a captured graph belongs to the thread that made it, and the buffers to one run

    def loop_for(batch: int, capacity: int) -> DeviceLoop:
        if not hasattr(loops, "open"):
            if chosen == "cuda" and _version(ort.__version__) < LEAST_FOR_LOOPS:
                raise ProviderError(f"the loop under cuda needs onnxruntime-gpu {'.'.join(map(str, LEAST_FOR_LOOPS))} "
                                    f"or later, this is {ort.__version__}: pip install --upgrade onnxruntime-gpu")
            loops.open = functools.lru_cache(maxsize=2)(open_loop)
        loop: DeviceLoop = loops.open(batch, capacity)
        return loop

    def load_under(other: str) -> ScoreModel:
        return load(path, other, precision=asked, threads=threads, session_options=session_options)

    return ScoreModel(path, metadata, chosen, precision, open_for, loop_for if metadata.target == "cuda" else None,
                      load_under)


def _first_that_works(searches: list[str], tried: Callable[[str], Opened]) -> Opened:
    """What is opened and tried with the first way to find cuDNN's plans that has one for every convolution.

    Args:
        searches: the ways that are left, of SEARCHES; those that fail are taken out, and each is told once.
        tried: opens with a way, and runs once.

    Warns with a ``ProviderWarning`` of each way that fails.
    """
    while True:
        search = searches[0]
        try:
            return tried(search)
        except ORT_ERRORS as error:
            if len(searches) == 1 or "memory" in str(error).lower():
                raise
            with ALONE:
                if searches[0] != search:   # another thread has found that out
                    continue
                searches.pop(0)
            warnings.warn(f"cuDNN has no plan by {search} for a convolution of this network, {searches[0]} is tried: "
                          f"{first_line(error)}", ProviderWarning, stacklevel=2)


def _some_inputs(session: ort.InferenceSession, batch: int) -> dict[str, NDArray[Any]]:
    """Ones for all inputs of a session, of so many images; of labels the first."""
    shapes = {item.name: [size if isinstance(size, int) else batch for size in item.shape]
              for item in session.get_inputs()}
    return {name: np.zeros(shape, np.int64) if name == LABEL else np.ones(shape, np.float32)
            for name, shape in shapes.items()}


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def read_metadata(path: str | os.PathLike[str]) -> ModelMetadata:
    """Reads what a model file says of itself, without preparing it to run.

    Raises:
        ModelFileError: the file is missing, damaged, or not ours.
    """
    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = checked_path("path", path)
    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "missing"
        raise ModelFileError(f"{path} is {kind}, expected an .onnx file; `sde-onnx export CHECKPOINT -o FILE` "
                             "makes one")
    try:
        session = open_session(os.fspath(path), "cpu", options)
    except ort_errors.NotImplemented:   # read and understood, but of operators that another provider has
        with telling_damage(str(path)):
            properties = metadata_properties(path.read_bytes())
        return _metadata(path, properties)
    except ORT_ERRORS as error:
        reason = str(error).split("failed:")[-1].splitlines()[0]
        raise ModelFileError(
            f"{path} is not an ONNX file that can be loaded, or it is truncated ({reason}): export its checkpoint"
        ) from None
    with telling_damage(str(path)):
        properties = session.get_modelmeta().custom_metadata_map
        names = tuple(item.name for item in session.get_inputs()), tuple(item.name for item in session.get_outputs())
    metadata = _metadata(path, properties)
    gradient = metadata.gradient
    expected = (*INPUTS, *[LABEL] * bool(metadata.labels), *[COTANGENT] * gradient)
    results = (*OUTPUTS, *[GRADIENT] * gradient)
    if (names[0], names[1][:len(results)]) != (expected, results):   # a graph for a loop has more to tell
        raise ModelFileError(f"{path} maps {names[0]} to {names[1]}, expected {expected} to {results}: export it again")
    if (shape := tuple(session.get_inputs()[0].shape[1:])) != metadata.image_shape:
        raise ModelFileError(f"{path} takes images {shape}, its metadata say {metadata.image_shape}: export it again")
    return metadata


def _provider_for(path: Path, metadata: ModelMetadata, provider: str, precision: str | None) -> tuple[str, str]:
    """The provider and the precision to run a file in: as asked, as far as the file allows."""
    if precision is not None:
        checked_choice("precision", precision, KNOWN_PRECISIONS)
    if metadata.target == "any":
        precision = precision or metadata.precision
        return choose_provider(provider, precision), precision
    if precision not in (None, metadata.precision, *(CUDA_PRECISIONS if metadata.precision == "fp32" else ())):
        raise InputError(f"{path} computes in {metadata.precision}, not in {precision}: export it again")
    if provider not in ("auto", metadata.target):
        raise ProviderError(f"{path} was exported for {metadata.target}, {provider} cannot run it: export it without "
                            "--target")
    try:
        return choose_provider(metadata.target), precision or metadata.precision
    except ProviderError as error:
        raise ProviderError(f"{path} was exported for {metadata.target}: {error}") from None


def _options() -> ort.SessionOptions:
    """ONNX Runtime's options, but for its plan of one block of memory for all activations.

    The plan takes 1.7 times the memory at 1024x1024 (3.7 GB instead of 2.2) and saves 1% of the time at most.
    """
    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    options.log_severity_level = 3   # its warnings are about the graph, which nobody here can change
    return options


def _metadata(path: Path, properties: Mapping[str, str]) -> ModelMetadata:
    text = properties.get(KEY)
    if text is None:
        raise ModelFileError(
            f"{path} is an ONNX file without sde_onnx metadata: make it with `sde-onnx export CHECKPOINT -o FILE`"
        )
    if SAMPLER_KEY in properties:
        raise ModelFileError(f"{path} is a sampler that `sde-onnx embed` made: give the model file that it was made of")
    metadata = ModelMetadata.from_json(text, name=str(path))
    if metadata.target == "cuda" and (rows := properties.get(ROWS_KEY, "1")) != str(ROWS_FORMAT):
        mend = "export it again" if rows in map(str, range(ROWS_FORMAT)) else "upgrade sde-onnx"
        raise ModelFileError(f"{path} holds a loop for rows of format {rows}, this sde-onnx writes format "
                             f"{ROWS_FORMAT}: {mend}")
    return metadata

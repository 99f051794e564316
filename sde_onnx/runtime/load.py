"""Model files: what they say of themselves, whether they are ours, and under which provider they run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from sde_onnx.checks import checked_path, checked_threads
from sde_onnx.errors import (
    ForeignFileError,
    InputError,
    InstallationWarning,
    ModelFileError,
    ProviderError,
    ProviderWarning,
    SlowPrecisionWarning,
    one_line,
)
from sde_onnx.files import why_no_file
from sde_onnx.runtime import openvino
from sde_onnx.runtime.metadata import (
    KEY,
    ROWS_KEY,
    SAMPLER_KEY,
    ModelMetadata,
    check_one_file,
    metadata_properties,
    telling_damage,
)
from sde_onnx.runtime.providers import (
    ORT_ERRORS,
    PRECISIONS,
    checked_provider,
    choose_provider,
    doubled_installation,
    gpu_note,
    open_session,
)
from sde_onnx.runtime.score_model import COTANGENT, GRADIENT, INPUTS, LABEL, OUTPUTS, ScoreModel
from sde_onnx.runtime.sessions import Sessions, default_options
from sde_onnx.solvers.plan import ROWS_FORMAT

__all__ = ["load", "read_metadata"]


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
        provider: ``"auto"`` (the first that really runs here of cuda, webgpu, openvino, cpu; of webgpu only where a GPU
            is listed), one of those, ``"tensorrt"`` or ``"tensorrt-rtx"``. Those of NVIDIA are experimental: no GPU
            has been at hand. A file that was exported for CUDA runs under cuda alone.
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
    ``"auto"`` leaves a GPU unused or takes it through WebGPU, or cuDNN's first choice of plans fails.
    """
    path, threads = checked_path("path", path), checked_threads(threads)
    metadata = read_metadata(path)
    asked = precision
    if (both := doubled_installation()) is not None:
        warnings.warn(both, InstallationWarning, stacklevel=2)
    chosen, precision = _provider_for(path, metadata, provider, precision)
    if provider == "auto" and (note := gpu_note(chosen)) is not None:
        warnings.warn(note, ProviderWarning, stacklevel=2)
    if session_options is not None and chosen == "openvino":
        raise InputError("session_options go with every provider but openvino, which takes precision and threads")
    if session_options is not None and not callable(session_options):
        raise InputError(f"session_options is {type(session_options).__name__}, expected a function that makes them: a "
                         "session is opened for each batch size")
    if chosen == "openvino" and (reason := openvino.why_slow(precision)) is not None:
        warnings.warn(reason, SlowPrecisionWarning, stacklevel=2)

    sessions = Sessions(path, metadata, chosen, precision=precision, threads=threads,
                        options=session_options or default_options)

    def load_under(other: str) -> ScoreModel:
        return load(path, other, precision=asked, threads=threads, session_options=session_options)

    return ScoreModel(path, metadata, chosen, precision, sessions.session,
                      sessions.loop if metadata.target == "cuda" else None, load_under)


def read_metadata(path: str | os.PathLike[str]) -> ModelMetadata:
    """Reads what a model file says of itself, without preparing it to run.

    Raises:
        ModelFileError: the file is missing, damaged, or not ours.
    """
    options = default_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = checked_path("path", path)
    if (kind := why_no_file(path)) is not None:
        raise ModelFileError(f"{path} is {kind}, expected an .onnx file; `sde-onnx export CHECKPOINT -o FILE` "
                             "makes one")
    try:
        check_one_file(path)
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
    if precision is not None and not isinstance(precision, str):
        raise InputError(f"precision is {one_line(precision)}, expected a text")
    if metadata.target == "any":
        precision = precision or metadata.precision
        return choose_provider(provider, precision), precision
    own = PRECISIONS.get(metadata.target, ()) if metadata.precision == "fp32" else ()
    if precision not in (None, metadata.precision, *own):
        mend = "export it without --target" if metadata.target == "cpu" else "export it again"
        raise InputError(f"{path} computes in {metadata.precision}, not in {precision}: {mend}")
    if checked_provider(provider) not in ("auto", metadata.target):
        raise ProviderError(f"{path} was exported for {metadata.target} and not for {provider}: export it without "
                            "--target")
    try:
        return choose_provider(metadata.target), precision or metadata.precision
    except ProviderError as error:
        raise ProviderError(f"{path} was exported for {metadata.target}: {error}") from None


def _metadata(path: Path, properties: Mapping[str, str]) -> ModelMetadata:
    text = properties.get(KEY)
    if text is None:
        raise ForeignFileError(
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

"""A model file, loaded: an ONNX Runtime session that is a score function."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    SlowPrecisionWarning,
    first_line,
)
from sde_onnx.runtime import openvino
from sde_onnx.runtime.cuda_options import CUDA_PRECISIONS
from sde_onnx.runtime.device_loop import DeviceLoop
from sde_onnx.runtime.metadata import KEY, ROWS_KEY, SAMPLER_KEY, ModelMetadata, metadata_properties, telling_damage
from sde_onnx.runtime.providers import KNOWN_PRECISIONS, ORT_ERRORS, choose_provider, doubled_installation, open_session
from sde_onnx.solvers.plan import ROWS_FORMAT

__all__ = ["NO_GRADIENT", "ON_A_GPU", "ScoreModel", "load", "read_metadata"]

Array = Any   # of numpy, or a torch tensor
ON_A_GPU = ("cuda", "tensorrt")   # providers whose memory is not this machine's
INPUTS, LABEL, OUTPUTS = ("x", "sigma"), "label", ("score",)
COTANGENT, GRADIENT = "v", "vjp"   # one more input and one more output, of a file with a gradient
NO_GRADIENT = "{0} has no gradient: `sde-onnx gradient {0} -o FILE` makes a file that has one"
NO_LABEL = -1   # of a network whose label is optional
BATCH = "N"   # name of the free dimension


class ScoreModel:
    """The score of a model file: ``model(x, sigma)`` is ``grad_x log p_sigma(x)``. Made by :func:`load`.

    Args:
        path: the file.
        metadata: what the file says of itself.
        provider: the execution provider that runs it, a key of :data:`sde_onnx.runtime.providers.PROVIDERS`.
        precision: what the network computes in, one of the provider's or the file's.
        open_for: returns ONNX Runtime's session for a number of images: one that knows it is faster than one for any.
        loop_for: returns the loop on the device for a number of images and of rows, if the file has one.
        load_under: loads the same file under another provider, everything else as it was asked for.
    """

    def __init__(
        self, path: Path, metadata: ModelMetadata, provider: str, precision: str,
        open_for: Callable[[int], ort.InferenceSession], loop_for: Callable[[int, int], DeviceLoop] | None,
        load_under: Callable[[str], ScoreModel],
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.provider = provider
        self.precision = precision
        self.loop_for = loop_for
        self.under = load_under
        self._open_for = open_for

    def __call__(self, x: Array, sigma: Array, label: Array | int | None = None) -> Array:
        """Returns the score.

        Args:
            x: noisy images in data units, ``[N, C, H, W]`` float32: a numpy array, or a torch tensor on the CPU or,
                under cuda, on the GPU, which is read and answered where it lies.
            sigma: noise standard deviation, ``[N]`` float32, > 0 (which is not checked of tensors), beside x.
            label: of a model with labels: a class for each image, ``[N]`` of whole numbers on the host, or one for all.

        Returns:
            ``[N, C, H, W]`` float32, as x is.

        Raises:
            InputError: a wrong shape or dtype, a sigma that is not above 0, tensors on another device, or a label that
                is missing, out of range, or where there is none.
            ModelFileError: a graph whose score is no array like x.
            ProviderError: the provider failed while running.
        """
        return self._run(x, sigma, None, label)[0]

    def vjp(self, x: Array, sigma: Array, v: Array, label: Array | int | None = None) -> tuple[Array, Array]:
        """Returns the score and its vector-Jacobian product, of a file that `sde-onnx gradient` has made.

        Args:
            x, sigma, label: see :meth:`__call__`.
            v: the vectors, as x is.

        Returns:
            The score and ``J^T v`` with ``J = d score / dx``, each ``[N, C, H, W]`` float32, as x is.

        Raises:
            InputError: the file has no gradient, or a wrong input.
            ProviderError: the provider failed while running.
        """
        if not self.metadata.gradient:
            raise InputError(NO_GRADIENT.format(self.path.name))
        score, product = self._run(x, sigma, v, label)
        return score, product

    def _run(self, x: Array, sigma: Array, v: Array | None, label: Array | int | None) -> list[Array]:
        """The outputs of the file: the score, and where v is given the product with it."""
        if is_tensor(x):
            return self._run_on_tensors(x, sigma, v, label)
        expected = self.metadata.image_shape
        is_float = isinstance(x, np.ndarray) and x.dtype == np.float32
        if not is_float or x.ndim != 4 or len(x) == 0 or x.shape[1:] != expected:
            raise InputError(
                f"x is {_describe(x)}, expected float32 [N, {', '.join(map(str, expected))}] with N >= 1"
            )
        if not isinstance(sigma, np.ndarray) or sigma.dtype != np.float32 or sigma.shape != x.shape[:1]:
            raise InputError(f"sigma is {_describe(sigma)}, expected float32 [{len(x)}]: one for each image of x")
        if not (sigma > 0).all():
            raise InputError(f"sigma holds {sigma.min():g}, expected noise standard deviations above 0")
        if v is not None and (not isinstance(v, np.ndarray) or v.dtype != np.float32 or v.shape != x.shape):
            raise InputError(f"v is {_describe(v)}, expected float32 {list(x.shape)}, as x is")
        inputs = {"x": x, "sigma": sigma} | self.labels_for(label, len(x))
        if self.metadata.gradient:
            inputs[COTANGENT] = np.zeros_like(x) if v is None else v
        outputs = OUTPUTS if v is None else (*OUTPUTS, GRADIENT)
        with self._failures_of(len(x)):
            results = list(self._open_for(len(x)).run(outputs, inputs))
        for name, value in zip(outputs, results, strict=True):
            if value.shape != x.shape or value.dtype != x.dtype:
                raise ModelFileError(f"{self.path} gives a {name} {_describe(value)} for x {_describe(x)}: export it "
                                     "again")
        return results

    def labels_for(self, label: Array | int | None, images: int) -> dict[str, NDArray[np.int64]]:
        """The input ``label`` of so many images, if the file has one; ``InputError`` if it cannot be."""
        count = self.metadata.labels
        if count == 0:
            if label is not None:
                raise InputError(f"{self.path.name} has no labels: leave the label out")
            return {}
        if label is None:
            if not self.metadata.label_optional:
                raise InputError(f"{self.path.name} needs a label for each image, 0 to {count - 1}")
            label = NO_LABEL
        labels = np.asarray(label)
        if labels.dtype.kind not in "iu" or labels.shape not in ((), (images,)):
            raise InputError(f"label is {_describe(labels)}, expected whole numbers [{images}], one for each image")
        least = NO_LABEL if self.metadata.label_optional else 0
        if labels.size and not least <= labels.min() <= labels.max() < count:
            wrong = labels.min() if labels.min() < least else labels.max()
            raise InputError(f"label {wrong} is out of range: {self.path.name} has 0 to {count - 1}")
        return {LABEL: np.ascontiguousarray(np.broadcast_to(labels, (images,)), np.int64)}

    def _run_on_tensors(self, x: Any, sigma: Any, v: Any, label: Any) -> list[Any]:
        """The same of torch tensors, without a copy."""
        torch = sys.modules["torch"]   # whoever made the tensors has imported it; the runtime never does
        shape, devices = self.metadata.image_shape, ("cpu", "cuda") if self.provider in ON_A_GPU else ("cpu",)
        if not is_tensor(sigma) or sigma.device != x.device or x.device.type not in devices:
            beside = f"on {sigma.device}" if is_tensor(sigma) else _describe(sigma)
            raise InputError(f"x is on {x.device}, sigma {beside}; provider {self.provider} takes tensors on "
                             f"{' or '.join(devices)}")
        given = {"x": x, "sigma": sigma}
        results = {name: torch.empty_like(x, memory_format=torch.contiguous_format)
                   for name in (OUTPUTS if v is None else (*OUTPUTS, GRADIENT))}
        if self.metadata.gradient:
            given[COTANGENT] = torch.zeros_like(x) if v is None else v
        for name, value in given.items():
            sizes = (len(x),) if name == "sigma" else (len(x), *shape)
            if not is_tensor(value) or value.device != x.device:
                raise InputError(f"x is on {x.device}, {name} {_describe(value)}: expected a tensor beside x")
            if value.dtype != torch.float32 or tuple(value.shape) != sizes or len(x) == 0:
                raise InputError(f"{name} is {value.dtype} {list(value.shape)}, expected float32 {list(sizes)}")
        with self._failures_of(len(x)):
            session = self._open_for(len(x))   # asked for once: another thread may make it give way to another
            binding = session.io_binding()
            place = x.device.type, x.device.index or 0, np.float32
            kept = {name: value.detach().resolve_neg().contiguous() for name, value in given.items()}
            for name, value in kept.items():
                binding.bind_input(name, *place, tuple(value.shape), value.data_ptr())
            for name, numbers in self.labels_for(label, len(x)).items():
                binding.bind_cpu_input(name, numbers)
            for name, value in results.items():
                binding.bind_output(name, *place, tuple(value.shape), value.data_ptr())
            if x.device.type == "cuda":   # ONNX Runtime has a stream of its own, and ends a run with it empty
                torch.cuda.current_stream(x.device).synchronize()
            session.run_with_iobinding(binding)
        return list(results.values())

    @contextmanager
    def _failures_of(self, images: int) -> Iterator[None]:
        """Says of ONNX Runtime's errors what ran and what may help."""
        try:
            yield
        except ORT_ERRORS as error:
            raise ProviderError(
                f"{self.provider} failed on {images} images, fewer at a time may need less memory: "
                f"{first_line(error)}"
            ) from error


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

    Warns with a ``SlowPrecisionWarning`` where the precision is slower than float32 on this processor, and with an
    ``InstallationWarning`` where two packages of ONNX Runtime are installed.
    """
    path, threads = checked_path("path", path), checked_threads(threads)
    metadata = read_metadata(path)
    asked = precision
    if (both := doubled_installation()) is not None:
        warnings.warn(both, InstallationWarning, stacklevel=2)
    chosen, precision = _provider_for(path, metadata, provider, precision)
    if session_options is not None and chosen == "openvino":
        raise InputError("session_options go with every provider but openvino, which takes precision and threads")
    if session_options is not None and not callable(session_options):
        raise InputError(f"session_options is {type(session_options).__name__}, expected a function that makes them: a "
                         "session is opened for each batch size")
    if chosen == "openvino" and (reason := openvino.why_slow(precision)) is not None:
        warnings.warn(reason, SlowPrecisionWarning, stacklevel=2)

    def options_for(batch: int) -> ort.SessionOptions:
        options = (session_options or _options)()
        options.add_free_dimension_override_by_name(BATCH, batch)
        return options

    @functools.lru_cache(maxsize=2)   # full batches, and the rest of the images
    def open_for(batch: int) -> ort.InferenceSession:
        return open_session(os.fspath(path), chosen, options_for(batch), precision=precision, threads=threads)

    @functools.lru_cache(maxsize=2)
    def loop_for(batch: int, capacity: int) -> DeviceLoop:
        session = open_session(os.fspath(path), chosen, options_for(batch), precision=precision, threads=threads,
                               capture=True)
        return DeviceLoop(session, chosen, (batch, *metadata.image_shape), capacity)

    def load_under(other: str) -> ScoreModel:
        return load(path, other, precision=asked, threads=threads, session_options=session_options)

    return ScoreModel(path, metadata, chosen, precision, open_for, loop_for if metadata.target == "cuda" else None,
                      load_under)


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


def is_tensor(value: object) -> bool:
    """Whether a value is a torch tensor, which it is not where torch was never imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__

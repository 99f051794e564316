"""A model file, loaded: an ONNX Runtime session that is a score function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sde_onnx.errors import InputError, ModelFileError, ProviderError, first_line, one_line
from sde_onnx.runtime.device_loop import DeviceLoop, alone_on
from sde_onnx.runtime.endings import ending
from sde_onnx.runtime.metadata import ModelMetadata
from sde_onnx.runtime.providers import ORT_ERRORS

__all__ = ["COTANGENT", "GRADIENT", "INPUTS", "LABEL", "ON_A_GPU", "OUTPUTS", "ScoreModel", "as_labels",
           "is_tensor", "makes_gradient"]

Array = Any   # of numpy, or a torch tensor
ON_A_GPU = ("cuda", "tensorrt")   # providers whose memory is not this machine's
INPUTS, LABEL, OUTPUTS = ("x", "sigma"), "label", ("score",)
COTANGENT, GRADIENT = "v", "vjp"   # one more input and one more output, of a file with a gradient
NO_LABEL = -1   # of a network whose label is optional


def makes_gradient(path: Path, target: str) -> str:
    """The command that makes the gradient file of a model file: of one for a provider, with it, of its checkpoint."""
    return (f"sde-onnx gradient {path} -o FILE" if target == "any" else
            f"sde-onnx export CHECKPOINT -o MODEL --target {target} --gradient FILE")


class ScoreModel:
    """The score of a model file: ``model(x, sigma)`` is ``grad_x log p_sigma(x)``. Made by :func:`sde_onnx.load`.

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

    def check_gradient(self) -> None:
        """Refuses a file without gradient; ``InputError``."""
        if not self.metadata.gradient:
            raise InputError(f"{self.path.name} has no gradient: "
                             f"`{makes_gradient(self.path, self.metadata.target)}` makes a file that has one")

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
        self.check_gradient()
        if v is None:
            raise InputError("v is None, expected the vectors, as x is")
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
        with self._failures_of(len(x)), ending() as options:
            results = list(self._open_for(len(x)).run(outputs, inputs, options))
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
        labels = as_labels(label)
        if labels.shape not in ((), (images,)):
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
        with self._failures_of(len(x)), ending() as options:
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
            session.run_with_iobinding(binding, options)
        return list(results.values())

    @contextmanager
    def _failures_of(self, images: int) -> Iterator[None]:
        """Says of ONNX Runtime's errors what ran and what may help."""
        try:
            with alone_on(self.provider):
                yield
        except ORT_ERRORS as error:
            raise ProviderError(
                f"{self.provider} failed on {images} images, fewer at a time may need less memory: "
                f"{first_line(error)}"
            ) from error


def as_labels(labels: object) -> NDArray[Any]:
    """Labels as an array of whole numbers; ``InputError`` of anything else."""
    try:
        array = np.asarray(labels)
    except ValueError:   # lists of several lengths
        array = np.zeros(0)
    if array.dtype.kind not in "iu":
        raise InputError(f"labels is {one_line(labels)}, expected a whole number or a list of them")
    return array


def is_tensor(value: object) -> bool:
    """Whether a value is a torch tensor, which it is not where torch was never imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__

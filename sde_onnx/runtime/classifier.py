"""A classifier of noisy images, with the gradient that `sde-onnx gradient` has added to its file.

    log p(label given x) = logits[label] - ln sum exp logits
    grad_x log p(label given x) = J^T (e_label - softmax(logits)),   J = d logits / dx
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sde_onnx.checks import checked_path, checked_threads
from sde_onnx.errors import InputError, ModelFileError, ProviderError, first_line
from sde_onnx.files import why_no_file
from sde_onnx.runtime.endings import ending
from sde_onnx.runtime.metadata import check_one_file
from sde_onnx.runtime.providers import ORT_ERRORS, choose_provider, open_session
from sde_onnx.runtime.score_model import COTANGENT, GRADIENT, INPUTS
from sde_onnx.solvers.protocols import Array

__all__ = ["Classifier", "load_classifier"]

LOGITS = "logits"


class Classifier:
    """A classifier ``x, sigma -> logits`` with its gradient. Made by :func:`load_classifier`.

    Args:
        path: the file.
        image_shape: ``(C, H, W)`` of the images that it takes.
        classes: that it tells apart.
        session: ONNX Runtime's, for any number of images.
    """

    def __init__(
        self, path: Path, image_shape: tuple[int, int, int], classes: int, session: ort.InferenceSession
    ) -> None:
        self.path = path
        self.image_shape = image_shape
        self.classes = classes
        self._session = session

    def __call__(self, x: Array, sigma: Array) -> Array:
        """The logits, ``[N, classes]`` float32, of noisy images ``[N, C, H, W]`` with noise std ``sigma`` ``[N]``.

        Raises:
            ProviderError: arrays of other shapes or types, or ONNX Runtime failed.
        """
        return self._run(x, sigma, np.zeros((len(x), self.classes), np.float32))[0]

    def gradient(self, x: Array, sigma: Array, label: NDArray[np.int64]) -> Array:
        """``grad_x log p(label given x)``, ``[N, C, H, W]`` float32, in two runs: one needs what the other finds.

        Args:
            x: noisy images in data units, ``[N, C, H, W]`` float32.
            sigma: noise std, ``[N]`` float32, > 0.
            label: a class for each image, ``[N]``.

        Raises:
            ProviderError: arrays of other shapes or types, or ONNX Runtime failed.
        """
        logits = self(x, sigma)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        v = -shares / shares.sum(axis=1, keepdims=True)
        v[np.arange(len(x)), label] += 1
        return self._run(x, sigma, v)[1]

    def check_labels(self, label: NDArray[np.int64]) -> None:
        """``InputError`` where a label is no class of this classifier."""
        if label.min() < 0 or label.max() >= self.classes:
            wrong = label.min() if label.min() < 0 else label.max()
            raise InputError(f"label {wrong} is out of range: {self.path.name} has 0 to {self.classes - 1}")

    def _run(self, x: Array, sigma: Array, v: Array) -> list[Array]:
        feeds = dict(zip((*INPUTS, COTANGENT), (x, sigma, v), strict=True))
        try:
            with ending() as options:
                return list(self._session.run([LOGITS, GRADIENT], feeds, options))
        except ORT_ERRORS as error:
            raise ProviderError(f"{self.path.name} failed while running: {first_line(error)}") from error


def load_classifier(
    path: str | os.PathLike[str], provider: str = "auto", *, image_shape: tuple[int, int, int] | None = None,
    threads: int | None = None,
) -> Classifier:
    """Loads a classifier that `sde-onnx gradient CLASSIFIER -o FILE --of logits --at x` has made.

    Args:
        path: the ``.onnx`` file, of inputs ``x``, ``sigma`` and ``v`` and outputs ``logits`` and ``vjp``.
        provider: see :func:`sde_onnx.load`.
        image_shape: of the model that it guides, if that is known: what the classifier must take.
        threads: CPU threads, >= 1.

    Raises:
        ModelFileError: the file is missing, damaged, no such classifier, or one of images of another size.
        InputError, ProviderError: see :func:`sde_onnx.load`.
    """
    path, threads = checked_path("path", path), checked_threads(threads)
    if (kind := why_no_file(path)) is not None:
        raise ModelFileError(f"{path} is {kind}, expected a classifier's .onnx file")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    chosen = choose_provider(provider)
    try:
        check_one_file(path)
        session = open_session(os.fspath(path), chosen, options, threads=threads)
    except ORT_ERRORS as error:
        raise ModelFileError(f"{path} is not an ONNX file that can be loaded "
                             f"({first_line(error)})") from None
    inputs, outputs = ({item.name: item for item in items} for items in (session.get_inputs(), session.get_outputs()))
    if set(inputs) != {*INPUTS, COTANGENT} or not {LOGITS, GRADIENT} <= set(outputs):
        raise ModelFileError(
            f"{path} maps {', '.join(inputs)} to {', '.join(outputs)}, expected x, sigma, v to logits, vjp: "
            "`sde-onnx gradient CLASSIFIER -o FILE --of logits --at x` makes it of a classifier x, sigma -> logits")
    shape, classes = tuple(inputs["x"].shape[1:]), inputs[COTANGENT].shape[-1]
    if any(item.type != "tensor(float)" for item in inputs.values()):
        raise ModelFileError(f"{path} takes {', '.join(item.type for item in inputs.values())}, expected float32")
    if any(isinstance(item.shape[0], int) for item in inputs.values()):
        raise ModelFileError(f"{path} takes {inputs['x'].shape[0]} images at a time, expected any number: export the "
                             "classifier with a dynamic batch")
    if len(shape) != 3 or not all(isinstance(size, int) for size in (*shape, classes)):
        raise ModelFileError(f"{path} takes images {list(shape)} and gives logits of {classes} classes, expected sizes "
                             "that are fixed, but for the batch")
    if image_shape is not None and shape != image_shape:
        raise ModelFileError(f"{path} classifies images {list(shape)}, the model's are {list(image_shape)}")
    return Classifier(path, shape, classes, session)

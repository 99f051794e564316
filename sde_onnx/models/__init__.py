"""The models that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["bundled_classifier", "bundled_gradient", "bundled_model"]


def bundled_model() -> Path:
    """The model file of coloured handwritten digits, 16x16; ``examples/digits`` is how it was trained."""
    return Path(str(files(__name__) / "digits.onnx"))


def bundled_gradient() -> Path:
    """The gradient file of :func:`bundled_model`."""
    return Path(str(files(__name__) / "digits-gradient.onnx"))


def bundled_classifier() -> Path:
    """The classifier of noisy digits, with its gradient; ``examples/digits`` is how it was trained."""
    return Path(str(files(__name__) / "digits_classifier.onnx"))

"""Operators as text: ``box:4,4,8,8``, ``blur:1.5,down:2``. The first is applied to the image."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sde_onnx.errors import InputError, first_line
from sde_onnx.files import UNREADABLE, array_of
from sde_onnx.images import NO_PICTURE, open_picture
from sde_onnx.operators.compose import compose
from sde_onnx.operators.convolution import convolve
from sde_onnx.operators.masks import box, mask, random
from sde_onnx.operators.operator import Operator
from sde_onnx.operators.separable import bicubic, blur, down, gray

__all__ = ["FORMS", "files_of", "parse_operator"]

# How each is written, and what it is.
FORMS = {
    "mask:FILE": "known where the picture is white, missing where it is black",
    "box:X,Y,WIDTH,HEIGHT": "a box is missing, in pixels from the upper left corner",
    "random:SHARE[,SEED]": "a share of the pixels is missing, 0 to 1",
    "gray": "the mean of red, green and blue",
    "down:FACTOR": "means of blocks of pixels",
    "bicubic:FACTOR": "smaller by Pillow's bicubic filter",
    "blur:SIGMA": "a Gaussian blur, its standard deviation in pixels",
    "kernel:FILE": "convolved with a gray picture, made to sum to 1, or with the array of a .npy",
}
NAMES = [form.split(":")[0] for form in FORMS]
BETWEEN = re.compile(rf",(?=(?:{'|'.join(NAMES)})(?:[:,]|$))")


def parse_operator(text: str) -> Operator:
    """The operator that a text names, or several one after another, with commas between.

    Raises:
        InputError: an unknown name, arguments that are missing, too many or out of range, a file that cannot be read.
    """
    return compose(*map(_parse_one, BETWEEN.split(text)))


def files_of(text: str) -> list[Path]:
    """The files that a text names."""
    parts = [part.partition(":") for part in BETWEEN.split(text)]
    return [Path(arguments) for name, _, arguments in parts if name in ("mask", "kernel")]


def _parse_one(text: str) -> Operator:
    name, _, arguments = text.partition(":")
    if name not in NAMES:
        raise InputError(f"unknown operator {name!r}, expected one of {', '.join(FORMS)}")
    try:
        return PARSERS[name](arguments)
    except InputError:
        raise
    except (TypeError, ValueError):   # the number of arguments, what is no number
        form = next(form for form in FORMS if form.split(":")[0] == name)
        raise InputError(f"operator {text!r}: expected {form}") from None


def _numbers(function: Callable[..., Operator], *kinds: Callable[[str], float]) -> Callable[[str], Operator]:
    """A parser of numbers of these kinds, of which the last may be left out where the function has a default."""
    def parse(arguments: str) -> Operator:
        parts = arguments.split(",") if arguments else []
        if len(parts) > len(kinds):
            raise ValueError(arguments)
        return function(*(kind(part) for kind, part in zip(kinds, parts, strict=False)))

    return parse


def _mask_of(path: str) -> Operator:
    return mask(_read(path) / 255)


def _kernel_of(path: str) -> Operator:
    if path.endswith(".npy"):
        try:
            kernel = array_of(Path(path))
        except UNREADABLE as error:
            raise InputError(f"{path} cannot be read as an array ({first_line(error)})") from None
        return convolve(kernel)
    values = _read(path)
    return convolve(values / max(values.sum(), 1))


def _read(path: str) -> NDArray[np.float64]:
    """The values of a gray picture, 0 to 255."""
    try:
        with open_picture(path) as picture:
            return np.asarray(picture.convert("L"), np.float64)
    except NO_PICTURE as error:
        raise InputError(f"{path or 'a file'} cannot be read as a picture ({first_line(error)})") from None


PARSERS: dict[str, Callable[[str], Operator]] = {
    "mask": _mask_of,
    "box": _numbers(box, int, int, int, int),
    "random": _numbers(random, float, int),
    "gray": _numbers(gray),
    "down": _numbers(down, int),
    "bicubic": _numbers(bicubic, int),
    "blur": _numbers(blur, float),
    "kernel": _kernel_of,
}

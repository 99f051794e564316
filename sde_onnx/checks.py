"""What a caller gives, checked: a wrong kind or range is an InputError of one line, and never another error later."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any

from sde_onnx.errors import InputError, counted, one_line

__all__ = ["MOST_SEEDS", "MOST_STEPS", "MOST_THREADS", "checked_batch_size", "checked_choice", "checked_count",
           "checked_each", "checked_model", "checked_number", "checked_path", "checked_sequence", "checked_threads",
           "is_number"]

MOST_STEPS = 20_000    # the paper's own samplers take 2,000; a plan holds an object for each
MOST_IMAGES = 1 << 16  # at a time
MOST_SEEDS = 10_000_000   # of one run: a slip of the finger must not fill the memory
MOST_THREADS = max(64, os.cpu_count() or 1)


def checked_model(model: Any, name: str = "model") -> None:
    """``InputError`` where a loaded model is expected and something else was given: mostly its file."""
    if not hasattr(model, "metadata"):
        raise InputError(f"{name} is {one_line(model)}, expected what sde_onnx.load returns of a file")


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Whether a value is a number, not true or false, that is finite as a float: a whole one may be too large."""
    if not isinstance(value, numbers.Integral if whole else numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def checked_count(name: str, value: Any, *, least: int = 0, most: int | None = None, hint: str = "") -> int:
    """A whole number in a range.

    Args:
        name: of the argument, for messages.
        value: as it was given.
        least, most: both may be reached.
        hint: what else to say of what is expected.

    Raises:
        InputError: another kind, or out of the range.
    """
    if is_number(value, whole=True) and least <= value and (most is None or value <= most):
        return int(value)
    limit = f"of at least {least}" if most is None else f"of {least} to {most}"
    raise InputError(f"{name} is {one_line(value)}, expected a whole number {limit}{hint}")


def checked_number(name: str, value: Any, expected: str = "a finite number", *, least: float = -math.inf) -> float:
    """A finite number of at least ``least``; ``InputError`` says ``expected`` of anything else."""
    if is_number(value) and float(value) >= least:
        return float(value)
    raise InputError(f"{name} is {one_line(value)}, expected {expected}")


def checked_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of several words; ``InputError`` names them."""
    known = list(choices)
    if isinstance(value, str) and value in known:
        return value
    raise InputError(f"{name} {one_line(value)} is unknown, expected one of: {', '.join(known)}")


def checked_path(name: str, value: Any) -> Path:
    """A file's name as a path; ``InputError`` for what is none."""
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str) and "\0" not in text:
            return Path(text)
    raise InputError(f"{name} is {one_line(value)}, expected the name of a file")


def checked_sequence(name: str, value: Any, expected: str) -> None:
    """``InputError`` for what has no length and no order: a number, a generator, a text."""
    is_one = isinstance(value, Sized) and hasattr(value, "__getitem__") and getattr(value, "shape", None) != ()
    if not is_one or isinstance(value, str | bytes | dict):
        raise InputError(f"{name} is {one_line(value)}, expected {expected}")


def checked_each(values: Sized, noun: str, images: int, *, or_one: bool = False) -> None:
    """``InputError`` unless there is a value for each of the images, or one for all where that will do."""
    if len(values) != images and not (or_one and len(values) == 1):
        expected = "one, or one for each image" if or_one else "one for each image"
        raise InputError(f"{counted(len(values), noun)} for {counted(images, 'image')}: give {expected}")


def checked_batch_size(value: Any) -> int | None:
    """Images at a time, >= 1, or ``None``."""
    return None if value is None else checked_count("batch_size", value, least=1, most=MOST_IMAGES)


def checked_threads(value: Any) -> int | None:
    """CPU threads, >= 1, or ``None``."""
    return None if value is None else checked_count("threads", value, least=1, most=MOST_THREADS)

"""Cases that break the promise in every way, for the harness's own test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from fuzz import harness
from fuzz.harness import Case
from sde_onnx.errors import InputError

__all__ = ["BROKEN", "tells"]


def good(seed: int, folder: Path) -> Case:
    return Case(call=lambda: None)


def raises(seed: int, folder: Path) -> Case:
    return Case(call=lambda: 1 / seed)


def several_lines(seed: int, folder: Path) -> Case:
    def call() -> None:
        raise InputError("one\ntwo")
    return Case(call=call)


def leaves(seed: int, folder: Path) -> Case:
    return Case(call=lambda: (folder / "half").write_text("half"))


def changes(seed: int, folder: Path) -> Case:
    (folder / "input").write_text("before")
    return Case(call=lambda: (folder / "input").write_text("after"))


def dies(seed: int, folder: Path) -> Case:
    return Case(call=lambda: os._exit(11))


def noisy(seed: int, folder: Path) -> Case:
    return Case(call=lambda: os.write(2, b"[E:onnxruntime] noise"))


def memory(seed: int, folder: Path) -> Case:
    return Case(call=lambda: bytearray(2 * harness.MEMORY))


def waits(seed: int, folder: Path) -> Case:
    return Case(call=lambda: time.sleep(1000))


def works(seed: int, folder: Path) -> Case:
    def call() -> None:
        while True:
            pass
    return Case(call=call)


def tells(seed: int, folder: Path) -> Case:
    """Says which process it ran in, and on which cores, beside another that does."""
    def call() -> None:
        time.sleep(1)
        raise ZeroDivisionError(f"process {os.getpid()} on {sorted(os.sched_getaffinity(0))}")
    return Case(call=call)


BROKEN: dict[str, Callable[[int, Path], Case]] = {function.__name__: function for function in (
    good, raises, several_lines, leaves, changes, dies, noisy, memory, waits, works)}

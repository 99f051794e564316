"""ONNX Runtime's sessions of one model file: one for each number of images, and loops on the device for each thread."""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sde_onnx.errors import InputError, ProviderError, ProviderWarning, first_line, one_line
from sde_onnx.runtime.cuda_options import SEARCHES
from sde_onnx.runtime.device_loop import DeviceLoop, alone_on
from sde_onnx.runtime.metadata import ModelMetadata
from sde_onnx.runtime.providers import ORT_ERRORS, open_session
from sde_onnx.runtime.score_model import LABEL

__all__ = ["Sessions", "default_options"]

BATCH = "N"   # name of the free dimension
LEAST_FOR_LOOPS = (1, 31)   # before, a captured Concat of unequal widths reads where its inputs lay at the capture
MOST_KEPT = 2   # sessions, and loops of a thread
Opened = TypeVar("Opened")


def default_options() -> ort.SessionOptions:
    """ONNX Runtime's options, but for its plan of one block of memory for all activations.

    The plan takes 1.7 times the memory at 1024x1024 (3.7 GB instead of 2.2) and saves 1% of the time at most.
    """
    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    options.log_severity_level = 3   # its warnings are about the graph, which nobody here can change
    return options


class _Recent(Generic[Opened]):
    """The last two that were opened: of full batches, and of the rest of the images.

    Not ``functools.lru_cache`` of a method: that and its object hold each other, and a model that nobody holds any more
    would keep its memory until Python looks for such cycles.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], Opened] = {}
        self._lock, self._opening = threading.Lock(), threading.Lock()

    def get(self, key: tuple[int, ...], opened: Callable[..., Opened]) -> Opened:
        """Returns what ``opened(*key)`` made before, or makes it now, one thread at a time."""
        if (found := self._found(key)) is not None:
            return found
        with self._opening:
            if (found := self._found(key)) is None:   # another thread may have opened it meanwhile
                found = opened(*key)
                with self._lock:
                    self._kept[key] = found
                    if len(self._kept) > MOST_KEPT:
                        del self._kept[next(iter(self._kept))]
            return found

    def _found(self, key: tuple[int, ...]) -> Opened | None:
        """What is kept, which is the latest used from now on."""
        with self._lock:
            if key in self._kept:
                self._kept[key] = self._kept.pop(key)
            return self._kept.get(key)


class Sessions:
    """Opens what runs a file, when it is asked for.

    Args:
        path: the file.
        metadata: what it says of itself.
        provider, precision, threads: see :func:`sde_onnx.runtime.providers.open_session`.
        options: makes ONNX Runtime's own, anew for each session.

    Warns with a ``ProviderWarning`` of each way to find cuDNN's plans that has none for a convolution of the network.
    """

    def __init__(
        self, path: Path, metadata: ModelMetadata, provider: str, *, precision: str, threads: int | None,
        options: Callable[[], ort.SessionOptions],
    ) -> None:
        self._path = path
        self._metadata = metadata
        self._provider = provider
        self._precision = precision
        self._threads = threads
        self._options = options
        self._searches = list(SEARCHES if provider == "cuda" else SEARCHES[:1])   # those that have not failed
        self._sessions: _Recent[ort.InferenceSession] = _Recent()
        self._loops = threading.local()   # a captured graph belongs to the thread that made it, and buffers to one run

    def session(self, batch: int) -> ort.InferenceSession:
        """Returns the session for a number of images, opened now if it is not one of the last two."""
        return self._sessions.get((batch,), self._session)

    def loop(self, batch: int, capacity: int) -> DeviceLoop:
        """The calling thread's loop for so many images and rows: see :class:`DeviceLoop`.

        Raises:
            ProviderError: an onnxruntime whose captured graphs are wrong.
        """
        if not hasattr(self._loops, "open"):
            if self._provider == "cuda" and _version(ort.__version__) < LEAST_FOR_LOOPS:
                raise ProviderError(f"the loop under cuda needs onnxruntime-gpu {'.'.join(map(str, LEAST_FOR_LOOPS))} "
                                    f"or later, this is {ort.__version__}: pip install --upgrade onnxruntime-gpu")
            self._loops.open = _Recent[DeviceLoop]()
        open_loops: _Recent[DeviceLoop] = self._loops.open
        return open_loops.get((batch, capacity), self._loop)

    def _session(self, batch: int) -> ort.InferenceSession:
        def tried(search: str) -> ort.InferenceSession:
            session = self._opened(batch, search)
            if self._provider == "cuda":
                session.run(None, _some_inputs(session, batch))
            return session

        return self._first_that_works(tried)

    def _loop(self, batch: int, capacity: int) -> DeviceLoop:
        return self._first_that_works(lambda search: DeviceLoop(
            self._opened(batch, search, capture=True), self._provider, (batch, *self._metadata.image_shape), capacity))

    def _opened(self, batch: int, search: str, *, capture: bool = False) -> ort.InferenceSession:
        options = self._options()
        if not isinstance(options, ort.SessionOptions):
            raise InputError(f"session_options made {one_line(options)}, expected ONNX Runtime's SessionOptions")
        options.add_free_dimension_override_by_name(BATCH, batch)
        if self._provider == self._metadata.target == "cuda":   # what CUDA does not take is a fault of the file
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return open_session(os.fspath(self._path), self._provider, options, precision=self._precision,
                            threads=self._threads, search=search, capture=capture)

    def _first_that_works(self, tried: Callable[[str], Opened]) -> Opened:
        """What ``tried`` opens, and runs once, with the first way to find cuDNN's plans that has all that it needs."""
        with alone_on(self._provider):
            while True:
                search = self._searches[0]
                try:
                    return tried(search)
                except ORT_ERRORS as error:
                    if len(self._searches) == 1 or "memory" in str(error).lower():
                        raise
                    self._searches.pop(0)
                    warnings.warn(f"cuDNN has no plan by {search} for a convolution of this network, "
                                  f"{self._searches[0]} is tried: {first_line(error)}", ProviderWarning, stacklevel=2)


def _some_inputs(session: ort.InferenceSession, batch: int) -> dict[str, NDArray[Any]]:
    """Ones for all inputs of a session, of so many images; of labels the first."""
    shapes = {item.name: [size if isinstance(size, int) else batch for size in item.shape]
              for item in session.get_inputs()}
    return {name: np.zeros(shape, np.int64) if name == LABEL else np.ones(shape, np.float32)
            for name, shape in shapes.items()}


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])

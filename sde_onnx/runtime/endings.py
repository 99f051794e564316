"""Runs of ONNX Runtime that end when a signal comes or their time is over; by itself none ends before its last node."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxruntime import RunOptions

__all__ = ["end_runs_on", "ending"]

_under_way: list[RunOptions] = []   # of runs, on any thread


@contextmanager
def ending(seconds: float | None = None) -> Iterator[RunOptions]:
    """Options of runs that end, with an error of ONNX Runtime's, when a signal comes or after so many seconds.

    ``terminate`` of them says whether that happened. A provider that runs the whole network as one node, as OpenVINO
    does, ends after it.
    """
    from onnxruntime import RunOptions  # the command line imports this module for its help as well

    options = RunOptions()
    clock = None if seconds is None else threading.Timer(min(seconds, threading.TIMEOUT_MAX), _end, [options])
    _under_way.append(options)
    try:
        if clock is not None:
            clock.daemon = True   # a second Ctrl-C may come before it is cancelled
            clock.start()
        yield options
    finally:
        if clock is not None:
            clock.cancel()
        _under_way.remove(options)


def end_runs_on(signals: set[int]) -> None:
    """Ends what runs when one of these signals comes, so that its handler, which Python calls later, need not wait.

    For a process of ours, on its main thread: :func:`signal.set_wakeup_fd` knows one reader.
    """
    here, there = socket.socketpair()   # Windows takes no pipe here
    there.setblocking(False)
    signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):   # a child's signals are not this process's
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_end_on, args=(here, there, signals), name="signals", daemon=True).start()


def _end_on(here: socket.socket, there: socket.socket, signals: set[int]) -> None:
    """Reads the signals that come; it holds both ends, which would close without a holder."""
    while numbers := here.recv(64):
        if not signals.isdisjoint(numbers):
            for options in list(_under_way):
                _end(options)


def _end(options: RunOptions) -> None:
    options.terminate = True

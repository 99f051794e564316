"""``python -m sde_onnx`` and ``sde-onnx``: the command line."""

from __future__ import annotations

import signal
import sys
from types import FrameType

__all__ = ["run"]

TERMINATIONS = ("SIGTERM", "SIGHUP")   # by a scheduler; by a terminal that closes, not on Windows
STATUS = 128                           # and the signal's number: that of a process that a signal has ended
_signals: list[int] = []               # of TERMINATIONS, those that this process was sent


def run() -> None:
    """Runs the command line. When it is told to end it ends what runs, and removes what is unfinished.

    An interruption while its modules are read is one line, as it is later.
    """
    for name in TERMINATIONS:
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:   # not under nohup
            signal.signal(getattr(signal, name), _end)
    try:
        from sde_onnx.cli import main, open_streams
        from sde_onnx.runtime.endings import end_runs_on

        open_streams()   # before sockets take the places of those that were closed
        end_runs_on({getattr(signal, name) for name in ("SIGINT", *TERMINATIONS) if hasattr(signal, name)})
    except KeyboardInterrupt:
        sys.exit("Aborted!")
    try:
        main(prog_name="sde-onnx")
    except Exception as error:   # of a library that took what follows from a signal for a failure of its own
        if _signals:
            sys.exit(STATUS + _signals[0])
        if _follows_from_an_interruption(error):
            sys.exit("Aborted!")
        raise


def _end(number: int, frame: FrameType | None) -> None:
    _signals.append(number)
    raise SystemExit(STATUS + number)


def _follows_from_an_interruption(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


if __name__ == "__main__":
    run()

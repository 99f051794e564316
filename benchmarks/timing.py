"""The timing core: subjects take turns in one run, each in a process of its own.

A process for each subject, because two runtimes in one fight over the cores with threads that spin, and because peak
memory belongs to a process. All of them are started, loaded and warmed up first; then they take turns, so that whatever
else this machine does meanwhile hits all of them alike. A subject that waits holds its memory and no core.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Measurement", "Subject", "SubjectError", "compare", "ratio"]

Array = NDArray[np.float32]
ScoreFunction = Callable[[Array, Array], Array]
LEAST_SECONDS = 0.3   # of a sample: a short evaluation is repeated within it
REST = 0.1            # seconds between turns, in which the threads of the last subject stop spinning


class SubjectError(Exception):
    """A subject failed or took too long; the message says how."""


@dataclass(frozen=True)
class Subject:
    """Something to be timed.

    Args:
        name: as tables show it.
        make: returns a score function, inside the subject's own process; a module's function, for it is sent there.
        arguments: of ``make``.
        limit: seconds that the first evaluation may take (a compiler may run in it).
    """

    name: str
    make: Callable[..., ScoreFunction]   # an object of it may have methods `time` and `peak_mb` in place of ours
    arguments: tuple[Any, ...] = ()
    limit: float = 600.0


@dataclass
class Measurement:
    """What was measured of one subject."""

    load_seconds: float = math.nan       # until the score function exists
    first_seconds: float = math.nan      # the first evaluation, a compiler's work included
    seconds: list[float] = field(default_factory=list)   # an evaluation, one entry a turn
    evaluations_a_turn: int = 0
    peak_mb: float | None = None         # resident memory, highest during the turns
    peak_load_mb: float | None = None    # the same until then: loading, compiling, warming up
    errors: dict[str, float] = field(default_factory=dict)   # |a - b| / |b| against the reference, by case
    failure: str | None = None
    extras: dict[str, Any] = field(default_factory=dict)   # what the subject itself can tell, by name

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.nan


def compare(
    subjects: Sequence[Subject],
    x: Array,
    sigma: Array,
    cases: Mapping[str, tuple[Array, Array]],
    *,
    reference: str,
    turns: int = 5,
    extras: Mapping[str, tuple[Any, ...]] | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Measurement]:
    """Times score functions side by side.

    Args:
        subjects: what to time.
        x, sigma: the input that is timed, ``[N, C, H, W]`` and ``[N]``.
        cases: inputs on which subjects are compared with the reference, by name.
        reference: the name of the subject that is the oracle.
        turns: samples of each subject.
        extras: methods of the subjects' objects to be called after the turns, with their arguments.
        tell: takes a line of progress.

    Returns:
        A measurement for each subject, by name; one that failed says how, and the others are not touched by it.
    """
    results = {subject.name: Measurement() for subject in subjects}
    with contextlib.ExitStack() as stack:
        workers = {}
        for subject in subjects:
            result = results[subject.name]
            try:
                worker = stack.enter_context(_worker(subject))
                _, result.load_seconds = worker.ask(subject.limit)
                result.first_seconds = worker.ask(subject.limit, "time", x, sigma, 1)
                warm = worker.ask(None, "time", x, sigma, 1)
                result.evaluations_a_turn = max(1, math.ceil(LEAST_SECONDS / warm))
                tell(f"{subject.name}: loaded in {result.load_seconds:.1f} s, first evaluation "
                     f"{result.first_seconds:.2f} s, then {warm:.3f} s")
                workers[subject.name] = worker
            except SubjectError as error:
                result.failure = str(error)
                tell(f"{subject.name}: {error}")
        if reference not in workers:
            raise SystemExit(f"the reference {reference} failed: {results[reference].failure}")

        def ask(name: str, *question: Any) -> Any:
            """A subject's answer; ``None`` of one that fails, which is asked no more."""
            try:
                return workers[name].ask(None, *question)
            except SubjectError as error:
                if name == reference:
                    raise SystemExit(f"the reference {reference} failed: {error}") from None
                results[name].failure = str(error)
                tell(f"{name}: {error}")
                del workers[name]
                return None

        for case, (case_x, case_sigma) in cases.items():
            expected = ask(reference, "score", case_x, case_sigma)
            for name in list(workers):
                if (score := ask(name, "score", case_x, case_sigma)) is not None:
                    results[name].errors[case] = float(np.linalg.norm(score - expected) / np.linalg.norm(expected))
        for name in list(workers):
            results[name].peak_load_mb = ask(name, "peak", True)
        for turn in range(turns):
            order = list(workers) if turn % 2 == 0 else list(reversed(workers))
            for name in order:
                time.sleep(REST)
                count = results[name].evaluations_a_turn
                if (seconds := ask(name, "time", x, sigma, count)) is not None:
                    results[name].seconds.append(seconds / count)
        for name in list(workers):
            results[name].peak_mb = ask(name, "peak", False)
            for extra, given in (extras or {}).items():
                if name in workers:
                    results[name].extras[extra] = ask(name, "extra", extra, *given)
    return results


def ratio(measurements: Mapping[str, Measurement], subject: str, reference: str) -> float:
    """How many times faster than the reference, by the medians of one run."""
    return measurements[reference].median / measurements[subject].median


class _Worker:
    """The parent's end of a subject's process."""

    def __init__(self, process: multiprocessing.Process, connection: Connection) -> None:
        self.process = process
        self.connection = connection

    def ask(self, limit: float | None, *question: Any) -> Any:
        """Sends a question, if there is one, and returns the next answer."""
        try:
            if question:
                self.connection.send(question)
            if not self.connection.poll(limit):
                raise SubjectError(f"no answer within {limit:.0f} s")
            kind, answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            raise SubjectError(f"its process ended with status {self.process.exitcode}") from None
        if kind == "failure":
            raise SubjectError(answer)
        return answer


@contextlib.contextmanager
def _worker(subject: Subject) -> Iterator[_Worker]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, subject), daemon=True)
    process.start()
    theirs.close()
    try:
        yield _Worker(process, ours)
    finally:
        ours.close()
        process.join(2)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(connection: Connection, subject: Subject) -> None:
    """The subject's process: loads, then answers until the parent hangs up."""
    try:
        start = time.perf_counter()
        score = subject.make(*subject.arguments)
        connection.send(("ready", (subject.name, time.perf_counter() - start)))
        while True:
            kind, *arguments = connection.recv()
            answer = {"time": _time, "score": _score, "peak": _peak, "extra": _extra}[kind]
            connection.send((kind, answer(score, *arguments)))
    except EOFError:
        return
    except Exception as error:   # noqa: BLE001  # whatever a subject does is a result
        connection.send(("failure", traceback.format_exception_only(error)[-1].splitlines()[0]))


def _time(score: ScoreFunction, x: Array, sigma: Array, count: int) -> float:
    if (own := getattr(score, "time", None)) is not None:
        return own(x, sigma, count)
    start = time.perf_counter()
    for _ in range(count):
        score(x, sigma)
    return time.perf_counter() - start


def _score(score: ScoreFunction, x: Array, sigma: Array) -> Array:
    return score(x, sigma)


def _extra(score: ScoreFunction, name: str, *arguments: Any) -> Any:
    return getattr(score, name)(*arguments)


def _peak(score: ScoreFunction, reset: bool) -> float | None:
    """Highest resident memory in MB since the last reset; ``None`` where the system does not tell."""
    if (own := getattr(score, "peak_mb", None)) is not None:
        return own(reset)
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1]) / 1024

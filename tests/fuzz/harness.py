"""Runs hostile cases, each in a worker process under a limit of memory and of time, and says what broke the promise.

The promise: every input ends in success, or in one line and status 1 or 2, with nothing left behind and nothing lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue

__all__ = ["Case", "Failure", "run_cases"]

SECONDS = 20.0          # of processors that a case may take
PATIENCE = 3            # times as many of the clock: others may be at work on the machine, but what waits forever hangs
MEMORY = 3 * 2**30      # that it may take beyond what the worker has
STATUSES = (0, 1, 2)


@dataclass(frozen=True)
class Case:
    """What is tried: a command as a user types it, or a call of the library."""

    arguments: tuple[str, ...] = ()
    call: Callable[[], object] | None = None
    makes: tuple[str, ...] = ()        # names of files and folders that may be new after a success
    keeps: bool = True                 # whether files that were there must be as they were
    goes_on: bool = False              # whether what was made before a failure stays, for the next run


@dataclass(frozen=True)
class Failure:
    """A broken promise."""

    kind: str
    seed: int
    problem: str


@dataclass
class _Seen:
    status: int = 0
    output: str = ""
    problems: list[str] = field(default_factory=list)


def run_cases(
    kinds: dict[str, Callable[[int, Path], Case]], cases: Iterable[tuple[str, int]],
    prepare: Callable[[], object] | None = None, *, seconds: float = SECONDS, cores: Sequence[int] = (),
) -> Iterator[tuple[str, int, Failure | None]]:
    """Runs cases in workers that are replaced when they hang or die; gives each in order, with its failure if any.

    Args:
        kinds: by name, what makes the case of a seed in an empty folder; module-level functions.
        cases: names and seeds.
        prepare: called once in each worker.
        seconds: of processors that a case may take, and PATIENCE times as many of the clock.
        cores: with a worker each; of none, one worker on all.
    """
    workers = [_Worker(kinds, prepare, seconds, own) for own in ([{core} for core in cores] or [None])]
    idle = SimpleQueue[_Worker]()
    for worker in workers:
        idle.put(worker)

    def tried(case: tuple[str, int]) -> tuple[str, int, Failure | None]:
        worker = idle.get()
        try:
            problem = worker.ask(*case)
        finally:
            idle.put(worker)
        return *case, None if problem is None else Failure(*case, problem)

    pool = ThreadPoolExecutor(len(workers))
    try:
        yield from pool.map(tried, cases)
    finally:
        pool.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


class _Worker:
    """A process that is started when it is asked something, anew after it hung or died."""

    def __init__(
        self, kinds: dict[str, Callable[[int, Path], Case]], prepare: Callable[[], object] | None, seconds: float,
        cores: set[int] | None,
    ) -> None:
        self._arguments = (kinds, prepare)
        self._seconds, self._cores = seconds, cores
        self._running: tuple[BaseProcess, Connection] | None = None

    def ask(self, kind: str, seed: int) -> str | None:
        """The problem of a case, or ``None``."""
        process, pipe = self._started()
        try:
            pipe.send((kind, seed))
            end, used = time.monotonic() + PATIENCE * self._seconds, _processor_seconds(process)
            problem = None
            while problem is None:
                if pipe.poll(1):
                    answer: str | None = pipe.recv()
                    return answer
                if _processor_seconds(process) - used > self._seconds:
                    problem = f"no end in {self._seconds:.0f} s of processors"
                elif time.monotonic() > end:
                    problem = f"no end in {PATIENCE * self._seconds:.0f} s"
        except (EOFError, OSError):
            process.join(5)
            status = process.exitcode
            self.close()
            return f"the process died with status {status}"
        self.close()
        return problem

    def _started(self) -> tuple[BaseProcess, Connection]:
        if self._running is None:
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
            everywhere = os.sched_getaffinity(0)   # of this thread, which the process gets from it when it starts
            os.sched_setaffinity(0, self._cores or everywhere)
            try:
                process.start()
            finally:
                os.sched_setaffinity(0, everywhere)
            theirs.close()
            self._running = process, ours
            assert ours.recv() == "ready"
        return self._running

    def close(self) -> None:
        if self._running is not None:
            process, pipe = self._running
            pipe.close()
            process.kill()
            process.join()
            self._running = None


def _processor_seconds(process: BaseProcess) -> float:
    """What a process has used, all its threads together; of one that has ended, none."""
    try:
        after_its_name = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, after_its_name[11:13])) / os.sysconf("SC_CLK_TCK")   # in user mode and in the kernel's


def _serve(
    pipe: Connection, kinds: dict[str, Callable[[int, Path], Case]], prepare: Callable[[], object] | None,
) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    if prepare is not None:
        prepare()
    grown = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (grown, grown))
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            kind, seed = pipe.recv()
            folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
            try:
                pipe.send(_problem(kinds[kind], seed, folder))
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def _problem(make: Callable[[int, Path], Case], seed: int, folder: Path) -> str | None:
    here = Path.cwd()
    os.chdir(folder)
    try:
        case = make(seed, folder)
        before = _contents(folder)
        seen = _called(case.call) if case.call is not None else _typed(case.arguments)
        after = _contents(folder)
    finally:
        os.chdir(here)
    problems = seen.problems
    may_be_new = case.makes if seen.status == 0 or case.goes_on else ()
    new = {name for name in after.keys() - before.keys() if name.split("/")[0] not in may_be_new}
    if new:
        problems.append(f"status {seen.status}, and left {sorted(new)}")
    if case.keeps and (changed := [name for name, content in before.items() if after.get(name) != content]):
        problems.append(f"changed {changed}")
    return f"{' '.join(case.arguments)}: {'; '.join(problems)}" if problems else None


def _typed(arguments: tuple[str, ...]) -> _Seen:
    """A command, run in this process."""
    from click.testing import CliRunner

    from sde_onnx.cli import main

    with _native_stderr() as told:
        result = CliRunner().invoke(main, list(arguments))
    seen = _Seen(result.exit_code, result.output)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        seen.problems.append(_where(result.exception))
    elif result.exit_code not in STATUSES:
        seen.problems.append(f"status {result.exit_code}")
    elif result.exit_code and not (lines := result.stderr.splitlines()):
        seen.problems.append("no message")
    elif result.exit_code == 1 and (len(lines) != 1 or not lines[0].startswith("Error: ")):
        seen.problems.append(f"{len(lines)} lines: {result.stderr[:300]!r}")
    elif result.exit_code == 2 and not lines[-1].startswith("Error: "):
        seen.problems.append(f"no error at its end: {result.stderr[-300:]!r}")
    if text := told():
        seen.problems.append(f"on stderr {text[:300]!r}")
    return seen


def _called(call: Callable[[], object]) -> _Seen:
    """A call of the library: it succeeds, or raises an error of ours that was given one line."""
    from sde_onnx.errors import SdeOnnxError

    seen = _Seen()
    with _native_stderr() as told:
        try:
            call()
        except SdeOnnxError as error:
            seen.status = 1
            if "\n" in "".join(map(str, error.args)):   # its text escapes them; another library's words are too many
                seen.problems.append(f"several lines: {error}")
        except Exception as error:   # noqa: BLE001  # which is what is looked for
            seen.status = 1
            seen.problems.append(_where(error))
    if text := told():
        seen.problems.append(f"on stderr {text[:300]!r}")
    return seen


@contextlib.contextmanager
def _native_stderr() -> Iterator[Callable[[], str]]:
    """What libraries write to the standard error of the process, past Python's."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def told() -> str:
            return written[0]

        written = [""]
        try:
            yield told
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            written[0] = file.read().decode(errors="replace")


def _where(error: BaseException) -> str:
    """An exception, with the last place of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "sde_onnx" in frame.filename or "/export/" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else "?"
    return f"{type(error).__name__} in {place}: {str(error)[:200]!r}"


def _contents(folder: Path) -> dict[str, str]:
    """What lies in a folder, by its name in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or not path.is_file():
            found[name] = "no file"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found

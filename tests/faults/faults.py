"""What may happen to a process that writes: signals, kill -9, a full disk, another process in the same folder.

Each fault takes the name of a command, random numbers and an empty folder, and returns what broke the promise: no half
file under a final name, nothing unfinished left unless the process was killed outright, one line where there is an
error, and the same command, run again, ends with what an undisturbed run makes.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.subjects import COMMAND, SUBJECTS, contents, prepare, undisturbed

__all__ = ["FAULTS", "can_mount"]

UNFINISHED = re.compile(r"(.*/)?\.[^/]*(/.*)?")   # hidden names, which files.replacing gives and claims lock
PROGRESS = re.compile(r"\d+ of \d+ images")   # of a log, where a run takes half a minute
SECONDS = 240   # that anything may take, beside other work
STOPPED = {signal.SIGINT: (1, "Aborted!\n"), signal.SIGTERM: (143, "")}   # status and what is said


def interrupted(name: str, numbers: random.Random, folder: Path) -> list[str]:
    """Ctrl-C at a random moment, or the signal that ends a job."""
    sign = numbers.choice(list(STOPPED))
    prepare(folder)
    process = _begin(name, folder)
    time.sleep(numbers.uniform(0, 1.05) * undisturbed(name).seconds)
    process.send_signal(sign)
    problems, told = _ended(process)
    status, said = STOPPED[sign]
    if process.returncode == 0:
        return problems + _is_as_undisturbed(name, folder)
    early = process.returncode == -sign   # before the first line of ours
    if process.returncode != status and not early:
        problems.append(f"{sign.name}: status {process.returncode}")
    if (not early and not told.endswith(said)) or ("Traceback" in told and not _of_python(told)):
        problems.append(f"{sign.name}: said {told[-400:]!r}")
    return problems + _left(name, folder, killed=False) + _goes_on(name, folder)


def killed(name: str, numbers: random.Random, folder: Path) -> list[str]:
    """kill -9 at random moments, until one run comes to its end."""
    prepare(folder)
    problems: list[str] = []
    for _ in range(numbers.randint(1, 3)):
        process = _begin(name, folder)
        time.sleep(numbers.uniform(0.1, 1) * undisturbed(name).seconds)
        process.kill()
        process.communicate()
        problems += _left(name, folder, killed=True)
        if _made(name, folder) and not (SUBJECTS[name].goes_on and _is_as_undisturbed(name, folder, killed=True)):
            return problems   # it would be refused now: its files are there, whole
    return problems + _goes_on(name, folder)


def full(name: str, numbers: random.Random, folder: Path) -> list[str]:
    """A disk that is too small for what is written, and then is not."""
    inputs = 256 * 1024
    size = inputs + int(numbers.uniform(0, 1.1) * undisturbed(name).size)
    with _disk(folder, size) as disk:
        prepare(disk)
        (disk / "padding").write_bytes(b"\0" * max(0, _free(disk) - (size - inputs)))
        process = _begin(name, disk)
        problems, told = _ended(process)
        if process.returncode == 0:
            return problems + _is_as_undisturbed(name, disk, beside=("padding",))
        lines = [line for line in told.splitlines() if line and not PROGRESS.match(line)]
        if process.returncode != 1 or len(lines) != 1 or not lines[0].startswith("Error: "):
            problems.append(f"status {process.returncode}, said {told[-400:]!r}")
        problems += _left(name, disk, killed=False, beside=("padding",))
        (disk / "padding").unlink()
        subprocess.run(["mount", "-o", f"remount,size={size + 64 * 2**20}", str(disk)], check=True)
        return problems + _goes_on(name, disk)


def shared(name: str, numbers: random.Random, folder: Path) -> list[str]:
    """Two or three processes in one folder, some of them killed and begun again."""
    prepare(folder)
    problems: list[str] = []
    at_work = []
    for _ in range(numbers.randint(2, 3)):
        at_work.append(_begin(name, folder))
        time.sleep(numbers.uniform(0, 0.5) * undisturbed(name).seconds)
    if numbers.random() < 0.7:
        at_work[0].send_signal(numbers.choice([signal.SIGKILL, signal.SIGINT]))
        at_work[0].communicate()
        at_work[0] = _begin(name, folder)
    for process in at_work:
        further, told = _ended(process)
        problems += further
        if process.returncode:
            problems.append(f"status {process.returncode}, said {told[-400:]!r}")
    return problems + _is_as_undisturbed(name, folder)


FAULTS: dict[str, tuple[Callable[[str, random.Random, Path], list[str]], list[str]]] = {
    "interrupted": (interrupted, list(SUBJECTS)),
    "killed": (killed, list(SUBJECTS)),
    "full": (full, list(SUBJECTS)),
    "shared": (shared, ["folder", "shards"]),
}


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a file system: root of a machine, and of some containers."""
    try:
        with _disk(folder, 4096):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _begin(name: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *SUBJECTS[name].arguments], cwd=folder, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _ended(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    """What is wrong with the end of a process, and what it said on standard error."""
    try:
        return [], process.communicate(timeout=SECONDS)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return [f"no end in {SECONDS} s"], ""


def _of_python(told: str) -> bool:
    """Whether the interpreter was interrupted before it came to our first line."""
    return "sde_onnx" not in told or ("<frozen runpy>" in told and "in run\n" not in told)


def _made(name: str, folder: Path) -> dict[str, str]:
    """The files that a command has made so far, whole ones."""
    return {path: content for path, content in contents(folder).items()
            if path.split("/")[0] in SUBJECTS[name].makes and not UNFINISHED.fullmatch(path)}


def _is_kept(name: str, path: str) -> bool:
    """Whether a file is of what a run keeps hidden for the next."""
    return re.fullmatch(SUBJECTS[name].keeps, path) is not None


def _left(name: str, folder: Path, *, killed: bool, beside: tuple[str, ...] = ()) -> list[str]:
    """What a run that was stopped left and should not have."""
    expected, made, problems = undisturbed(name).files, _made(name, folder), []
    for path, content in contents(folder).items():
        if path in beside or content == expected.get(path) or (killed and UNFINISHED.fullmatch(path)):
            continue
        is_part = _is_kept(name, path) or path in made
        if SUBJECTS[name].goes_on and is_part and path not in expected:
            continue   # for the next run
        problems.append(f"left {path}" if path not in expected else f"{path} is another one")
    return problems


def _goes_on(name: str, folder: Path) -> list[str]:
    """The same command again, with nothing in its way."""
    is_part = SUBJECTS[name].goes_on and _is_as_undisturbed(name, folder, killed=True)
    whole = _made(name, folder) and not is_part
    force = ["--force"] if whole else []   # it would be refused: there are files of it, whole ones
    result = subprocess.run([*COMMAND, *SUBJECTS[name].arguments, *force], cwd=folder, capture_output=True, text=True,
                            timeout=SECONDS)
    if result.returncode:
        return [f"run again: status {result.returncode}, said {result.stderr[-400:]!r}"]
    return _is_as_undisturbed(name, folder, killed=True)


def _is_as_undisturbed(name: str, folder: Path, *, killed: bool = False, beside: tuple[str, ...] = ()) -> list[str]:
    """Whether a folder holds what an undisturbed run leaves; beside it, what a killed process had not finished."""
    cleans = SUBJECTS[name].goes_on and not SUBJECTS[name].keeps
    scraps = [path for path in contents(folder)
              if killed and UNFINISHED.fullmatch(path) and not cleans and not _is_kept(name, path)]
    found = {path: content for path, content in contents(folder).items() if path not in (*beside, *scraps)}
    expected = undisturbed(name).files
    return [f"{path} differs from that of an undisturbed run" if path in found and path in expected else
            f"{path} is missing" if path in expected else f"{path} is left"
            for path in sorted({*found, *expected}) if found.get(path) != expected.get(path)]


@contextlib.contextmanager
def _disk(folder: Path, size: int) -> Iterator[Path]:
    """A small file system in memory, of so many bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True,
                   capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize

"""Commands that write files, as a user types them in a folder; what they make is known from a run without faults."""

from __future__ import annotations

import atexit
import functools
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from sde_onnx.models import bundled_gradient

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "sde_onnx")
QUICK = ("--provider", "cpu", "--threads", "1")
ARRAYS = r"\.unfinished-[0-9a-f]{12}/(\d{6}\.npy|all)"


@dataclass(frozen=True)
class Subject:
    """A command and what it may leave.

    Args:
        arguments: as typed in a folder that holds what :func:`prepare` puts there.
        makes: files and folders that are there after a success.
        goes_on: whether what is finished stays, and the same command goes on with the rest.
        keeps: hidden files that hold what is finished, as a pattern. Without one, what is finished lies among the
            images, and the next run also removes what a killed process has left half.
    """

    arguments: tuple[str, ...]
    makes: tuple[str, ...]
    goes_on: bool = False
    keeps: str = ""


SUBJECTS = {
    "picture": Subject(("sample", *QUICK, "--seeds", "0-15", "-o", "s.png", "--gif", "s.gif"), ("s.png", "s.gif")),
    "array": Subject(("sample", *QUICK, "--seeds", "0-63", "--steps", "8", "-o", "s.npz"), ("s.npz",)),
    "folder": Subject(("sample", *QUICK, "--seeds", "0-63", "--batch-size", "4", "--steps", "12", "--grid", "-o", "s"),
                      ("s", "s.png"), goes_on=True),
    "shards": Subject(("sample", *QUICK, "--seeds", "0-63", "--batch-size", "4", "--steps", "12", "--shards", "-o",
                       "s"), ("s",), goes_on=True),
    "likelihood": Subject(("likelihood", *QUICK, str(bundled_gradient()), "digits", "-o", "l.csv", "--batch-size",
                           "2", "--steps", "4"), ("l.csv",), goes_on=True, keeps=r"\.l\.csv\.unfinished\.json"),
    "encode": Subject(("encode", *QUICK, "digits", "--batch-size", "1", "-o", "c.npz"), ("c.npz",), goes_on=True,
                      keeps=ARRAYS),
    "decode": Subject(("decode", *QUICK, "codes.npz", "--batch-size", "1", "-o", "d"), ("d",), goes_on=True,
                      keeps=f"d/{ARRAYS}"),
    "interpolate": Subject(("interpolate", *QUICK, "--from", "1", "--to", "2", "-o", "i.gif"), ("i.gif",)),
    "edit": Subject(("edit", *QUICK, "digits", "--sigma", "1", "--seeds", "0-3", "--batch-size", "2", "-o", "e"),
                    ("e",), goes_on=True, keeps=f"e/{ARRAYS}"),
    "restore": Subject(("restore", *QUICK, "digits", "--operator", "box:4,4,6,6", "--degrade", "--seeds", "0-1",
                        "--batch-size", "1", "--steps", "8", "-o", "r"), ("r",), goes_on=True),
    "embed": Subject(("embed", "-o", "e.onnx", "--golden", "g.npz"), ("e.onnx", "g.npz")),
    "export": Subject(("export", str(ROOT / "examples" / "digits" / "checkpoint"), "-o", "m.onnx", "--gradient",
                       "g.onnx"), ("m.onnx", "g.onnx")),
}


@functools.cache
def _inputs() -> Path:
    """A folder with pictures and latents."""
    folder = Path(tempfile.mkdtemp(prefix="faults-inputs-"))
    atexit.register(shutil.rmtree, folder)
    for arguments in (("sample", *QUICK, "--seeds", "0-3", "-o", "digits"),
                      ("encode", *QUICK, "digits", "-o", "codes.npz")):
        subprocess.run([*COMMAND, *arguments], cwd=folder, check=True, capture_output=True)
    (folder / "digits" / "run.json").unlink()
    return folder


def prepare(folder: Path) -> None:
    """Puts into a folder what the commands read."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(_inputs() / "digits", folder / "digits")
    shutil.copyfile(_inputs() / "codes.npz", folder / "codes.npz")


@dataclass(frozen=True)
class Undisturbed:
    """A run without faults."""

    seconds: float
    files: dict[str, str]
    size: int   # bytes of the files that it made


@functools.cache
def undisturbed(name: str) -> Undisturbed:
    """What a command does when nothing is in its way."""
    with tempfile.TemporaryDirectory(prefix="faults-whole-") as temporary:
        folder = Path(temporary)
        prepare(folder)
        before = contents(folder)
        start = time.monotonic()
        result = subprocess.run([*COMMAND, *SUBJECTS[name].arguments], cwd=folder, capture_output=True, text=True)
        seconds = time.monotonic() - start
        assert result.returncode == 0, f"{name}: {result.stderr}"
        after = contents(folder)
        made = after.keys() - before.keys()
        assert {path.split("/")[0] for path in made} <= set(SUBJECTS[name].makes), f"{name}: {sorted(made)}"
        return Undisturbed(seconds, after, sum((folder / path).stat().st_size for path in made))


def contents(folder: Path) -> dict[str, str]:
    """The files of a folder and of those in it, each with what it holds; archives by their arrays, records by name."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _content(path: Path) -> str:
    if path.name == "run.json":   # the seeds of a stopped run may be written in another order
        return "a record"
    return hashlib.sha256(path.read_bytes()).hexdigest()

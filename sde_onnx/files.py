"""Outputs that are written whole or not at all, and the folder of what is kept for the next time."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_onnx.errors import OutputError, SdeOnnxError, first_line, shown_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["UNREADABLE", "array_of", "arrays_of", "cache_folder", "check_room", "check_writable", "is_one_of",
           "read_json", "regular", "remove", "replacing", "sha256", "why_no_file"]

PIPE = "a pipe or a device"   # the end of which may never come
LARGE, PACKED = 2**28, 100   # arrays of more bytes may be so many times smaller in an archive, not more

# What readers (JSON, numpy's archives, Pillow's pictures) raise on files that are cut off, damaged, or something else.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, ArithmeticError, EOFError, SyntaxError, MemoryError,
              RuntimeError, AttributeError, struct.error, zlib.error, zipfile.BadZipFile)


def check_writable(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuses an output before the work for it begins, and leaves nothing behind.

    Args:
        path: the file to be written; its folder is made when it is written.
        force: whether an existing file may be replaced.
        inputs: files that are read, or written under other names, which ``force`` does not give away.

    Raises:
        OutputError: the file is one of the inputs, exists and ``force`` is not set, is a folder, or its folder cannot
            be written to.
    """
    try:
        if is_one_of(path, inputs):
            raise OutputError(f"{path} is also another file of this command: choose another name")
        if os.path.isdir(path):
            raise OutputError(f"{path} is a folder, expected a file name")
        nearest = _nearest_folder(path)
        for name in path.absolute().relative_to(nearest).parts:
            with suppress(FileNotFoundError):   # another error where no file or folder could have the name
                nearest.joinpath(name).lstat()
        with suppress(FileNotFoundError):
            path.lstat()   # finds a dangling link too
            if not force:
                raise OutputError(f"{path} exists already: choose another name, or --force to replace it")
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None


def is_one_of(path: Path, others: Iterable[Path]) -> bool:
    """Whether a path leads to the same place as another, whatever links they go through; none need exist."""
    place, *places = (os.path.normcase(os.path.realpath(each)) for each in (path, *others))
    return place in places


def _nearest_folder(path: Path) -> Path:
    """The folder that a file will be in, or the first above it that is there."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def arrays_of(path: Path, *names: str, optional: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """The arrays of a ``.npz``: all, or those of these names, and of the optional ones those that it has.

    Raises:
        UNREADABLE: whatever numpy makes of a file that is none, a member that is no array, or a name that is missing.
    """
    import numpy as np

    with _numbers_alone():
        file = np.load(regular(path))
        if isinstance(file, np.ndarray):
            raise ValueError("it is a single array, expected a .npz")
        with file:
            asked = [name for name in file.files if not names or name in (*names, *optional)]
            _check_packing(file.zip, asked)
            found = {name: file[name] for name in asked}
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"it holds no array `{missing[0]}`")
    if strange := [name for name, value in found.items() if not isinstance(value, np.ndarray)]:
        raise ValueError(f"{strange[0]} is no array")
    return found


def array_of(path: Path) -> NDArray[Any]:
    """The array of a ``.npy``.

    Raises:
        UNREADABLE: whatever numpy makes of a file that is none.
    """
    import numpy as np

    with _numbers_alone():
        found = np.load(regular(path))
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError("it is a .npz, expected a single array")
    return found


def _check_packing(archive: zipfile.ZipFile, names: Iterable[str]) -> None:
    """``ValueError`` where these arrays unpack to a great deal more than they take in the archive."""
    members = [member for member in archive.infolist() if member.filename.removesuffix(".npy") in set(names)]
    packed, size = (sum(sizes) for sizes in ([member.compress_size for member in members],
                                             [member.file_size for member in members]))
    if size > max(LARGE, PACKED * packed):
        raise ValueError(f"its arrays take {shown_size(packed)} and unpack to {shown_size(size)}: save them with "
                         "`numpy.savez`")


@contextmanager
def _numbers_alone() -> Iterator[None]:
    """Python objects, and all that numpy takes for such, are refused without its advice how to load them."""
    try:
        yield
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError("it holds no arrays of numbers") from None
        raise


def check_room(path: Path, size: int) -> None:
    """``OutputError`` where the disk of an output has not so many bytes free."""
    free = shutil.disk_usage(_nearest_folder(path)).free
    if free < size:
        raise OutputError(f"{path} needs {shown_size(size)}, its disk has {shown_size(free)} free")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path`` that becomes ``path`` if the block succeeds and vanishes if it fails."""
    # 41 characters: two seeds, and less than the 255 bytes that a name may have, whatever the characters.
    temporary = path.with_name(f".{path.stem[:41]}.{secrets.token_hex(4)}{path.suffix}")
    made = [] if os.path.isdir(path.parent) else [folder for folder in path.parents if not os.path.exists(folder)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):   # where no file could be, none is left, and the reason has been told
            temporary.unlink()
        with suppress(OSError):   # folders for nothing; those in which the file is stay
            for folder in made:
                folder.rmdir()


def regular(path: str | os.PathLike[str]) -> Path:
    """The path, to be opened; ``OSError`` for a pipe or a device."""
    if (kind := why_no_file(path)) == PIPE:
        raise OSError(f"{kind}, expected a file")
    return Path(path)


def why_no_file(path: str | os.PathLike[str]) -> str | None:
    """What is at a path where no file is: ``missing``, ``a folder`` or :data:`PIPE`; ``None`` for a file."""
    if os.path.isfile(path):
        return None
    return "a folder" if os.path.isdir(path) else PIPE if os.path.exists(path) else "missing"


def remove(path: Path) -> None:
    """Deletes a file; ``OutputError`` if that cannot be done."""
    try:
        path.unlink()
    except OSError as error:
        raise OutputError(f"{path} cannot be removed: {error.strerror}") from None


def read_json(path: Path, error: type[SdeOnnxError]) -> dict[str, Any]:
    """Reads a file that holds one JSON object; raises ``error`` if it cannot be read or holds something else."""
    try:
        values = json.loads(regular(path).read_text(encoding="utf-8"))
    except UNREADABLE as cause:
        raise error(f"{path} cannot be read as JSON: {first_line(cause)}") from None
    if not isinstance(values, dict):
        raise error(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """``SDE_ONNX_CACHE``, or ``sde-onnx`` in the user's cache folder."""
    if chosen := os.environ.get("SDE_ONNX_CACHE"):
        return Path(chosen)
    of_user = Path(os.environ.get("XDG_CACHE_HOME", ""))   # which counts if it is absolute, by its specification
    return (of_user if of_user.is_absolute() else Path.home() / ".cache") / "sde-onnx"

"""What a command has made of its images, kept in a hidden folder until all are there: a stopped run goes on with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from sde_onnx.cli.options import notes
from sde_onnx.errors import OutputError, first_line
from sde_onnx.files import UNREADABLE, array_of, replacing

__all__ = ["UnfinishedRun"]

ALL = "all"   # a file that is there when all arrays are: from then on outputs are written


class UnfinishedRun:
    """The arrays that runs of the same settings have made, one array an image.

    They are in a folder whose name is a digest of the settings, so that runs of other settings have their own. A file
    holds the arrays of a batch, and its name is the number of the first.

    Args:
        place: the folder that the hidden one is in. Both may be missing.
        settings: everything that the arrays and the output depend on, as JSON values.
        shape: of all arrays together, ``(N, C, H, W)``.

    Raises:
        OutputError: a file is damaged, or something that is no folder has the name.
    """

    def __init__(self, place: Path, settings: Mapping[str, Any], shape: tuple[int, int, int, int]) -> None:
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        self._folder = place / f".unfinished-{digest[:12]}"
        self._shape = shape
        self._batches: list[NDArray[np.float32]] = []
        if os.path.lexists(self._folder) and (self._folder.is_symlink() or not self._folder.is_dir()):
            raise OutputError(f"{self._folder} is no folder: remove it")
        while os.path.exists(path := self._file()):   # False where no file could have the name: its output tells why
            self._batches.append(self._read(path))

    @property
    def began_to_write(self) -> bool:
        """Whether a run was stopped after all its arrays were there: then outputs of this name are its own."""
        return os.path.exists(self._folder / ALL)

    def complete(self, make: Callable[[slice], Iterator[NDArray[np.float32]]]) -> NDArray[np.float32]:
        """All arrays, ``[N, C, H, W]``. The output is written next, and then :meth:`remove` is called.

        Args:
            make: gives the arrays of some images, batch by batch. It is called for those that are missing.
        """
        if count := self._count():
            click.echo(f"{count} of {self._shape[0]} images were there already")
        if count < self._shape[0] or count == 0:   # of no images, too: that is an error of what makes them
            with notes():
                for batch in make(slice(count, None)):
                    with replacing(self._file()) as temporary, temporary.open("wb") as file:
                        np.save(file, batch)
                    self._batches.append(batch)
        with replacing(self._folder / ALL) as temporary:
            temporary.touch()
        return np.concatenate(self._batches)

    def remove(self) -> None:
        """Removes the folder: the output is there."""
        with suppress(OSError):   # another run of the same settings may be at it, too
            for path in sorted(self._folder.iterdir(), key=lambda path: path.name == ALL):   # which is the last to go
                path.unlink(missing_ok=True)
            self._folder.rmdir()

    def _count(self) -> int:
        return sum(map(len, self._batches))

    def _file(self) -> Path:
        return self._folder / f"{self._count():06d}.npy"

    def _read(self, path: Path) -> NDArray[np.float32]:
        try:
            batch: NDArray[np.float32] = array_of(path)
            if batch.dtype != np.float32 or batch.shape[1:] != self._shape[1:] or (
                    not 0 < len(batch) <= self._shape[0] - self._count()):
                raise ValueError(f"{batch.dtype} {list(batch.shape)}")
            if not np.isfinite(batch).all():
                raise ValueError("it holds NaN or infinity")
        except UNREADABLE as error:
            raise OutputError(f"{path} is damaged ({first_line(error)}): remove it") from None
        return batch

"""What a command has made of its images, kept in a hidden folder until all are there: a stopped run goes on with it."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from sde_onnx.cli.options import notes
from sde_onnx.errors import OutputError, first_line
from sde_onnx.files import UNREADABLE, read_json, regular, replacing

__all__ = ["Unfinished"]

SETTINGS = "settings.json"


class Unfinished:
    """Arrays in turn, one for each image: a file a batch, named by the place of its first.

    Two processes with the same settings write the same files.

    Args:
        folder: that is theirs alone; made with the first batch.
        settings: everything that the arrays depend on, as JSON values.
        shape: of all arrays together, ``(N, C, H, W)``.
        force: whether what is there is dropped.

    Raises:
        OutputError: the folder holds arrays of other settings or damaged ones, or no folder can have the name.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], shape: tuple[int, int, int, int], *, force: bool
    ) -> None:
        self._folder = folder
        self._shape = shape
        self._settings = json.loads(json.dumps(settings))
        self._batches: list[NDArray[np.float32]] = []
        try:
            folder.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror}") from None
        if force:
            self.remove()
        elif (folder / SETTINGS).exists():
            self._read()

    def _read(self) -> None:
        if read_json(self._folder / SETTINGS, OutputError) != self._settings:
            raise OutputError(f"{self._folder} was begun with other settings or inputs: choose another --output, or "
                              "--force to begin anew")
        while (path := self._folder / f"{self.finished:06d}.npy").exists():
            try:
                batch = np.load(regular(path))
                if batch.dtype != np.float32 or batch.shape[1:] != self._shape[1:] or not self._fits(len(batch)):
                    raise ValueError(f"{batch.dtype} {list(batch.shape)}")
            except UNREADABLE as error:
                raise OutputError(f"{path} is damaged ({first_line(error)}): remove it, or --force to begin anew"
                                  ) from None
            self._batches.append(batch)

    def _fits(self, count: int) -> bool:
        return 0 < count <= self._shape[0] - self.finished

    @property
    def finished(self) -> int:
        """How many arrays there are."""
        return sum(map(len, self._batches))

    def complete(self, make: Callable[[slice], Iterator[NDArray[np.float32]]]) -> NDArray[np.float32]:
        """All arrays, ``[N, C, H, W]``.

        Args:
            make: those of some images, batch by batch: called for the ones that are not there yet.
        """
        if self.finished:
            click.echo(f"{self.finished} of {self._shape[0]} images were there already")
        if self.finished < self._shape[0] or not self._batches:   # makers refuse to make none
            with notes():
                for batch in make(slice(self.finished, None)):
                    self._add(batch)
        return np.concatenate(self._batches)

    def _add(self, batch: NDArray[np.float32]) -> None:
        if not self._batches:
            with replacing(self._folder / SETTINGS) as temporary:
                temporary.write_text(json.dumps(self._settings), encoding="utf-8")
        with replacing(self._folder / f"{self.finished:06d}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, batch)
        self._batches.append(batch)

    def remove(self) -> None:
        """Leaves nothing: the output is there. All at once, so that whoever is stopped here leaves no half of it."""
        scrap = self._folder.with_name(f"{self._folder.name}.{secrets.token_hex(4)}")
        with suppress(OSError):
            self._folder.rename(scrap)
            shutil.rmtree(scrap)

"""A folder of samples: written image by image, resumed where it stopped, and of one setting alone.

``run.json`` says how the images were made and is there before the first of them. Every file is written whole or not at
all, so what is there is finished: a run that was killed goes on with the batches that are not. Batches are cut from the
same seeds in the same way each time, so that a resumed run gives bit for bit what an undisturbed one gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_onnx import images as pictures
from sde_onnx.errors import OutputError
from sde_onnx.files import check_writable, read_json, replacing

__all__ = ["FolderRun"]

SETTINGS = "run.json"
OURS = re.compile(r"\d{6,20}\.png|\d{6,20}-\d{6,20}\.npz|run\.json|grid\.png")
UNFINISHED = re.compile(r"\.(\d{6,20}(-\d{6,20})?|run|grid)\.[0-9a-f]{8}\.(png|npz|json)")   # by files.replacing


class FolderRun:
    """The images of one run.

    Args:
        folder: where they are, or will be.
        shards: one ``.npz`` a batch, float32 with its seeds, instead of one PNG a seed.
        force: whether the images of another run in the folder may be replaced.
    """

    def __init__(self, folder: Path, *, shards: bool, force: bool) -> None:
        self.folder = folder
        self.shards = shards
        self.force = force
        check_writable(folder / SETTINGS, force=True)

    @property
    def batch_size(self) -> int | None:
        """Images at a time of the run that is in the folder; ``None`` if there is none, or it is to be replaced."""
        path = self.folder / SETTINGS
        if self.force or not path.exists():
            return None
        size = read_json(path, OutputError).get("batch_size")
        return size if type(size) is int and size > 0 else None

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder one of this run, new or resumed.

        Args:
            settings: everything that an image depends on, as JSON values.

        Raises:
            OutputError: the folder holds images of other settings, or of unknown ones.
        """
        settings = json.loads(json.dumps({**settings, "files": "npz" if self.shards else "png"}))
        path = self.folder / SETTINGS
        if self.force:
            for file in list(self.folder.iterdir()) if self.folder.is_dir() else []:
                if OURS.fullmatch(file.name):
                    file.unlink()
        if path.exists():
            self._compare(settings, path)
            for file in list(self.folder.iterdir()):
                if UNFINISHED.fullmatch(file.name):
                    file.unlink()
            return
        if found := [file.name for file in self.folder.glob("*") if OURS.fullmatch(file.name)]:
            raise OutputError(
                f"{self.folder} holds {found[0]} of a run that left no {SETTINGS}: choose another folder, or --force "
                "to replace its images"
            )
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def has(self, seeds: Sequence[int]) -> bool:
        """Whether every image of a batch is there."""
        return all(path.exists() for path in self._paths(seeds))

    def write(self, seeds: Sequence[int], images: NDArray[np.float32]) -> None:
        """Writes a batch: the images of it that are not there yet."""
        if self.shards:
            [path] = self._paths(seeds)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, images=images, seeds=np.array(seeds, np.uint64))
            return
        for path, picture in zip(self._paths(seeds), pictures.to_uint8(images), strict=True):
            if not path.exists():
                pictures.save_png(path, picture)

    def read(self, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """The images of a batch, ``[N, H, W, C]``."""
        if self.shards:
            [path] = self._paths(seeds)
            with np.load(path) as shard:
                return pictures.to_uint8(shard["images"])
        return np.stack([pictures.load_png(path) for path in self._paths(seeds)])

    def _paths(self, seeds: Sequence[int]) -> list[Path]:
        if self.shards:
            return [self.folder / f"{seeds[0]:06d}-{seeds[-1]:06d}.npz"]
        return [self.folder / f"{seed:06d}.png" for seed in seeds]

    def _compare(self, settings: Mapping[str, Any], path: Path) -> None:
        found = read_json(path, OutputError)
        for name in sorted({*settings, *found}):
            if found.get(name) != settings.get(name):
                raise OutputError(
                    f"{self.folder} holds images of another run: its {name} is {found.get(name)!r}, here it is "
                    f"{settings.get(name)!r}. Choose another folder, or --force to replace its images"
                )

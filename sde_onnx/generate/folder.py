"""A folder of samples: written batch by batch, resumed where it stopped, all of them sampled in one way.

``run.json`` says what the images depend on: the model, its precision, the resolved request. It is there before the
first of them, and binds nobody while there is none. Every file is written whole or not at all, so what is there is
finished, and a run goes on with the seeds that are not. Which seeds were asked for, and how many at a time, does not
matter, unless images depend on their batch: then both must be what they were. Several processes may write into one
folder at once, and share the work.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sde_onnx import images as pictures
from sde_onnx.errors import InputError, OutputError, first_line
from sde_onnx.files import UNREADABLE, arrays_of, check_writable, read_json, remove, replacing
from sde_onnx.generate.claims import Claims
from sde_onnx.generate.seeds import format_seeds, parse_seeds

if TYPE_CHECKING:
    from sde_onnx.generate.sample import Batch

__all__ = ["RECORD", "FolderRun"]

RECORD, FORMAT, LOCK = "run.json", 2, ".run.lock"
PICTURE, SHARD = re.compile(r"(\d{6,20})\.png"), re.compile(r"\d{6,20}-\d{6,20}\.npz")
OURS = re.compile(rf"{PICTURE.pattern}|{SHARD.pattern}|run\.json")
UNFINISHED = re.compile(r"\.(\d{6,20}(-\d{6,20})?|run)\.[0-9a-f]{8}\.(png|npz|json)")   # by files.replacing
SUBFOLDER, A_SUBFOLDER = re.compile(r"\d{6,20}"), 1000   # seeds
INSTEAD = "choose another folder, or --force to replace its images"


class FolderRun:
    """The images of one way to sample.

    Args:
        folder: where they are, or will be.
        shards: one ``.npz`` a batch, float32 with its seeds, instead of one PNG a seed.
        subdirs: PNGs in subfolders of a thousand seeds, as EDM has them: ``012000/012345.png``.
        force: whether the images of another run in the folder may be replaced.

    Raises:
        OutputError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, *, shards: bool, force: bool, subdirs: bool = False) -> None:
        self.folder = folder
        self.shards = shards
        self.subdirs = subdirs
        self.force = force
        self._files: dict[int, Path] = {}   # that hold the image of each seed
        self._claims = Claims(folder / LOCK)
        check_writable(folder / RECORD, force=True)

    @property
    def batch_size(self) -> int | None:
        """Images at a time of the run that is in the folder; ``None`` if there is none, or it is to be replaced.

        Batches that are cut as before are bit for bit what they would have been.
        """
        path = self.folder / RECORD
        if self.force or not os.path.exists(path):
            return None
        size = read_json(path, OutputError).get("batch_size")
        return size if type(size) is int and size > 0 else None

    @contextmanager
    def begun(
        self, settings: Mapping[str, Any], *, seeds: Sequence[int], batch_size: int, depends_on_batch: bool,
        is_shard: bool = False,
    ) -> Iterator[None]:
        """Makes the folder one of these settings, new or resumed, for as long as the block samples into it.

        Args:
            settings: everything that an image depends on, as JSON values.
            seeds: of this call; those of calls before are kept with them.
            batch_size: images at a time.
            depends_on_batch: whether an image depends on those beside it: then seeds and batch size must stay as well.
            is_shard: whether this process makes a part of the batches: then others' must be of the same size.

        Raises:
            OutputError: the folder holds images of other settings, or of unknown ones; or another process is writing
                into it, and its images are to be replaced.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be made: {error.strerror}") from None
        is_finished = False

        def clean() -> None:   # of what a process left that was killed while others were at work
            if is_finished and not is_shard:   # no lock may tell of shards on other machines
                self._remove_unfinished()

        with self._claims.at_work(last=clean):
            with self._claims.record():
                self._begin(settings, seeds, batch_size, depends_on_batch, is_shard)
            yield
            is_finished = True

    def _begin(
        self, settings: Mapping[str, Any], seeds: Sequence[int], batch_size: int, depends_on_batch: bool,
        is_shard: bool,
    ) -> None:
        files = "npz" if self.shards else "png in subfolders" if self.subdirs else "png"
        settings = json.loads(json.dumps({**settings, "files": files}))
        if self.force:
            if self._claims.others():
                raise OutputError(f"another process is writing into {self.folder}: wait for it, or stop it")
            replaced = [*self._listed(OURS), *self._listed(UNFINISHED)]
            for file in replaced:   # before the first of them is gone
                if file.is_dir() and not file.is_symlink():
                    raise OutputError(f"{file} is a folder: remove it")
            for file in replaced:
                remove(file)
            self.force = False   # they are replaced
        path, asked = self.folder / RECORD, set(seeds)
        images = [file for file in self._listed(OURS) if file.name != RECORD]
        found = read_json(path, OutputError) if path.exists() else {}
        if path.exists() and not ("sde_onnx" in found or {"format", "settings"} <= found.keys()):   # of format 1, or 2
            raise OutputError(f"{path} is not of sde-onnx: {INSTEAD}")
        if path.exists() and not images and not is_shard and self._claims.alone():   # it ended before its first image
            self._remove_unfinished()
        elif path.exists():
            self._compare(found, settings)
            if depends_on_batch:
                self._compare_value("seeds", found.get("seeds"), format_seeds(seeds))
                self._compare_value("batch_size", found.get("batch_size"), batch_size)
            if is_shard and found.get("batch_size") != batch_size:
                raise OutputError(f"the other shards of {self.folder} make {found.get('batch_size')} images at a time, "
                                  f"this one {batch_size}: all need the same --batch-size, and to be as many")
            try:
                asked |= set(parse_seeds(str(found.get("seeds")), most=None))
            except InputError as error:
                raise OutputError(f"{path} is damaged ({error}): {INSTEAD}") from None
            if self._claims.alone() and not is_shard:
                self._remove_unfinished()
        elif images:
            raise OutputError(f"{self.folder} holds {images[0].name} of a run that left no {RECORD}: {INSTEAD}")
        listed = format_seeds(seeds if depends_on_batch else sorted(asked))
        record = {"format": FORMAT, "settings": settings, "batch_size": batch_size, "seeds": listed}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        self._find_files()

    def _remove_unfinished(self) -> None:
        """What killed processes have left half: for whoever is alone here. What cannot be removed harms nobody."""
        for file in self._listed(UNFINISHED):
            with suppress(OutputError):
                remove(file)

    def turns(self, batches: Iterable[Batch], *, in_order: bool = False) -> Iterator[tuple[Batch, bool]]:
        """Gives each batch, and whether all of its images are there; if not, they are this process's to make.

        Batches that another process is at work on come last, when it has finished with them, or died.

        Args:
            batches: of these seeds.
            in_order: wait where another process is at work.
        """
        later = []
        for batch in batches:
            if self.has(batch.seeds):
                yield batch, True
            elif self._claims.claim(batch.seeds, wait=in_order):
                yield from self._turn(batch)
            else:
                later.append(batch)
        for batch in later:
            self._claims.claim(batch.seeds, wait=True)
            yield from self._turn(batch)

    def _turn(self, batch: Batch) -> Iterator[tuple[Batch, bool]]:
        """A batch that is claimed."""
        try:
            yield batch, self.has(batch.seeds)
        finally:
            self._claims.release(batch.seeds)

    def has(self, seeds: Sequence[int]) -> bool:
        """Whether every image of a batch is there, by whichever process."""
        if not all(seed in self._files for seed in seeds):
            if self.shards:
                self._find_files()
            else:
                paths = {seed: self._picture(seed) for seed in seeds}
                self._files |= {seed: path for seed, path in paths.items() if _has_picture(path)}
        return all(seed in self._files for seed in seeds)

    def write(self, seeds: Sequence[int], images: NDArray[np.float32]) -> int:
        """Writes those images of a batch, ``[N, C, H, W]``, that are not there yet; how many."""
        missing = [place for place, seed in enumerate(seeds) if seed not in self._files]
        new = [seeds[place] for place in missing]
        if self.shards and new:
            path = self.folder / f"{new[0]:06d}-{new[-1]:06d}.npz"
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, images=images[missing], seeds=np.array(new, np.uint64))
            self._files |= dict.fromkeys(new, path)
            return len(new)
        for seed, picture in zip(new, pictures.to_uint8(images[missing]), strict=True):
            path = self._picture(seed)
            pictures.save_png(path, picture)
            self._files[seed] = path
        return len(new)

    def read(self, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """The images of a batch, ``[N, H, W, C]``."""
        if not self.shards:
            return np.stack([pictures.load_png(self._files[seed]) for seed in seeds])
        found: dict[int, NDArray[np.float32]] = {}
        for path in {self._files[seed] for seed in seeds}:
            try:
                shard = arrays_of(path, "seeds", "images")
                found |= dict(zip(shard["seeds"].tolist(), shard["images"], strict=True))
            except UNREADABLE as error:
                raise OutputError(f"{path} cannot be read any more ({first_line(error)}): remove it") from None
        return pictures.to_uint8(np.stack([found[seed] for seed in seeds]))

    def _listed(self, names: re.Pattern[str]) -> list[Path]:
        if not self.folder.is_dir():
            return []
        files = sorted(self.folder.iterdir())
        inner = [file for path in files if SUBFOLDER.fullmatch(path.name) and path.is_dir()
                 for file in sorted(path.iterdir()) if _subfolder_of(file) == path.name]
        return [file for file in (*files, *inner) if names.fullmatch(file.name)]

    def _picture(self, seed: int) -> Path:
        path = self.folder / f"{seed:06d}.png"
        return path.parent / str(_subfolder_of(path)) / path.name if self.subdirs else path

    def _find_files(self) -> None:
        if not self.shards:
            self._files = {int(path.stem): path for path in self._listed(PICTURE) if _has_picture(path)}
            return
        known = set(self._files.values())
        for path in self._listed(SHARD):
            if path in known:
                continue
            try:
                self._files |= dict.fromkeys(arrays_of(path, "seeds")["seeds"].tolist(), path)
            except UNREADABLE as error:
                raise OutputError(f"{path} cannot be read as images and seeds ({first_line(error)}): remove it"
                                  ) from None

    def _compare(self, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        if (number := found.get("format", 1)) != FORMAT:
            raise OutputError(f"{self.folder} holds a run of {RECORD} format {number}, this sde-onnx resumes format "
                              f"{FORMAT}: {INSTEAD}")
        before = found.get("settings")
        before = before if isinstance(before, dict) else {}
        for name in (*settings, *(set(before) - set(settings))):   # the solver before what follows from it
            self._compare_value(name, before.get(name), settings.get(name))

    def _compare_value(self, name: str, before: object, now: object) -> None:
        if before != now:
            raise OutputError(f"{self.folder} holds images of another run: its {name} is {before!r}, here it is "
                              f"{now!r}. {INSTEAD[0].upper()}{INSTEAD[1:]}")


def _has_picture(path: Path) -> bool:
    """Whether a picture is there. An empty file, which a machine that loses its power may leave, is none."""
    try:
        found = path.stat()
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode):
        raise OutputError(f"{path} is no file: remove it")
    return found.st_size > 0


def _subfolder_of(file: Path) -> str | None:
    """The subfolder that a picture belongs into, finished or not, where there are any; ``None`` of other files."""
    found = re.match(r"\.?(\d{6,20})\.", file.name)
    return None if found is None else f"{int(found[1]) // A_SUBFOLDER * A_SUBFOLDER:06d}"

"""What commands write: decided and checked before sampling."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from sde_onnx import images as pictures
from sde_onnx.errors import InputError, OutputError, one_line
from sde_onnx.files import check_room, check_writable, is_one_of, replacing
from sde_onnx.generate.folder import RECORD, FolderRun
from sde_onnx.generate.shards import Shard
from sde_onnx.solvers.plan import Step

if TYPE_CHECKING:
    from sde_onnx.generate.sample import Batch

__all__ = ["RestoredPicture", "SampleOutput", "check_names", "picture_paths", "plan_outputs"]

GIF_FRAMES = 40
CONTROLS = re.compile(r"[\0-\x1f\x7f]")   # which would move a terminal's cursor


class HeldRun:
    """Images that are held until all are there, for single files: what :class:`FolderRun` is for a folder."""

    batch_size: int | None = None
    folder: Path | None = None

    def __init__(self) -> None:
        self._images: list[NDArray[np.float32]] = []

    def begun(
        self, settings: Mapping[str, Any], *, seeds: Sequence[int], batch_size: int, depends_on_batch: bool,
        is_shard: bool = False
    ) -> AbstractContextManager[None]:
        """Every run is a new one."""
        return nullcontext()

    def has(self, seeds: Sequence[int]) -> bool:
        """No image is there before it is made."""
        return False

    def turns(self, batches: Iterable[Batch], *, in_order: bool = False) -> Iterator[tuple[Batch, bool]]:
        """Each batch, none of which is there already."""
        return ((batch, False) for batch in batches)

    def write(self, seeds: Sequence[int], images: NDArray[np.float32]) -> int:
        """Takes the images of a batch, ``[N, C, H, W]``; how many."""
        self._images.append(images)
        return len(seeds)

    def images(self) -> NDArray[np.float32]:
        """All of them, ``[N, C, H, W]``."""
        return np.concatenate(self._images)

    def read(self, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Those of the seeds, which are all, as pictures ``[N, H, W, C]``."""
        pixels: NDArray[np.uint8] = pictures.to_uint8(self.images())
        return pixels


@dataclass
class SampleOutput:
    """Takes steps and batches while sampling. A folder is written as they come, single files at the end."""

    seeds: list[int]
    zoom: int
    uint8: bool                    # what the .npz holds
    gif: Path | None
    run: FolderRun | HeldRun = field(default_factory=HeldRun)
    npz: Path | None = None
    sheet: Path | None = None      # the grid
    is_shard: bool = False         # whether others make the rest: then all of them must cut batches alike
    frames: list[list[Any]] = field(default_factory=list)   # of each batch, the steps that the animation shows

    @property
    def batch_size(self) -> int | None:
        """That of the run that the folder holds: batches that are cut as before are bit for bit the same."""
        return self.run.batch_size

    def check_room(self, image_shape: tuple[int, ...]) -> None:
        """``OutputError`` where the disk has no room for a ``.npz``, which is written when all is done."""
        if self.npz:
            check_room(self.npz, len(self.seeds) * math.prod(image_shape) * (1 if self.uint8 else 4))

    @contextmanager
    def begun(self, settings: Mapping[str, Any], *, batch_size: int, depends_on_batch: bool) -> Iterator[None]:
        """Makes a folder one of these settings, new or resumed: see :meth:`FolderRun.begun`.

        Raises:
            OutputError: as there; or images are there, and an animation needs the steps of all.
        """
        with self.run.begun(settings, seeds=self.seeds, batch_size=batch_size, depends_on_batch=depends_on_batch,
                            is_shard=self.is_shard):
            self._check_animation(self.gif is not None and any(self.run.has([seed]) for seed in self.seeds))
            yield

    def turns(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
        """Each batch, and whether its images are there already, by another process: see :meth:`FolderRun.turns`.

        Raises:
            OutputError: they are, and an animation needs the steps of all.
        """
        for batch, is_there in self.run.turns(batches, in_order=self.gif is not None):
            self._check_animation(is_there)
            yield batch, is_there

    def _check_animation(self, is_there: bool) -> None:
        if is_there and self.gif:
            raise OutputError(f"{self.run.folder} has images already, and an animation needs the steps of all of them")

    def see(self, step: Step, steps: int) -> None:
        """Keeps the step if the animation shows it: some 40 of the ``steps``, or all if their number is not known."""
        if step.index == 0:
            self.frames.append([])
        if self.gif and (not steps or (step.index + 1) * GIF_FRAMES // steps > step.index * GIF_FRAMES // steps):
            self.frames[-1].append(pictures.to_uint8(step.x_mean))

    def finish(self, seeds: list[int], step: Step) -> int:
        """Takes the last step of a batch; how many of its images were not there yet."""
        return self.run.write(seeds, np.clip(step.x_mean, 0, 1))

    def write(self) -> list[Path]:
        """Writes what is left and returns what to name on standard output."""
        written = []
        if self.npz and isinstance(self.run, HeldRun):
            arrays = {"arr_0": self.run.read(self.seeds)} if self.uint8 else {
                "images": self.run.images(), "seeds": np.array(self.seeds, np.uint64)}
            with replacing(self.npz) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
            written.append(self.npz)
        if self.run.folder:
            written.append(self.run.folder)
        if self.sheet:
            pictures.save_png(self.sheet, pictures.grid(self.run.read(self.seeds), zoom=self.zoom))
            written.append(self.sheet)
        if self.gif:
            # A batch that took fewer steps than another rests on its last.
            count = max(map(len, self.frames))
            frames = [np.concatenate([batch[min(index, len(batch) - 1)] for batch in self.frames])
                      for index in range(count)]
            pictures.save_gif(self.gif, [pictures.grid(frame, zoom=self.zoom) for frame in frames])
            written.append(self.gif)
        return written


def plan_outputs(
    output: Path, seeds: list[int], *, model: Path, shards: bool, subdirs: bool, uint8: bool, grid: bool,
    gif: Path | None, zoom: int, shard: Shard, force: bool
) -> SampleOutput:
    """Decides what ``--output`` and the options beside it ask for; no file that is written may be the model.

    Raises:
        click.UsageError: options that do not go together, or an unknown kind of file.
        OutputError: a file exists already or cannot be written.
    """
    plan = SampleOutput(seeds, zoom, uint8=uint8, gif=gif)
    kind, is_folder = output.suffix.lower(), os.path.isdir(output)
    if zoom > 1 and not (gif or grid or (kind == ".png" and not is_folder)):
        raise click.UsageError("--zoom goes with a .png, --grid or --gif: images themselves stay as they are")
    if gif and gif.suffix.lower() != ".gif":
        raise click.UsageError(f"--gif {gif}: expected a .gif")
    if uint8 and (kind != ".npz" or is_folder):
        raise click.UsageError("--uint8 goes with a .npz")
    if shard.count > 1 and (grid or gif or (kind and not is_folder)):
        by = f" ({', '.join(shard.variables)})" if shard.variables else ""
        how = "--grid and --gif show all: run with --shard 0/1 when all shards have ended" if grid or gif else (
            f"all parts go into one folder, and {output} is none: -o FOLDER, or --shard 0/1 for all images")
        raise click.UsageError(f"shard {shard}{by} is a part of the images; {how}")
    if not kind or is_folder:
        plan.is_shard = shard.count > 1
        if force and plan.is_shard:
            raise click.UsageError("--force would replace what other shards have made: remove the folder first")
        if shards and subdirs:
            raise click.UsageError("--subdirs is for PNGs, not for --shards")
        plan.run = FolderRun(output, shards=shards, subdirs=subdirs, force=force)
        if grid:   # beside the folder: whoever reads its pictures takes all of them for samples
            folder = output.resolve() if output.name == ".." else output.absolute()
            if not folder.name:
                raise click.UsageError(f"--grid goes beside the folder, and nothing is beside {output}")
            plan.sheet = folder.with_name(f"{folder.name}.png")
            has_run = (output / RECORD).exists()   # its grid is made anew of what is in the folder
            check_writable(plan.sheet, force=force or has_run, inputs=[model])
        if gif:
            check_writable(gif, force=force, inputs=[model])
        return plan
    if shards or subdirs:
        raise click.UsageError(f"--{'shards' if shards else 'subdirs'} goes with a folder")
    if kind == ".png":
        plan.sheet = output
    elif kind == ".npz":
        if grid:
            raise click.UsageError("--grid goes with a folder or a .png, not with a .npz")
        plan.npz = output
    else:
        raise click.UsageError(f"--output {output}: expected a .png, a .npz or a folder, got {kind}")
    for path in (plan.npz, plan.sheet, plan.gif):
        if path:
            check_writable(path, force=force, inputs=[model])
    return plan


class RestoredPicture:
    """The restorations of one picture: a folder NAME of them, resumed where it stopped, and a panel NAME.png.

    Args:
        panel: the PNG, one of :func:`picture_paths`; the folder stands beside it.
        zoom: enlarges the pixels of the panel.
        force: whether the images of another run may be replaced.

    Raises:
        OutputError: the folder cannot be written to, or the panel is a file that no run of this command has left.
    """

    def __init__(self, panel: Path, *, zoom: int, force: bool) -> None:
        has_run = panel.with_suffix("").joinpath(RECORD).exists()   # its panel is made anew of what is in the folder
        check_writable(panel, force=force or has_run)
        self._panel = panel
        self._run = FolderRun(panel.with_suffix(""), shards=False, force=force)
        self._zoom = zoom

    def begun(
        self, settings: Mapping[str, Any], seeds: Sequence[int], batch_size: int, *, depends_on_batch: bool
    ) -> AbstractContextManager[None]:
        """See :meth:`FolderRun.begun`."""
        return self._run.begun(settings, seeds=seeds, batch_size=batch_size, depends_on_batch=depends_on_batch)

    def turns(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
        """See :meth:`FolderRun.turns`."""
        return self._run.turns(batches)

    def write(self, seeds: Sequence[int], images: NDArray[np.float32]) -> int:
        """Writes those of the restorations ``[N, C, H, W]`` that are not there yet; how many."""
        return self._run.write(seeds, images)

    def panel(
        self, seeds: Sequence[int], measurement: NDArray[np.uint8 | np.float32],
        clean: NDArray[np.uint8 | np.float32] | None,
    ) -> str:
        """Writes the panel and returns what to say of it; measurement and clean image are ``[C, H, W]``."""
        samples = self._run.read(seeds)
        sheet, white = pictures.panel(_pixels(measurement), samples, clean=None if clean is None else _pixels(clean))
        pictures.save_png(self._panel, pictures.grid(sheet, zoom=self._zoom, columns=len(sheet)))
        count = f"{len(seeds)} sample{'s' * (len(seeds) > 1)}"
        said = f"{self._panel}: measurement, {count}, mean, standard deviation (white is {white:.3f})"
        if clean is None:
            return said
        decibels = pictures.psnr(samples / 255, _pixels(clean) / 255).mean()
        return f"{said}, clean; a sample has {decibels:.1f} dB"


def _pixels(image: NDArray[np.uint8 | np.float32]) -> NDArray[np.uint8]:
    """An image ``[C, H, W]`` as a picture ``[H, W, C]``."""
    if image.dtype == np.uint8:
        return image.transpose(1, 2, 0).astype(np.uint8)
    pixels: NDArray[np.uint8] = pictures.to_uint8(image[None].astype(np.float32))[0]
    return pixels


def check_names(names: Sequence[str]) -> None:
    """``InputError`` where names of pictures are no names for files, or two are the same."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"two pictures are named {name}: rename one")
        if not _names_a_file(name):
            raise InputError(f"{one_line(name)} is no name for a file")
        seen.add(name)


def _names_a_file(name: object) -> bool:
    if not isinstance(name, str) or name == "" or Path(name).name != name or CONTROLS.search(name):
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:   # half of a surrogate pair
        return False
    return True


def picture_paths(folder: Path, names: Sequence[str], *, force: bool, inputs: Sequence[Path]) -> list[Path]:
    """A PNG in a folder for each name, none of which may be an input.

    Args:
        folder: may be missing.
        names: of the pictures, without suffix.
        force: whether existing files may be replaced.
        inputs: files that are read, and folders all of whose pictures are.

    Raises:
        InputError: a name twice, or one that leads out of the folder.
        OutputError: a file exists already, is an input, or cannot be written; or the folder is an input, whose next
            reading would find the outputs.
    """
    check_names(names)
    if os.path.isdir(folder) and is_one_of(folder, inputs):
        raise OutputError(f"{folder} is where pictures are read from: choose another folder")
    for name in names:
        check_writable(folder / f"{name}.png", force=force, inputs=inputs)
    return [folder / f"{name}.png" for name in names]

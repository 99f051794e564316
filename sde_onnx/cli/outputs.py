"""What ``sde-onnx sample`` writes: decided and checked before sampling, written whole after it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from sde_onnx import images as pictures
from sde_onnx.files import check_writable, replacing
from sde_onnx.samplers import Step

__all__ = ["SampleOutput", "plan_outputs"]

GIF_FRAMES = 40


@dataclass
class SampleOutput:
    """Gathers images and frames while sampling, then writes them."""

    seeds: list[int]
    zoom: int
    npz: Path | None
    pngs: list[Path]               # one for each seed, or none
    sheet: Path | None             # the grid
    gif: Path | None
    images: list[NDArray[np.float32]] = field(default_factory=list)
    frames: dict[int, list[NDArray[np.uint8]]] = field(default_factory=dict)   # by the step's index

    def see(self, step: Step, steps: int) -> None:
        """Keeps the step if the animation shows it."""
        if self.gif and (step.index + 1) * GIF_FRAMES // steps > step.index * GIF_FRAMES // steps:
            self.frames.setdefault(step.index, []).append(pictures.to_uint8(step.x_mean))

    def finish(self, step: Step) -> None:
        """Takes the last step of a batch."""
        self.images.append(np.clip(step.x_mean, 0, 1))

    def write(self) -> list[Path]:
        """Writes everything and returns what to name on standard output."""
        images = np.concatenate(self.images)
        pixels = pictures.to_uint8(images)
        written = []
        if self.npz:
            with replacing(self.npz) as temporary, temporary.open("wb") as file:
                np.savez(file, images=images, seeds=np.array(self.seeds, np.uint64))
            written.append(self.npz)
        for path, picture in zip(self.pngs, pixels, strict=bool(self.pngs)):
            pictures.save_png(path, picture)
        if self.pngs:
            written.append(self.pngs[0].parent)
        if self.sheet:
            pictures.save_png(self.sheet, pictures.grid(pixels, zoom=self.zoom))
            written.append(self.sheet)
        if self.gif:
            frames = [pictures.grid(np.concatenate(parts), zoom=self.zoom) for parts in self.frames.values()]
            pictures.save_gif(self.gif, frames)
            written.append(self.gif)
        return written


def plan_outputs(
    output: Path, seeds: list[int], *, grid: bool, gif: Path | None, zoom: int, force: bool
) -> SampleOutput:
    """Decides what ``--output``, ``--grid`` and ``--gif`` ask for.

    Raises:
        click.UsageError: options that do not go together, or an unknown kind of file.
        OutputError: a file exists already or cannot be written.
    """
    plan = SampleOutput(seeds, zoom, npz=None, pngs=[], sheet=None, gif=gif)
    kind, is_folder = output.suffix.lower(), os.path.isdir(output)
    if kind == ".png" and not is_folder:
        plan.sheet = output
    elif kind == ".npz" and not is_folder:
        if grid:
            raise click.UsageError("--grid goes with a folder or a .png, not with a .npz")
        plan.npz = output
    elif not kind or is_folder:
        plan.pngs = [output / f"{seed:06d}.png" for seed in seeds]
        plan.sheet = output / "grid.png" if grid else None
    else:
        raise click.UsageError(f"--output {output}: expected a .png, a .npz or a folder, got {kind}")
    if gif and gif.suffix.lower() != ".gif":
        raise click.UsageError(f"--gif {gif}: expected a .gif")
    for path in [plan.npz, *plan.pngs, plan.sheet, plan.gif]:
        if path:
            check_writable(path, force=force)
    return plan

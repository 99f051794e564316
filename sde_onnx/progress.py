"""How far images are: a bar on a terminal, and lines in the log of a job."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sde_onnx.errors import InputError, first_line

try:
    from tqdm import tqdm
except ValueError as error:   # it reads its variables when it is imported
    raise InputError(f"an environment variable TQDM_* has a value that tqdm refuses: {first_line(error)}") from None

if TYPE_CHECKING:
    from sde_onnx.solvers.plan import Step

__all__ = ["QUIET", "ImagesBar", "tqdm"]

SECONDS = 30.0   # between two lines
BAR = "{percentage:3.0f}%|{bar}| {n:.1f} of {total} images [{elapsed}<{remaining}, {pace}]"
LINE = "{n:.0f} of {total} images, {pace}, {remaining} left"
QUIET: ContextVar[bool] = ContextVar("quiet", default=False)   # of a command: whether progress and notes are kept back


class ImagesBar(tqdm):   # type: ignore[misc]  # tqdm has no types
    """Counts images, and parts of images, on standard error.

    Args:
        total: images.
        show: if not, nothing is written.
    """

    def __init__(self, total: int, *, show: bool = True) -> None:
        shows = show and not QUIET.get() and sys.stderr is not None   # which a program without a console has not
        if shows and sys.stderr.isatty():
            how: dict[str, Any] = {"bar_format": BAR}
        else:
            how = {"bar_format": LINE, "file": _Lines(), "mininterval": SECONDS, "maxinterval": SECONDS, "miniters": 0,
                   "delay": SECONDS}
        super().__init__(total=total, smoothing=0, disable=not shows, **how)

    def skip(self, images: int) -> None:
        """Counts images that were there already, and say nothing of the pace."""
        if not self.disable:   # where nothing is shown there is nothing to count with
            self.initial += images
            self.update(images)

    def over(self, steps: Iterable[Step], images: int, count: int) -> Iterator[Step]:
        """Gives the steps of a batch of images and counts the images by them.

        Args:
            steps: of the batch.
            images: of the batch.
            count: steps that there are; 0 where that is not known: then images count when they are finished.
        """
        for step in steps:
            yield step
            self.update(images / count if count else 0)
        if not count:
            self.update(images)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What a line may show; ``pace`` beside what tqdm has."""
        values: dict[str, Any] = super().format_dict
        made, seconds = values["n"] - values["initial"], values["elapsed"]
        if made <= 0 or seconds <= 0:
            pace = "? images/s"
        else:
            pace = f"{made / seconds:.3g} images/s" if made >= seconds else f"{seconds / made:.3g} s an image"
        return values | {"pace": pace}


class _Lines:
    """A stream whose every text is a line of standard error."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(f"{text.strip()}\n")

    def flush(self) -> None:
        sys.stderr.flush()

"""Arrays to pictures: 8-bit values, grids, PNG files, animations."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sde_onnx.errors import InputError, OutputError, first_line
from sde_onnx.files import UNREADABLE, regular, replacing

__all__ = ["NO_PICTURE", "grid", "load_png", "open_picture", "panel", "picture_suffixes", "psnr", "save_gif",
           "save_png", "to_pil", "to_uint8"]

UInt8Array = NDArray[np.uint8]
NO_PICTURE = (*UNREADABLE, Image.DecompressionBombError)   # what Pillow raises on what it cannot read
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
PROGRAMS = ("EPS", "IPTC")   # PostScript, which Pillow has Ghostscript run, and what may hold it


def to_uint8(images: NDArray[np.float32]) -> UInt8Array:
    """Images in [0, 1], clipped and rounded to 8 bits: ``[N, C, H, W]`` to ``[N, H, W, C]``."""
    return (np.clip(images, 0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def to_pil(image: UInt8Array) -> Image.Image:
    """One ``[H, W, C]`` picture of 1 to 4 channels (gray, gray and alpha, RGB, RGBA) as a PIL image."""
    channels = image.shape[2]
    return Image.fromarray(image[:, :, 0] if channels == 1 else image, MODES[channels])


def grid(images: UInt8Array, *, zoom: int = 1, columns: int | None = None) -> UInt8Array:
    """Puts pictures side by side, row by row.

    Args:
        images: ``[N, H, W, C]``.
        zoom: each pixel becomes a square of this many.
        columns: pictures a row; about as many as rows if not given.

    Returns:
        One picture ``[H', W', C]``; places left over in the last row are black.
    """
    if zoom < 1:
        raise InputError(f"zoom is {zoom}, expected at least 1")
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:count] = images
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    return sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)


def panel(measurement: UInt8Array, samples: UInt8Array, *, clean: UInt8Array | None = None) -> tuple[UInt8Array, float]:
    """What a restoration shows, side by side: measurement, samples, their mean and their standard deviation.

    Args:
        measurement: ``[h, w, c]``; a smaller one is enlarged by whole pixels, gray takes the samples' channels.
        samples: ``[N, H, W, C]``, N >= 1.
        clean: what the measurement was made of, ``[H, W, C]``; it stands last.

    Returns:
        The pictures ``[N + 3 or 4, H, W, C]``, and what white stands for in that of the standard deviation, in [0, 1]:
        its largest value.
    """
    _, height, width, channels = samples.shape
    enlarged = measurement.repeat(max(1, height // len(measurement)), axis=0).repeat(
        max(1, width // measurement.shape[1]), axis=1)[:height, :width]
    shown = np.zeros((height, width, channels), np.uint8)
    shown[: len(enlarged), : enlarged.shape[1]] = enlarged
    mean = samples.mean(axis=0).round().astype(np.uint8)
    deviation = samples.std(axis=0).mean(axis=2, keepdims=True)
    white = float(deviation.max())
    spread = (deviation * (255 / max(white, 1e-9))).round().astype(np.uint8).repeat(channels, axis=2)
    last = [] if clean is None else [clean]
    return np.stack([shown, *samples, mean, spread, *last]), white / 255


def psnr(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The peak signal-to-noise ratio of each of N images in [0, 1], in dB: ``-10 log10`` of the mean squared error."""
    difference = np.asarray(a, np.float64) - b
    errors = (difference**2).reshape(len(difference), -1).mean(axis=1)
    decibels: NDArray[np.float64] = -10 * np.log10(np.maximum(errors, 1e-12))
    return decibels


@contextmanager
def open_picture(path: str | os.PathLike[str], formats: Collection[str] | None = None) -> Iterator[Image.Image]:
    """A picture, whatever the name of its file.

    Args:
        path: the file.
        formats: Pillow's names of those that it may be of: by default all that Pillow reads by itself.

    Raises:
        NO_PICTURE: what Pillow raises on what it cannot read; ``OSError`` for a pipe or a device.
    """
    Image.init()
    able = [name for name in (Image.OPEN if formats is None else formats) if name not in PROGRAMS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)   # what is far too large is an error
        with Image.open(regular(path), formats=able) as picture:
            yield picture


def picture_suffixes() -> set[str]:
    """The suffixes of names of files that :func:`open_picture` reads, in small letters."""
    kinds = Image.registered_extensions()   # also of what is only written, such as PDF
    return {suffix for suffix, kind in kinds.items() if kind in Image.OPEN and kind not in PROGRAMS} | {".mpo"}


def save_png(path: Path, image: UInt8Array) -> None:
    """Writes one ``[H, W, C]`` picture as PNG."""
    with replacing(path) as temporary:
        to_pil(image).save(temporary, format="PNG")


def load_png(path: Path) -> UInt8Array:
    """Reads a PNG, as :func:`save_png` writes it: ``[H, W, C]``; ``OutputError`` if the file holds none."""
    try:
        with open_picture(path, ["PNG"]) as picture:
            pixels = np.asarray(picture)
    except NO_PICTURE as error:
        raise OutputError(f"{path} cannot be read as PNG ({first_line(error)}): move or remove it") from None
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def save_gif(path: Path, frames: Sequence[UInt8Array], *, milliseconds: int = 80, hold: int = 1500) -> None:
    """Writes ``[H, W, C]`` frames as an endless GIF.

    Args:
        path: the file.
        frames: one or more pictures of one size.
        milliseconds: time a frame.
        hold: time of the last frame.
    """
    pictures = [to_pil(frame).convert("RGB") for frame in frames]
    durations = [milliseconds] * (len(pictures) - 1) + [hold]
    with replacing(path) as temporary:
        pictures[0].save(
            temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
        )

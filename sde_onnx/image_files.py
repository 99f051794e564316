"""Files to arrays: pictures, folders of them and ``.npz``, in the shape that a model has."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sde_onnx.checks import checked_path, checked_sequence, is_number
from sde_onnx.errors import InputError, first_line, one_line
from sde_onnx.files import UNREADABLE, arrays_of
from sde_onnx.images import MODES, NO_PICTURE, open_picture, picture_suffixes, to_pil

__all__ = ["Images", "check_images", "digest", "in_data_units", "is_array", "picture_files", "read_images"]

Images = NDArray[np.uint8 | np.float32]
KINDS = {"L": "gray", "LA": "gray and alpha", "RGB": "RGB", "RGBA": "RGB and alpha"}
# The modes of Pillow that hold 8 bits or fewer a value, and the one of KINDS that loses nothing.
LOSSLESS = {"1": "L", "L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA", "P": "RGB", "PA": "RGBA"}
DEEP = re.compile(r";16[BLN]")   # in Pillow's raw modes
RESIZE = "--resize (resize=True) puts alpha on white, crops the middle and resizes"


@dataclass(frozen=True)
class _Expected:
    """What pictures are read as: the arguments of :func:`read_images`."""

    shape: tuple[int, int, int]   # (C, H, W)
    resize: bool
    wanted: str
    noisy: bool


def is_array(value: object) -> bool:
    """Whether a value is a numpy array whose numbers all count: none that is masked."""
    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)


def check_images(images: Images, image_shape: tuple[int, int, int]) -> None:
    """Refuses what is no images of a model.

    Args:
        images: ``[N, C, H, W]``, uint8, or float32 in data units: [0, 1], and noise or what an edit leaves around it.
        image_shape: the model's ``(C, H, W)``.

    Raises:
        InputError: another kind, shape or type, no images, or floats that are not about [0, 1].
    """
    if not is_array(images):
        raise InputError(f"images is {type(images).__name__}, expected a numpy array")
    if images.dtype not in (np.uint8, np.float32) or images.shape[1:] != image_shape:
        raise InputError(f"images is {images.dtype} {list(images.shape)}, expected uint8 or float32 "
                         f"[N, {', '.join(map(str, image_shape))}]")
    if len(images) == 0:
        raise InputError("no images: at least one is needed")
    if images.dtype == np.float32 and not ((images > -1) & (images < 2)).all():
        raise InputError(f"images holds {images.min():g} to {images.max():g}, expected values about [0, 1]")


def digest(images: Images) -> str:
    """What tells images from others: the SHA-256 of their values, in hexadecimal."""
    return hashlib.sha256(images.tobytes()).hexdigest()


def in_data_units(images: Images) -> NDArray[np.float32]:
    """Images in data units ([0, 1]): 8-bit values over 255, floats as they are."""
    return (images / 255 if images.dtype == np.uint8 else images).astype(np.float32)


def read_images(
    paths: Sequence[Path], image_shape: tuple[int, int, int], *, resize: bool = False,
    wanted: str = "the model's images", noisy: bool = False,
) -> tuple[list[str], Images]:
    """Reads pictures as images of a model, or measurements of them. All are of one kind: 8-bit values or floats.

    Args:
        paths: pictures that Pillow opens; ``.npz`` with an array ``images`` (uint8 ``[N, C, H, W]`` or
            ``[N, H, W, C]``, or float32 ``[N, C, H, W]`` in [0, 1]), whose names are its ``seeds``, if it has some; and
            folders, which stand for all of these in them, by name.
        image_shape: the model's ``(C, H, W)``. Gray pictures become RGB where the model's images are.
        resize: whether 8-bit pictures of another size are cropped in the middle to the model's aspect and resized by
            Lanczos' filter, and transparent ones put on white.
        wanted: what has that shape, for messages.
        noisy: whether floats may lie outside [0, 1], as those of a measurement with noise do, and be NaN or infinity.

    Returns:
        A name for each image, without suffix, and the images, ``[N, C, H, W]`` uint8, or float32 in [0, 1].

    Raises:
        InputError: a file that is missing or cannot be read, a folder without pictures, or an image of another size, of
            other colours, or with transparency; names the file.
    """
    checked_sequence("image_shape", image_shape, "three whole numbers, (C, H, W)")
    if len(image_shape) != 3 or not all(is_number(size, whole=True) and size > 0 for size in image_shape):
        raise InputError(f"image_shape is {one_line(image_shape)}, expected three whole numbers, (C, H, W)")
    expected = _Expected(image_shape, resize, wanted, noisy)
    names: list[str] = []
    parts: list[Images] = []
    for path in picture_files(paths):
        if path.suffix.lower() == ".npz":
            found, images = _read_npz(path, expected)
            names += found
            parts.append(images)
        else:
            names.append(path.stem)
            parts.append(_read_picture(path, expected)[None])
    if len({part.dtype for part in parts}) > 1:
        raise InputError("8-bit pictures and float32 images do not go together: give them to two commands")
    return names, np.concatenate(parts)


def picture_files(paths: Sequence[Path]) -> list[Path]:
    """The paths, and in place of a folder its pictures and ``.npz``, sorted by name.

    Raises:
        InputError: no path, one that is missing, or a folder without pictures.
    """
    checked_sequence("paths", paths, "a list of files and folders")
    if not paths:
        raise InputError("no pictures: give files or folders")
    files: list[Path] = []
    for path in [checked_path("a path", path) for path in paths]:
        if not os.path.exists(path):   # False, and no error, where no file could have the name
            raise InputError(f"{path} is missing, expected a picture, a .npz or a folder of them")
        inside = _pictures_of(path) if os.path.isdir(path) else [path]
        if not inside:
            raise InputError(f"{path} holds no pictures")
        files += inside
    return files


def _pictures_of(folder: Path) -> list[Path]:
    kinds = {*picture_suffixes(), ".npz"}
    try:
        return sorted(path for path in folder.iterdir()
                      if path.suffix.lower() in kinds and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None


def _read_picture(path: Path, expected: _Expected) -> NDArray[np.uint8]:
    try:
        with open_picture(path) as file:
            frames = getattr(file, "n_frames", 1)
            is_deep = any(map(_is_deep, getattr(file, "tile", ())))
            picture = ImageOps.exif_transpose(file)
            picture.load()
    except NO_PICTURE as error:
        raise InputError(f"{path} cannot be read as a picture: {first_line(error)}") from None
    if frames > 1:
        raise InputError(f"{path} holds {frames} frames, expected one picture")
    if is_deep:
        raise InputError(f"{path} has 16 bits a value, expected 8-bit gray or RGB: convert it")
    return _fitted(picture, str(path), expected)


def _is_deep(tile: tuple[Any, ...]) -> bool:
    """Whether a part of a file has 16 bits a value. Of colours, Pillow drops the lower 8 bits and says nothing."""
    codec, *_, how = tile   # how: a raw mode, or a tuple that begins with one; of a PPM the greatest value follows
    greatest = how[1] if codec.startswith("ppm") else 255
    return codec == "SGI16" or greatest > 255 or DEEP.search(str(how)) is not None


def _read_npz(path: Path, expected: _Expected) -> tuple[list[str], Images]:
    shape = expected.shape
    try:
        held = arrays_of(path, "images", optional=("seeds",))
        images = held["images"]
        seeds = held["seeds"].tolist() if "seeds" in held and held["seeds"].ndim == 1 else None
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read as a .npz with an array `images`: {first_line(error)}") from None
    if images.ndim != 4 or len(images) == 0 or images.dtype not in (np.uint8, np.float32):
        raise InputError(f"{path} holds {images.dtype} {list(images.shape)}, expected images, uint8 or float32 "
                         f"[N, {', '.join(map(str, shape))}]")
    names = [f"{path.stem}-{index:06d}" for index in range(len(images))]
    if seeds is not None and len(seeds) == len(images) and all(isinstance(seed, int) for seed in seeds):
        names = [f"{seed:06d}" for seed in seeds]
    if images.dtype == np.float32:
        if images.shape[1:] != shape:
            raise InputError(f"{path} holds float32 images {list(images.shape[1:])}, {expected.wanted} are "
                             f"{list(shape)}; only 8-bit pictures are resized")
        if not expected.noisy and not ((images >= 0) & (images <= 1)).all():
            raise InputError(f"{path} holds values outside [0, 1], expected images in that range")
        return names, images
    if images.shape[1:] == shape:
        return names, images
    pictures = images if images.shape[3] in MODES else images.transpose(0, 2, 3, 1)
    if pictures.shape[3] not in MODES:
        raise InputError(f"{path} holds images {list(images.shape[1:])}, {expected.wanted} are {list(shape)}")
    return names, np.stack([_fitted(to_pil(np.ascontiguousarray(picture)), f"{path}, image {index}", expected)
                            for index, picture in enumerate(pictures)])


def _fitted(picture: Image.Image, name: str, expected: _Expected) -> NDArray[np.uint8]:
    """A picture as an image of the expected shape, if nothing of it is lost or it may be resized."""
    channels, height, width = expected.shape
    if channels not in MODES:
        raise InputError(f"{name}: {expected.wanted} have {channels} channels, which no picture has: give a .npz")
    if picture.mode not in LOSSLESS:
        raise InputError(f"{name} is of Pillow's mode {picture.mode}, expected 8-bit gray or RGB: convert it")
    kind, wanted = LOSSLESS[picture.mode], MODES[channels]
    if "transparency" in picture.info:
        kind = "RGBA"
    picture = picture.convert(kind)
    if kind.endswith("A") and not wanted.endswith("A"):
        if np.asarray(picture.getchannel("A")).min() < 255:
            if not expected.resize:
                raise InputError(f"{name} is transparent in places, {expected.wanted} are not: {RESIZE}")
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        kind = kind.removesuffix("A")
        picture = picture.convert(kind)
    if kind.startswith("RGB") and wanted.startswith("L"):
        raise InputError(f"{name} is {KINDS[kind]}, {expected.wanted} are {KINDS[wanted]}: convert it first")
    if picture.size != (width, height):
        if not expected.resize:
            raise InputError(f"{name} is {picture.width}x{picture.height}, {expected.wanted} are {width}x{height}: "
                             f"{RESIZE}")
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture.convert(wanted)).reshape(height, width, channels).transpose(2, 0, 1)

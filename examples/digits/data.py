"""Shapes in colour, a bright one on a dark one: handwritten digits, or for a second model clothes.

Digits: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
(doi 10.24432/C50P49), licence CC BY 4.0, as shipped with scikit-learn: 1,797 digits of 8x8 pixels and 17 gray levels.

Clothes: Xiao, Rasul & Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", licence MIT, as in Debian's package dataset-fashion-mnist: 70,000 articles of 28x28 pixels, 10 classes.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

DATA = ("digits", "fashion")
HELD_OUT_EVERY = 4   # each fourth digit is never trained on: quality measurements need real digits of their own
FASHION = Path("/usr/share/datasets/fashion-mnist")   # where Debian's package puts it


def load_ink(size: int, *, held_out: bool, data: str = "digits") -> tuple[Tensor, Tensor]:
    """Returns the shapes and what they are.

    Args:
        size: height and width to resize to, bicubic.
        held_out: those that the model is not trained on, or the rest: a fourth of the digits, a seventh of the clothes.
        data: of DATA.

    Returns:
        Ink ``[N, 1, size, size]`` in [0, 1] and labels ``[N]``, 0 to 9.
    """
    gray, labels = {"digits": _digits, "fashion": _fashion}[data](held_out)
    shrinks = gray.shape[-1] > size
    ink = F.interpolate(gray[:, None], size=(size, size), mode="bicubic", align_corners=False, antialias=shrinks)
    return ink.clamp(0, 1), labels


def _digits(held_out: bool) -> tuple[Tensor, Tensor]:
    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out
    return torch.tensor(digits.images[chosen] / 16, dtype=torch.float32), torch.tensor(digits.target[chosen])


def _fashion(held_out: bool) -> tuple[Tensor, Tensor]:
    """Source: the files are in the IDX format of MNIST: a header of 16 or 8 bytes, then a byte a value."""
    part = "t10k" if held_out else "train"
    images = gzip.decompress((FASHION / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((FASHION / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28) / 255
    kinds = np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    return torch.tensor(pixels, dtype=torch.float32), torch.tensor(kinds)


def colour(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Paints each shape in a random bright colour on a random dark one: ``[N, 1, H, W] -> [N, 3, H, W]``."""
    bright = _hsv_to_rgb(*_uniform(len(ink), [(0, 1), (0.2, 1), (0.8, 1)], generator))
    dark = _hsv_to_rgb(*_uniform(len(ink), [(0, 1), (0, 1), (0, 0.25)], generator))
    return dark + ink * (bright - dark)


def _uniform(count: int, ranges: list[tuple[float, float]], generator: torch.Generator) -> list[Tensor]:
    return [low + (high - low) * torch.rand(count, generator=generator) for low, high in ranges]


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """``[N]`` each in [0, 1] to ``[N, 3, 1, 1]``. Source: Smith 1978, "Color gamut transform pairs"."""
    sector = (torch.tensor([5.0, 3.0, 1.0])[None] + 6 * hue[:, None]) % 6
    fall = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return (value[:, None] * (1 - saturation[:, None] * fall))[:, :, None, None]

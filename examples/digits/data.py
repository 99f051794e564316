"""Handwritten digits in colour: scikit-learn's UCI digits, enlarged, a bright colour on a dark one.

Data: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
(doi 10.24432/C50P49), licence CC BY 4.0, as shipped with scikit-learn: 1,797 digits of 8x8 pixels and 17 gray levels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

HELD_OUT_EVERY = 4   # each fourth digit is never trained on: quality measurements need real digits of their own


def load_ink(size: int, *, held_out: bool) -> tuple[Tensor, Tensor]:
    """Returns the strokes and what they say.

    Args:
        size: height and width to enlarge to, bicubic.
        held_out: the fourth that the model is not trained on, or the rest.

    Returns:
        Ink ``[N, 1, size, size]`` in [0, 1] and labels ``[N]``, 0 to 9.
    """
    digits = load_digits()
    chosen = (np.arange(len(digits.target)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out
    gray = torch.tensor(digits.images[chosen] / 16, dtype=torch.float32)[:, None]
    ink = F.interpolate(gray, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    return ink, torch.tensor(digits.target[chosen])


def colour(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Paints each digit in a random bright colour on a random dark one: ``[N, 1, H, W] -> [N, 3, H, W]``."""
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

"""A measurement in a sampler's graph: two more inputs, and what they make of the score of every evaluation.

    mask           float32 [N or 1, C or 1, H, W]: 1 where a pixel is known, 0 where it is missing
    measurement    float32 [N or 1, C, H, W] in data units; what the mask hides is not read

It is the method ``null-space`` without noise (:mod:`sde_onnx.guidance.null_space`), which needs no gradient. The mask
is no bool, so that a program has one kind of buffer for both: C++ packs a ``std::vector<bool>`` into bits, which no
tensor takes, and JavaScript has no array of bool.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["OPERATORS", "known_put_right", "measured_inputs"]

OPERATORS = ("mask",)


def measured_inputs(operator: str | None, shape: tuple[int, int, int]) -> dict[str, list[str | int]]:
    """The sizes of the inputs that an operator adds, by name, for images ``(C, H, W)``; none without an operator."""
    channels, height, width = shape
    return {} if operator is None else {
        "mask": ["masks", "mask_channels", height, width],
        "measurement": ["measurements", channels, height, width],
    }


def known_put_right(score: Tensor, x: Tensor, sigma: Tensor, mask: Tensor, measurement: Tensor) -> Tensor:
    """The score that leads to the denoised image with its known pixels put right.

        D = x + sigma^2 s,   D' = D + mask (measurement - D),   s' = (D' - x) / sigma^2

    Written out, s' is s where a pixel is missing and (measurement - x) / sigma^2 where it is known. So a mask of zeros
    leaves every bit as it is, and no NaN of a hidden pixel comes through.

    Args:
        score: s, the network's, ``[N, C, H, W]``.
        x: the noisy images, ``[N, C, H, W]``.
        sigma: their noise std, ``[N]``, > 0.
        mask, measurement: the inputs of those names; a mask counts as 1 from 0.5 on.

    Source: Wang et al. 2023, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", equation 13.
    """
    return torch.where(mask >= 0.5, (measurement - x) / sigma[:, None, None, None] ** 2, score)

"""Resampling by two with the FIR kernel [1, 3, 3, 1], as convolutions that every runtime has.

The references build FIR resampling from zero insertion, padding, reshapes, transposes and slices. With
``k = [1, 3, 3, 1] / 8`` it is, borders included:

    down(x) = depthwise 4x4 convolution with outer(k, k), stride 2, padding 1
    up(x)   = nearest x2, then a depthwise 3x3 convolution with outer([1, 2, 1], [1, 2, 1]) / 16, padding 1

since zero insertion followed by ``2k`` is ``[1, 1]`` (nearest) followed by ``[1, 2, 1] / 4``.

Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again"; Karras et al. 2020 (StyleGAN2), whose
``upfirdn2d`` Song et al. 2021 (appendix H) take over.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvDownsample", "ConvUpsample", "Downsample", "Upsample"]


def _depthwise_kernel(taps: tuple[int, ...], channels: int) -> Tensor:
    """Separable kernel of unit sum, one copy a channel: ``[channels, 1, len(taps), len(taps)]``."""
    line = torch.tensor(taps, dtype=torch.float32)
    kernel = torch.outer(line, line) / line.sum() ** 2
    return kernel.expand(channels, 1, -1, -1).clone()


class Downsample(nn.Module):
    """Halves height and width: FIR, or the mean of 2x2 pixels. ``[N, C, H, W] -> [N, C, H/2, W/2]``."""

    kernel: Tensor

    def __init__(self, channels: int, *, fir: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.fir = fir
        if fir:
            self.register_buffer("kernel", _depthwise_kernel((1, 3, 3, 1), channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fir:
            return F.avg_pool2d(x, 2)
        return F.conv2d(x, self.kernel, stride=2, padding=1, groups=self.channels)


class Upsample(nn.Module):
    """Doubles height and width: FIR, or nearest. ``[N, C, H, W] -> [N, C, 2H, 2W]``.

    Args:
        channels: C.
        fir: whether the FIR kernel follows the nearest-neighbour doubling.
        margin: rows and columns beyond the image that are returned on each side, for a convolution without padding.
    """

    kernel: Tensor

    def __init__(self, channels: int, *, fir: bool = True, margin: int = 0) -> None:
        super().__init__()
        self.channels = channels
        self.fir = fir
        self.padding = 1 + margin
        if fir:
            self.register_buffer("kernel", _depthwise_kernel((1, 2, 1), channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if not self.fir:
            return x
        return F.conv2d(x, self.kernel, padding=self.padding, groups=self.channels)


class ConvDownsample(nn.Module):
    """Downsampling that ends in a learned 3x3 convolution. ``[N, Cin, H, W] -> [N, Cout, H/2, W/2]``.

    With FIR the reference pads once, by two, before the filter; the filtered border then takes the convolution's
    padding. Without FIR it pads one row and one column, at the end only.
    """

    kernel: Tensor

    def __init__(self, in_channels: int, out_channels: int, *, fir: bool = True) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.fir = fir
        if fir:
            self.register_buffer("kernel", _depthwise_kernel((1, 3, 3, 1), in_channels), persistent=False)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fir:
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(F.conv2d(x, self.kernel, padding=2, groups=self.in_channels))


class ConvUpsample(nn.Module):
    """Upsampling that ends in a learned 3x3 convolution. ``[N, Cin, H, W] -> [N, Cout, 2H, 2W]``.

    The reference runs a transposed convolution and filters its result; both are linear and nothing is cropped between
    them, so the filter may come first if it returns one row and column more on each side.
    """

    def __init__(self, in_channels: int, out_channels: int, *, fir: bool = True) -> None:
        super().__init__()
        self.upsample = Upsample(in_channels, fir=fir, margin=1)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=0 if fir else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.upsample(x))

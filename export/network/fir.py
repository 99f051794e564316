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


class Downsample(nn.Sequential):
    """Halves height and width: FIR, or the mean of 2x2 pixels. ``[N, C, H, W] -> [N, C, H/2, W/2]``."""

    def __init__(self, channels: int, *, fir: bool = True) -> None:
        super().__init__(_Filter((1, 3, 3, 1), channels, stride=2, padding=1) if fir else nn.AvgPool2d(2))
        self.channels = channels


class Upsample(nn.Sequential):
    """Doubles height and width: FIR, or nearest. ``[N, C, H, W] -> [N, C, 2H, 2W]``.

    Args:
        channels: C.
        fir: whether the FIR kernel follows the nearest-neighbour doubling.
        margin: rows and columns beyond the image that are returned on each side, for a convolution without padding.
    """

    def __init__(self, channels: int, *, fir: bool = True, margin: int = 0) -> None:
        super().__init__(nn.Upsample(scale_factor=2))
        if fir:
            self.append(_Filter((1, 2, 1), channels, padding=1 + margin))


class ConvDownsample(nn.Sequential):
    """Downsampling that ends in a learned 3x3 convolution. ``[N, Cin, H, W] -> [N, Cout, H/2, W/2]``.

    With FIR the reference pads once, by two, before the filter; the filtered border then takes the convolution's
    padding. Without FIR it pads one row and one column, at the end only.
    """

    def __init__(self, in_channels: int, out_channels: int, *, fir: bool = True) -> None:
        super().__init__()
        self.border = _Filter((1, 3, 3, 1), in_channels, padding=2) if fir else nn.ZeroPad2d((0, 1, 0, 1))
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2)


class ConvUpsample(nn.Sequential):
    """Upsampling that ends in a learned 3x3 convolution. ``[N, Cin, H, W] -> [N, Cout, 2H, 2W]``.

    The reference runs a transposed convolution and filters its result; both are linear and nothing is cropped between
    them, so the filter may come first if it returns one row and column more on each side.
    """

    def __init__(self, in_channels: int, out_channels: int, *, fir: bool = True) -> None:
        super().__init__()
        self.upsample = Upsample(in_channels, fir=fir, margin=1)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=0 if fir else 1)


class _Filter(nn.Module):
    """A depthwise convolution with a separable kernel of unit sum."""

    kernel: Tensor

    def __init__(self, taps: tuple[int, ...], channels: int, *, stride: int = 1, padding: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        line = torch.tensor(taps, dtype=torch.float32)
        kernel = torch.outer(line, line) / line.sum() ** 2
        self.register_buffer("kernel", kernel.expand(channels, 1, -1, -1).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, stride=self.stride, padding=self.padding, groups=len(self.kernel))

"""The blocks of NCSN++: noise-level embedding, residual block, self-attention, pyramid merge.

Source: Song et al. 2021, appendix H; the residual blocks are those of DDPM (Ho et al. 2020) and of BigGAN
(Brock et al. 2019), the latter with its resampling inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_onnx.errors import ConfigError
from sde_onnx.export.network.fir import Downsample, Upsample

__all__ = ["RESAMPLERS", "Combine", "FourierEmbedding", "GroupNorm", "NoiseLevels", "NormActConv",
           "PositionalEmbedding", "Resampling", "ResidualSum", "ResnetBlock", "SelfAttention", "group_norm"]

Resampling = Literal["up", "down"]
MakeNorm = Callable[[int], "GroupNorm"]   # from the number of channels


class GroupNorm(nn.GroupNorm):
    """Group norm of ``x``, or of ``x`` and a shift ``[N, C]`` of its channels: ``[N, C, H, W] -> [N, C, H, W]``."""

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return super().forward(x if shift is None else x + shift[:, :, None, None])


def group_norm(channels: int, *, groups: int | None, eps: float) -> GroupNorm:
    """A group norm; without ``groups`` by the references' rule: four channels each, 32 groups at most."""
    groups = min(channels // 4, 32) if groups is None else groups
    if groups < 1 or channels % groups:
        raise ConfigError(f"a norm of {channels} channels cannot have {groups} groups")
    return GroupNorm(groups, channels, eps=eps)


class FourierEmbedding(nn.Module):
    """Random Fourier features of log sigma: ``[N] -> [N, 2 * channels]``, sines first.

    The order of the products is the references': phases reach 10^3 rad, where another order would show.

    Source: Tancik et al. 2020; Song et al. 2021, appendix H.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(channels) * 16.0, requires_grad=False)

    @property
    def channels(self) -> int:
        return 2 * len(self.frequencies)

    def forward(self, sigma: Tensor) -> Tensor:
        phase = torch.log(sigma)[:, None] * self.frequencies[None, :] * 2 * math.pi
        return torch.cat([torch.sin(phase), torch.cos(phase)], dim=1)


class PositionalEmbedding(nn.Module):
    """Sinusoidal features of the noise level's index: ``[N] -> [N, channels]``, sines first.

    Source: Vaswani et al. 2017; Ho et al. 2020.
    """

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        half = channels // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        phase = index[:, None] * self.frequencies[None, :]
        return torch.cat([torch.sin(phase), torch.cos(phase)], dim=1)


class NoiseLevels(nn.Module):
    """The noise levels of a discretely trained (SMLD) network: sigma to the nearest level's index and value.

    Levels run from the largest sigma (index 0) down, evenly in log sigma, so "nearest" is meant in log sigma.

    Source: Song & Ermon 2019; Song et al. 2021, section 2.1.
    """

    sigmas: Tensor

    def __init__(self, sigma_min: float, sigma_max: float, num_scales: int) -> None:
        super().__init__()
        self.log_max = math.log(sigma_max)
        self.per_log = (num_scales - 1) / math.log(sigma_max / sigma_min)
        self.last = num_scales - 1
        sigmas = np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), num_scales))
        self.register_buffer("sigmas", torch.tensor(sigmas, dtype=torch.float32), persistent=False)

    def forward(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.round((self.log_max - torch.log(sigma)) * self.per_log).clamp(0, self.last)
        return index, self.sigmas[index.long()]


class ResidualSum(nn.Module):
    """``(x * x_scale + h) * scale``; ``x_scale`` is 1 until fold.py has put h's scale into weights."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.x_scale = scale, 1.0

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return _scaled(_scaled(x, self.x_scale) + h, self.scale)


def _scaled(x: Tensor, factor: float) -> Tensor:
    """``x * factor``; a factor of 1 costs no pass over the activations."""
    return x if factor == 1 else x * factor


class SelfAttention(nn.Module):
    """Attention over all pixels, added to its input: ``[N, C, H, W] -> [N, C, H, W]``.

    Args:
        channels: C.
        head_channels: channels of one head; ``None`` is one head of C channels.
        scale: factor of ``input + attention``.
        norm: makes the norm.
    """

    def __init__(self, channels: int, *, head_channels: int | None, scale: float, norm: MakeNorm) -> None:
        super().__init__()
        self.heads = 1 if head_channels is None else channels // head_channels
        self.norm = norm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.logit_scale: float = (channels // self.heads) ** -0.5
        self.out = nn.Linear(channels, channels)
        self.merge = ResidualSum(scale)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        tokens = self.norm(x).reshape(n, channels, height * width).transpose(1, 2)
        query, key, value = (self._heads_of(layer(tokens)) for layer in (self.query, self.key, self.value))
        mixed = torch.softmax(_scaled(query @ key.transpose(-2, -1), self.logit_scale), dim=-1) @ value
        if self.heads > 1:
            mixed = mixed.transpose(1, 2).reshape(n, height * width, channels)
        return self.merge(x, self.out(mixed).transpose(1, 2).reshape(x.shape))

    def _heads_of(self, tokens: Tensor) -> Tensor:
        """``[N, HW, C] -> [N, heads, HW, C / heads]``; one head needs no dimension of its own."""
        if self.heads == 1:
            return tokens
        n, length, channels = tokens.shape
        return tokens.reshape(n, length, self.heads, channels // self.heads).transpose(1, 2)


class ResnetBlock(nn.Module):
    """Two normalized convolutions and a shortcut, the noise level added between; attention after it if asked.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; equal to ``in_channels`` where the block resamples.
        emb_channels: length of the embedding.
        resample: resampling inside the block (BigGAN's), of the main path and of the shortcut alike.
        fir: whether that resampling is FIR.
        scale: factor of ``shortcut + main path``.
        attention: self-attention on the result.
        norm: makes the norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        resample: Resampling | None,
        fir: bool,
        scale: float,
        attention: SelfAttention | None,
        norm: MakeNorm,
    ) -> None:
        super().__init__()
        self.norm0 = norm(in_channels)
        self.resample = RESAMPLERS[resample](in_channels, fir=fir) if resample else None
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_channels, out_channels)
        self.norm1 = norm(out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        has_projection = resample is not None or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if has_projection else None
        self.merge = ResidualSum(scale)
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = F.silu(self.norm0(x))
        if self.resample is not None:
            h = self.resample(h)
        h = self.norm1(self.conv0(h), shift=self.emb(emb))
        h = self.merge(self._shortcut(x), self.conv1(F.silu(h)))
        return h if self.attention is None else self.attention(h)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.shortcut is None:
            return x
        if not isinstance(self.resample, Upsample):
            return self.shortcut(x if self.resample is None else self.resample(x))
        # A 1x1 convolution commutes with resampling: at the low resolution it is four times cheaper. Its bias does not
        # commute with the padding at the borders, so it comes after.
        x = self.resample(F.conv2d(x, self.shortcut.weight))
        return x if self.shortcut.bias is None else x + self.shortcut.bias[:, None, None]


RESAMPLERS: dict[Resampling, type[Downsample] | type[Upsample]] = {"down": Downsample, "up": Upsample}


class NormActConv(nn.Sequential):
    """Group norm, SiLU, 3x3 convolution: how features become an image."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: MakeNorm) -> None:
        super().__init__()
        self.norm = norm(in_channels)
        self.act = nn.SiLU()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)


class Combine(nn.Module):
    """Merges the downsampled input into the features: a 1x1 convolution of it, added or concatenated."""

    def __init__(self, image_channels: int, channels: int, *, method: Literal["sum", "cat"]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(image_channels, channels, 1)
        self.method = method
        self.out_channels = channels if method == "sum" else 2 * channels

    def forward(self, image: Tensor, h: Tensor) -> Tensor:
        merged = self.conv(image)
        return merged + h if self.method == "sum" else torch.cat([merged, h], dim=1)

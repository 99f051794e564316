"""NCSN++, the score network of Song et al. 2021, for every option that diffusers and score_sde_pytorch have for it.

A U-Net whose encoder also sees the input at every resolution (an input pyramid) and whose decoder may add up the
output over its resolutions (an output pyramid). It maps ``(x, sigma)`` to the score ``grad_x log p_sigma(x)``.

Source: Song et al. 2021, section 4.4 and appendix H.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_onnx.errors import ConfigError, one_line
from sde_onnx.export.network.fir import ConvDownsample, ConvUpsample, Downsample, Upsample
from sde_onnx.export.network.layers import (
    RESAMPLERS,
    Combine,
    FourierEmbedding,
    GroupNorm,
    NoiseLevels,
    NormActConv,
    PositionalEmbedding,
    Resampling,
    ResnetBlock,
    SelfAttention,
    group_norm,
)
from sde_onnx.export.network.score_network import ScoreNetwork
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["NCSNpp", "NCSNppConfig"]


# Beyond what any network has: a config that asks for more would only take memory and time.
MOST = {"image_size": 2048, "image_channels": 4, "num_res_blocks": 64}
MOST_CHANNELS, MOST_LEVELS = 2**14, 12
BOOLEAN = (False, True)
CHOICES: dict[str, tuple[object, ...]] = {
    "embedding": ("fourier", "positional"), "resblock": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"), "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"), "resample_with_conv": BOOLEAN, "fir": BOOLEAN, "center_input": BOOLEAN,
    "scale_by_sigma": BOOLEAN,
}


@dataclass(frozen=True)
class NCSNppConfig:
    """Everything that shapes the network; the defaults are those of the paper's large models."""

    image_size: int                                        # height and width
    channels: tuple[int, ...]                              # of each resolution, the largest resolution first
    image_channels: int = 3                                # 1 to 4
    base_channels: int | None = None                       # of the first convolution; None: channels[0]
    num_res_blocks: int = 2                                # an encoder level; a decoder level has one more
    attn_resolutions: tuple[int, ...] = ()                 # sizes at which blocks end with self-attention
    attn_head_channels: int | None = None                  # None: one head
    embedding: Literal["fourier", "positional"] = "fourier"
    noise_levels: tuple[float, float, int] | None = None   # sigma_min, sigma_max, number: a discrete network's
    labels: int = 0                                        # classes; 0: not conditional
    resblock: Literal["biggan", "ddpm"] = "biggan"         # resampling inside blocks, or between them
    resample_with_conv: bool = True                        # ddpm only: resampling ends in a convolution
    fir: bool = True                                       # resampling with [1, 3, 3, 1], or naive
    progressive: Literal["none", "output_skip", "residual"] = "output_skip"
    progressive_input: Literal["none", "input_skip", "residual"] = "input_skip"
    progressive_combine: Literal["sum", "cat"] = "sum"
    skip_scale: float = math.sqrt(0.5)                     # factor of every residual sum (skip_rescale), or 1
    mid_skip_scale: float | None = None                    # the same in the middle; None: skip_scale
    center_input: bool = True                              # the network sees 2x - 1
    scale_by_sigma: bool = True                            # the output is divided by sigma
    norm_eps: float = 1e-6
    norm_groups: int | None = None                         # of every norm; None: min(channels // 4, 32)
    norm_groups_at: Mapping[str, int] = field(default_factory=dict)  # exceptions, by the norm's module name

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {one_line(getattr(self, name))}, expected one of: "
                                  f"{', '.join(map(str, choices))}")
        for name, most in MOST.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigError(f"{name} is {one_line(value)}, expected a whole number of 1 to {most}")
        if self.noise_levels is not None:
            try:
                VeSchedule(*self.noise_levels)
            except TypeError:
                raise ConfigError(f"noise_levels is {one_line(self.noise_levels)}, expected sigma_min, sigma_max and "
                                  "their number") from None
        if len(self.channels) > MOST_LEVELS:
            raise ConfigError(f"channels names {len(self.channels)} levels, expected at most {MOST_LEVELS}")
        if not self.channels:
            raise ConfigError("channels is empty: one number of channels for each resolution is needed")
        heads = () if self.attn_head_channels is None else (self.attn_head_channels,)
        counts = {"channels": self.channels, "attn_head_channels": heads, "norm groups": self.norm_groups_at.values()}
        for name, values in counts.items():
            if not all(type(value) is int and 0 < value <= MOST_CHANNELS for value in values):
                raise ConfigError(f"{name} {one_line(list(values))} are not all whole numbers of 1 to {MOST_CHANNELS}")
        smallest = 2 ** (len(self.channels) - 1)
        if self.image_size % smallest or self.image_size < smallest:
            raise ConfigError(
                f"image_size {self.image_size} cannot be halved {len(self.channels) - 1} times, as the "
                f"{len(self.channels)} levels of channels {self.channels} need"
            )
        if self.embedding != "positional" and self.noise_levels is not None:
            raise ConfigError("noise_levels goes with embedding 'positional'")
        if unknown := set(self.attn_resolutions) - set(self.sizes):
            raise ConfigError(f"attn_resolutions {sorted(unknown)} are not among the sizes {list(self.sizes)}")
        attention_widths = {self.channels[-1], *(self.channels[self.sizes.index(s)] for s in self.attn_resolutions)}
        if self.attn_head_channels and any(width % self.attn_head_channels for width in attention_widths):
            raise ConfigError(
                f"attention heads of {self.attn_head_channels} channels do not divide {sorted(attention_widths)}"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Height and width of each level, the largest first."""
        return tuple(self.image_size // 2**level for level in range(len(self.channels)))

    def to_json(self) -> dict[str, object]:
        """The config as plain JSON values, exceptions to the norm rule left out."""
        return {key: value for key, value in asdict(self).items() if key != "norm_groups_at"}


@dataclass(frozen=True)
class _Maker:
    """Makes the blocks that a config asks for."""

    config: NCSNppConfig
    emb_channels: int

    def norm(self, channels: int) -> GroupNorm:
        return group_norm(channels, groups=self.config.norm_groups, eps=self.config.norm_eps)

    def block(
        self, in_channels: int, out_channels: int, *, resample: Resampling | None = None, attend: bool = False,
        scale: float | None = None,
    ) -> ResnetBlock:
        config = self.config
        scale = config.skip_scale if scale is None else scale
        attention = SelfAttention(
            out_channels, head_channels=config.attn_head_channels, scale=scale, norm=self.norm
        ) if attend else None
        return ResnetBlock(in_channels, out_channels, self.emb_channels, resample=resample, fir=config.fir,
                           scale=scale, attention=attention, norm=self.norm)

    def resampler(self, channels: int, direction: Resampling) -> nn.Module:
        if self.config.resblock == "biggan":
            return self.block(channels, channels, resample=direction)
        if self.config.resample_with_conv:
            with_conv = ConvDownsample if direction == "down" else ConvUpsample
            return with_conv(channels, channels, fir=self.config.fir)
        return RESAMPLERS[direction](channels, fir=self.config.fir)

    def norm_act_conv(self, channels: int, out_channels: int) -> NormActConv:
        return NormActConv(channels, out_channels, norm=self.norm)


class NCSNpp(ScoreNetwork):
    """The score network. Modules are named by role and resolution: ``decoder.16x16_block0``.

    Args:
        config: the architecture.
    """

    def __init__(self, config: NCSNppConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape = (config.image_channels, config.image_size, config.image_size)
        base = config.base_channels or config.channels[0]
        make = _Maker(config, emb_channels=4 * base)

        self.noise_levels = NoiseLevels(*config.noise_levels) if config.noise_levels else None
        self.embedding = FourierEmbedding(base) if config.embedding == "fourier" else PositionalEmbedding(base)
        self.labels = config.labels
        self.label_emb = nn.Linear(config.labels, self.embedding.channels) if config.labels else None
        self.emb0 = nn.Linear(self.embedding.channels, make.emb_channels)
        self.emb1 = nn.Linear(make.emb_channels, make.emb_channels)
        self.conv_in = nn.Conv2d(config.image_channels, base, 3, padding=1)

        self.encoder, self.input_pyramid = nn.ModuleDict(), nn.ModuleDict()
        skips = self._add_encoder(make, base)

        width = skips[-1]
        mid_scale = config.skip_scale if config.mid_skip_scale is None else config.mid_skip_scale
        self.middle0 = make.block(width, width, attend=True, scale=mid_scale)
        self.middle1 = make.block(width, width, scale=mid_scale)

        self.decoder, self.output_pyramid = nn.ModuleDict(), nn.ModuleDict()
        width = self._add_decoder(make, width, skips)
        self.head = None if config.progressive == "output_skip" else make.norm_act_conv(width, config.image_channels)

        for name, groups in config.norm_groups_at.items():
            exception = self.get_submodule(name)
            if not isinstance(exception, nn.GroupNorm) or exception.num_channels % groups:
                raise ConfigError(f"{name} cannot be a group norm of {groups} groups")
            exception.num_groups = groups

    def _add_encoder(self, make: _Maker, width: int) -> list[int]:
        """Adds the encoder and the input pyramid; returns the channels of every skip connection."""
        config = self.config
        skips = [width]
        pyramid_width = config.image_channels
        for level, (size, channels) in enumerate(zip(config.sizes, config.channels, strict=True)):
            here = f"{size}x{size}"
            if level > 0:
                self.encoder[f"{here}_down"] = make.resampler(width, "down")
                if config.progressive_input == "input_skip":
                    combine = Combine(pyramid_width, width, method=config.progressive_combine)
                    self.input_pyramid[f"{here}_down"] = Downsample(pyramid_width, fir=config.fir)
                    self.input_pyramid[here] = combine
                    width = combine.out_channels
                elif config.progressive_input == "residual":
                    self.input_pyramid[here] = ConvDownsample(pyramid_width, width, fir=config.fir)
                    pyramid_width = width
                skips.append(width)
            for index in range(config.num_res_blocks):
                attend = size in config.attn_resolutions
                self.encoder[f"{here}_block{index}"] = make.block(width, channels, attend=attend)
                width = channels
                skips.append(width)
        return skips

    def _add_decoder(self, make: _Maker, width: int, skips: list[int]) -> int:
        """Adds the decoder and the output pyramid, using up the skips; returns the channels of the last block."""
        config = self.config
        pyramid_width = 0
        for level, (size, channels) in reversed(list(enumerate(zip(config.sizes, config.channels, strict=True)))):
            here = f"{size}x{size}"
            deepest = level == len(config.channels) - 1
            for index in range(config.num_res_blocks + 1):
                attend = size in config.attn_resolutions and index == config.num_res_blocks
                self.decoder[f"{here}_block{index}"] = make.block(width + skips.pop(), channels, attend=attend)
                width = channels
            if config.progressive == "output_skip":
                if not deepest:
                    self.output_pyramid[f"{here}_up"] = Upsample(config.image_channels, fir=config.fir)
                self.output_pyramid[here] = make.norm_act_conv(width, config.image_channels)
            elif config.progressive == "residual":
                self.output_pyramid[here] = (
                    make.norm_act_conv(width, width) if deepest else ConvUpsample(pyramid_width, width, fir=config.fir)
                )
                pyramid_width = width
            if level > 0:
                self.decoder[f"{here}_up"] = make.resampler(width, "up")
        return width

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns the score of noisy images with data in [0, 1]: ``[N, C, H, W], sigma [N] > 0 -> [N, C, H, W]``."""
        position = sigma
        if self.noise_levels is not None:
            position, sigma = self.noise_levels(sigma)
        out = self.features(2 * x - 1 if self.config.center_input else x, position)
        return out / sigma[:, None, None, None] if self.config.scale_by_sigma else out

    def features(self, x: Tensor, position: Tensor, label: Tensor | None = None) -> Tensor:
        """The network without what stands before and after it: ``[N, C, H, W] -> [N, C, H, W]``.

        Args:
            x: its input.
            position: what the embedding takes: sigma (Fourier), or a number (positional), ``[N]``.
            label: int64 ``[N]``, from 0 on; -1 is no class. Of a conditional network alone.
        """
        config = self.config
        emb = self.embedding(position)
        if self.label_emb is not None and label is not None:
            emb = emb + self.label_emb((label[:, None] == torch.arange(config.labels)).to(emb.dtype))
        emb = F.silu(self.emb1(F.silu(self.emb0(emb))))

        h = self.conv_in(x)
        skips = [h]
        image = x
        for level, size in enumerate(config.sizes):
            here = f"{size}x{size}"
            if level > 0:
                h = _resample(self.encoder[f"{here}_down"], h, emb)
                if config.progressive_input == "input_skip":
                    image = self.input_pyramid[f"{here}_down"](image)
                    h = self.input_pyramid[here](image, h)
                elif config.progressive_input == "residual":
                    h = image = (self.input_pyramid[here](image) + h) * config.skip_scale
                skips.append(h)
            for index in range(config.num_res_blocks):
                h = self.encoder[f"{here}_block{index}"](h, emb)
                skips.append(h)

        h = self.middle1(self.middle0(h, emb), emb)

        pyramid: Tensor | None = None
        for level, size in reversed(list(enumerate(config.sizes))):
            here = f"{size}x{size}"
            for index in range(config.num_res_blocks + 1):
                h = self.decoder[f"{here}_block{index}"](torch.cat([h, skips.pop()], dim=1), emb)
            if config.progressive == "output_skip":
                image = self.output_pyramid[here](h)
                pyramid = image if pyramid is None else self.output_pyramid[f"{here}_up"](pyramid) + image
            elif config.progressive == "residual":
                if pyramid is None:
                    pyramid = self.output_pyramid[here](h)
                else:
                    h = pyramid = (self.output_pyramid[here](pyramid) + h) * config.skip_scale
            if level > 0:
                h = _resample(self.decoder[f"{here}_up"], h, emb)

        out = pyramid if self.head is None else self.head(h)
        assert out is not None
        return out

    def summary(self) -> dict[str, object]:
        # A discrete network takes any other sigma for the nearest that was trained.
        return self.config.to_json() | {"discrete": self.noise_levels is not None}


def _resample(module: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    """Resamples through a block, which takes the embedding, or through a plain layer, which does not."""
    return module(h, emb) if isinstance(module, ResnetBlock) else module(h)

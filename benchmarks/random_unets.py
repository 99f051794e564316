"""Random networks as diffusers has them, for benchmarks and tests: every parameter non-zero, from a fixed seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler, UNet2DModel

__all__ = ["NETWORKS", "Network", "random_unet", "randomize", "save_pipeline"]


@dataclass(frozen=True)
class Network:
    """A network to be timed: its size, and what makes its UNet2DModel."""

    size: int
    channels: tuple[int, ...]
    layers: int
    attention: int       # the level with attention
    sigma_max: float
    kind: str = "Skip"   # of the blocks: NCSN++'s, or "" for diffusers' plain ones


NETWORKS = {
    "32": Network(32, (128, 256, 256, 256), layers=4, attention=1, sigma_max=50.0),   # as CIFAR-10's
    "256": Network(256, (128, 128, 256, 256, 256, 256, 256), layers=2, attention=4, sigma_max=348.0),   # as the hub's
    # diffusers' plain blocks, as people train them: 25.8 and 25.3 million parameters.
    "plain32": Network(32, (128, 256, 256), layers=2, attention=1, sigma_max=50.0, kind=""),
    "plain64": Network(64, (64, 128, 256, 256), layers=2, attention=3, sigma_max=90.0, kind=""),
    "1024": Network(1024, (16, 32, 64, 128, 256, 512, 512, 512), layers=1, attention=6, sigma_max=1348.0),
}


def randomize(network: torch.nn.Module, seed: int) -> None:
    """Gives every parameter a non-zero random value of a sensible size, so that a missed one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif parameter.requires_grad:
                parameter.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
            else:
                parameter.copy_(16 * noise)   # Fourier frequencies


def random_unet(size: int, channels: tuple[int, ...], *, seed: int = 0, attention: int = 1, layers: int = 1,
                kind: str = "Skip", **options: Any) -> UNet2DModel:
    """An NCSN++ as the hub's are configured, or diffusers' plain blocks, with attention at one level."""
    kinds = [f"Attn{kind}" if level == attention else kind for level in range(len(channels))]
    if not kind:
        options = {"time_embedding_type": "positional", "attention_head_dim": 8, "norm_num_groups": 32} | options
    unet = UNet2DModel(**{
        "sample_size": size,
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "attention_head_dim": None,
        "mid_block_scale_factor": 1.41421356237,
        "time_embedding_type": "fourier",
        "center_input_sample": True,
        "norm_eps": 1e-6,
        "norm_num_groups": None,
        **options,
    })
    randomize(unet, seed)
    return unet.eval()


def save_pipeline(folder: Path, unet: UNet2DModel, **scheduler: Any) -> None:
    """Writes a network and its schedule as a checkpoint folder."""
    ScoreSdeVePipeline(unet=unet, scheduler=ScoreSdeVeScheduler(**scheduler)).save_pretrained(folder)

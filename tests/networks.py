"""Random networks and checkpoints, made with diffusers: the oracle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler, UNet2DModel

from sde_onnx.export.checkpoints import load_network, score_sde
from sde_onnx.export.ncsnpp import NCSNpp


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
                **options) -> UNet2DModel:
    """An NCSN++ as the hub's are configured, with attention at one level."""
    kinds = ["AttnSkip" if level == attention else "Skip" for level in range(len(channels))]
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


def save_pipeline(folder: Path, unet: UNet2DModel, **scheduler) -> None:
    ScoreSdeVePipeline(unet=unet, scheduler=ScoreSdeVeScheduler(**scheduler)).save_pretrained(folder)


def score_sde_network(folder: Path) -> NCSNpp:
    """The network of a recorded score_sde checkpoint, with the moving average of its weights."""
    config = score_sde.network_config(json.loads((folder / "config.json").read_text()))
    weights = score_sde.ema_weights(torch.load(folder / "checkpoint.pth", weights_only=True))
    return load_network(config, weights, score_sde.score_sde_keys(config), source=folder.name)


def noisy_images(rng: np.random.Generator, sigmas, shape) -> tuple[np.ndarray, np.ndarray]:
    """An image plus noise for each sigma: ``[N, C, H, W]`` and ``[N]``, float32."""
    sigma = np.array(sigmas, np.float32)
    images = rng.random((len(sigma), *shape), np.float32)
    return images + sigma[:, None, None, None] * rng.standard_normal(images.shape, np.float32), sigma


def relative_error(a, b) -> float:
    """``|a - b| / |b|`` of the worst image of a batch."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return max(np.linalg.norm(d) / np.linalg.norm(r) for d, r in zip(difference, np.asarray(b), strict=True))

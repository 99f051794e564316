"""Recorded networks, noisy inputs and how far two results are apart. Random networks: benchmarks/random_unets.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from sde_onnx.export.checkpoints import load_network, score_sde
from sde_onnx.export.network.ncsnpp import NCSNpp


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


def worst_relative_error(a, b) -> float:
    """``|a - b| / |b|`` of the worst image of a batch."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return max(np.linalg.norm(d) / np.linalg.norm(r) for d, r in zip(difference, np.asarray(b), strict=True))

"""What the trainings of the model and of its classifier share."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["follow", "learning_rate"]


def learning_rate(peak: float, iteration: int, iterations: int, *, warm_up: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    return peak * min(1.0, (iteration + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * (iteration / iterations)))


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, iteration: int, *, decay: float) -> None:
    """Moves the moving average of the weights towards them, further in the first iterations."""
    kept = min(decay, (1 + iteration) / (10 + iteration))
    for mean, value in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - kept)

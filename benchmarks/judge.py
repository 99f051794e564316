"""Judges: small classifiers of digits or clothes in colour, trained on images that the model has never seen.

    python benchmarks/judge.py --data digits

trains them and writes their weights to benchmarks/judges/, and benchmarks measure with what lies there. Trained again
on another kind of processor, which sums in another order, they come out as others and give other figures: results by
the old ones have to be measured again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from environment import ROOT

sys.path.insert(0, str(ROOT / "examples" / "digits"))
from sde_onnx.files import replacing

from data import DATA, colour, load_ink

__all__ = ["JUDGES", "Judge", "kept_judges", "weights_of"]

JUDGES = 3   # whose figures are averaged: one alone has features of its own
FEATURES = 32
TRAINING_STEPS = 1500


class Judge(nn.Module):
    """A classifier of images ``[N, 3, 16, 16]`` in [0, 1], with torch's own initial weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, 10)

    @torch.no_grad()
    def look(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Features ``[N, FEATURES]`` and probabilities ``[N, 10]`` of pictures ``[N, H, W, C]``."""
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        features = torch.cat([self.body(part) for part in images.split(512)])
        return features.double().numpy(), torch.softmax(self.head(features), dim=1).double().numpy()


def kept_judges(data: str = "digits") -> list[Judge]:
    """The judges whose weights are kept.

    Args:
        data: see examples/digits/data.py; they were trained on what is held out.
    """
    with torch.random.fork_rng(devices=[]):   # initial weights are drawn, and give way to those that are kept
        found = [Judge() for _ in range(JUDGES)]
    with np.load(weights_of(data)) as held:
        for number, judge in enumerate(found):
            judge.load_state_dict({name: torch.from_numpy(held[f"{number}.{name}"]) for name in judge.state_dict()})
    return found


def weights_of(data: str) -> Path:
    """The ``.npz`` of the weights of the judges of these data."""
    return ROOT / "benchmarks" / "judges" / f"{data}.npz"


def train(seed: int, data: str) -> Judge:
    """A new judge; the same each time on one thread of one kind of processor.

    Args:
        seed: of its initial weights and its batches.
        data: as of :func:`kept_judges`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge()
    generator = torch.Generator().manual_seed(seed)
    ink, labels = load_ink(16, held_out=True, data=data)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(TRAINING_STEPS):
        chosen = torch.randint(len(ink), (128,), generator=generator)
        images = _shifted(colour(ink[chosen], generator), generator)
        loss = F.cross_entropy(judge.head(judge.body(images)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return judge


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each batch moved by up to a pixel, so that the judge does not hang on exact places."""
    down, right = (int(step) for step in torch.randint(-1, 2, (2,), generator=generator))
    return torch.roll(images, (down, right), dims=(2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="digits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)   # another order of sums is another judge after some hundred steps
    weights = {f"{seed}.{name}": value.numpy() for seed in range(JUDGES)
               for name, value in train(seed, arguments.data).state_dict().items()}
    with replacing(weights_of(arguments.data)) as temporary, temporary.open("wb") as file:
        np.savez(file, **weights)


if __name__ == "__main__":
    main()

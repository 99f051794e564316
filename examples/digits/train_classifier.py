"""Trains the bundled classifier of noisy digits, adds its gradient and writes it as one ONNX file.

    python examples/digits/train_classifier.py

The classifier is told how noisy its image is, and so classifies at every noise level that sampling passes (Song et al.
2021, appendix I.1): with ``x = x_0 + sigma z`` and log sigma uniform, training lowers ``-log p(label given x, sigma)``.
Guidance uses the gradient of that probability, so the classifier must be smooth (SiLU) and calibrated. The cross
entropy of training digits that are set aside (``--validate``) chose its settings; unseen digits only measure it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_onnx.errors import ParityError
from sde_onnx.export.gradient.model_file import export_gradient_of_graph
from sde_onnx.export.graph.tracing import trace
from sde_onnx.export.to_onnx import cpu_session
from sde_onnx.files import replacing
from sde_onnx.models import bundled_classifier

from data import colour, load_ink
from training import follow, learning_rate

FOLDER = Path(__file__).parent
SIZE = 16
SIGMA_MIN, SIGMA_MAX = 0.01, 20.0       # of the bundled model
DATA_MEAN, DATA_STD = 0.35, 0.35        # of the coloured digits, roughly: they only scale the input
CHANNELS = (32, 64, 64)                 # at 16x16, 8x8, 4x4
EMBEDDING, HIDDEN = 64, 64
ITERATIONS, BATCH, LEARNING_RATE, WARM_UP = 3000, 128, 2e-3, 100
WEIGHT_DECAY, EMA_DECAY, CLIP = 0.05, 0.995, 1.0
DISTORTION = 0.3                        # of scale and shift, half of it of shear
SET_ASIDE_EVERY = 5                     # with --validate, of the training digits
SIGMAS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)   # measured
DRAWS = 10                              # of noise and colours for each digit that is measured
TOLERANCE = 1e-5                        # of the file, relative to torch in float32


class Block(nn.Module):
    """A residual block that the noise level scales and shifts; it halves the image first if it is told to."""

    def __init__(self, channels: int, out_channels: int, *, halve: bool) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2) if halve else nn.Identity()
        self.conv0 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        self.modulation = Modulation(out_channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.pool(x)
        return self.skip(x) + self.conv1(F.silu(self.modulation(self.conv0(F.silu(x)), embedding)))


class Modulation(nn.Module):
    """``x (1 + a) + b`` with a and b of each channel from the noise level; at first both are 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(EMBEDDING, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.linear(embedding).chunk(2, dim=1)
        if x.ndim == 4:
            scale, shift = scale[:, :, None, None], shift[:, :, None, None]
        return x * (1 + scale) + shift


class NoisyClassifier(nn.Module):
    """Logits ``[N, 10]`` of noisy digits ``x [N, 3, 16, 16]``, float32, with noise std ``sigma [N]``."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi / 2 * torch.arange(1, 5))
        self.embedding = nn.Sequential(nn.Linear(9, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU())
        self.stem = nn.Conv2d(3, CHANNELS[0], 5, padding=2)
        self.blocks = nn.ModuleList(
            Block(CHANNELS[max(level - 1, 0)], channels, halve=level > 0) for level, channels in enumerate(CHANNELS)
        )
        side = SIZE >> (len(CHANNELS) - 1)
        self.hidden = nn.Linear(CHANNELS[-1] * side * side, HIDDEN)
        self.modulation = Modulation(HIDDEN)
        self.logits = nn.Linear(HIDDEN, 10)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        # -1 at the smallest sigma, 1 at the largest.
        level = (2 * sigma.log() - math.log(SIGMA_MIN * SIGMA_MAX)) / math.log(SIGMA_MAX / SIGMA_MIN)
        phases = level[:, None] * self.frequencies
        embedding = self.embedding(torch.cat([level[:, None], phases.sin(), phases.cos()], dim=1))
        h = self.stem((x - DATA_MEAN) / (sigma**2 + DATA_STD**2).sqrt()[:, None, None, None])
        for block in self.blocks:
            h = block(h, embedding)
        h = self.hidden(F.silu(h).flatten(1))
        return self.logits(F.silu(self.modulation(h, embedding)))


def distorted(ink: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Digits scaled, sheared and shifted at random, ``[N, 1, H, W]``, the less the larger their sigma ``[N]`` is.

    At small noise that makes up for the few digits that there are. At large noise the classifier knows only what is
    likely, and digits that nobody wrote would mislead it.
    """
    strength = DISTORTION / (1 + 10 * sigma**2)
    random = (2 * torch.rand(len(ink), 2, 3, generator=generator) - 1) * strength[:, None, None]
    random *= torch.tensor([[1, 0.5, 0.5], [0.5, 1, 0.5]])
    maps = torch.eye(2, 3) + random
    return F.grid_sample(ink, F.affine_grid(maps, list(ink.shape), align_corners=False), align_corners=False)


def train(ink: Tensor, labels: Tensor, iterations: int) -> NoisyClassifier:
    """Trains on digits in fresh colours and noise and returns the weights' moving average; the same each time."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = NoisyClassifier()
    average = copy.deepcopy(network)
    decayed, others = ([p for p in network.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False))
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": WEIGHT_DECAY},
                                   {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.99))
    losses: list[float] = []
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(LEARNING_RATE, iteration, iterations, warm_up=WARM_UP)
        chosen = torch.randint(len(ink), (BATCH,), generator=generator)
        sigma = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** torch.rand(BATCH, generator=generator)
        images = colour(distorted(ink[chosen], sigma, generator), generator)
        loss = F.cross_entropy(network(noisy(images, sigma, generator), sigma), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        follow(average, network, iteration, decay=EMA_DECAY)
        losses.append(loss.item())
        if (iteration + 1) % 250 == 0:
            print(f"iteration {iteration + 1}: loss {np.mean(losses[-250:]):.4f}", file=sys.stderr, flush=True)
    return average.eval()


def noisy(images: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """``x_0 + sigma z``."""
    return images + sigma[:, None, None, None] * torch.randn(images.shape, generator=generator)


@torch.no_grad()
def measure(network: NoisyClassifier, ink: Tensor, labels: Tensor, sigma: float) -> dict[str, float]:
    """Accuracy and cross entropy in nats of digits at one noise level, DRAWS colours and noises for each.

    Their errors are standard errors of the mean over digits: draws of one digit are no new digit.
    """
    generator = torch.Generator().manual_seed(1)
    right, entropy = torch.zeros(2, len(ink), dtype=torch.float64)
    level = torch.full((len(ink),), sigma)
    for _ in range(DRAWS):
        logits = network(noisy(colour(ink, generator), level, generator), level)
        right += (logits.argmax(dim=1) == labels) / DRAWS
        entropy += F.cross_entropy(logits, labels, reduction="none") / DRAWS
    result = {}
    for name, values in (("accuracy", right), ("cross_entropy", entropy)):
        result[name] = round(values.mean().item(), 4)
        result[f"{name}_error"] = round(values.std().item() / len(ink) ** 0.5, 4)
    return result


def write_model(network: NoisyClassifier, path: Path) -> dict[str, float]:
    """Writes the file ``(x, sigma, v) -> (logits, vjp)`` after comparing it with torch.

    Returns:
        Relative errors by case.

    Raises:
        ParityError: an error above TOLERANCE; nothing is written.
    """
    arguments = (torch.rand(2, 3, SIZE, SIZE), torch.tensor([0.1, 1.0]))   # two, since one would be a constant
    batch = torch.export.Dim("N")
    model = trace(network, arguments, inputs=["x", "sigma"], outputs=["logits"],
                  dynamic_shapes={"x": {0: batch}, "sigma": {0: batch}})
    with tempfile.TemporaryDirectory() as folder, replacing(path) as temporary:
        onnx.save(model, Path(folder) / "classifier.onnx")
        export_gradient_of_graph(Path(folder) / "classifier.onnx", temporary, "logits", "x")
        errors = compare(network, cpu_session(onnx.load(temporary)))
        for case, error in errors.items():
            if not error <= TOLERANCE:
                raise ParityError(f"the file differs from torch by {error:.2e} relative in {case}, above "
                                  f"{TOLERANCE:.0e}; {path} was not written")
    return errors


def compare(network: NoisyClassifier, session: ort.InferenceSession) -> dict[str, float]:
    """``|a - b| / |b|`` of the file's and torch's logits and products, each at three sigmas."""
    generator = torch.Generator().manual_seed(2)
    ink, _ = load_ink(SIZE, held_out=False)
    errors = {}
    for sigma in (SIGMA_MIN, math.sqrt(SIGMA_MIN * SIGMA_MAX), SIGMA_MAX):
        for batch in (1, 3):
            level = torch.full((batch,), sigma)
            x = noisy(colour(ink[:batch], generator), level, generator).requires_grad_()
            v = torch.randn(batch, 10, generator=generator)
            logits = network(x, level)
            product, = torch.autograd.grad(logits, x, v)
            found = session.run(["logits", "vjp"], {"x": x.detach().numpy(), "sigma": level.numpy(), "v": v.numpy()})
            for name, got, expected in zip(("logits", "vjp"), found, (logits.detach(), product), strict=True):
                difference = np.linalg.norm(got - expected.numpy())
                errors[f"{name} sigma {sigma:.4g} batch {batch}"] = float(difference / np.linalg.norm(expected.numpy()))
    return errors


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """What README.md shows of the results' rows."""
    lines = ["| sigma | accuracy, unseen digits | cross entropy | accuracy, training digits | cross entropy |",
             "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = [f"{row[digits][name]:.3f}" + (f" ± {row[digits][f'{name}_error']:.3f}" if digits == "unseen" else "")
                 for digits in ("unseen", "training") for name in ("accuracy", "cross_entropy")]
        lines.append(f"| {row['sigma']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--validate", action="store_true",
                        help="set each fifth training digit aside, print the accuracy on those, write nothing")
    parser.add_argument("--output", type=Path, default=bundled_classifier(), help="the ONNX file")
    parser.add_argument("--results", type=Path, default=FOLDER / "classifier.json", help="what was measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)   # another order of sums is another classifier after some hundred steps
    ink, labels = load_ink(SIZE, held_out=False)
    if arguments.validate:
        aside = torch.arange(len(ink)) % SET_ASIDE_EVERY == SET_ASIDE_EVERY - 1
        network = train(ink[~aside], labels[~aside], arguments.iterations)
        rows = [{"sigma": sigma, **measure(network, ink[aside], labels[aside], sigma)} for sigma in SIGMAS]
        print(*map(json.dumps, rows), f"mean cross entropy {np.mean([row['cross_entropy'] for row in rows]):.4f}",
              sep="\n")
        return
    start = time.monotonic()
    network = train(ink, labels, arguments.iterations)
    seconds = time.monotonic() - start
    parity = write_model(network, arguments.output)
    unseen = load_ink(SIZE, held_out=True)
    results: dict[str, Any] = {
        "command": shlex.join(["python", "examples/digits/train_classifier.py", *sys.argv[1:]]),
        "data": f"{len(ink)} training digits, {len(unseen[0])} unseen ones; {DRAWS} draws of colours and noise of each",
        "parameters": sum(p.numel() for p in network.parameters()),
        "training_seconds": round(seconds, 1),
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__},
        "parity": parity,
        "rows": [{"sigma": sigma, "training": measure(network, ink, labels, sigma),
                  "unseen": measure(network, *unseen, sigma)} for sigma in SIGMAS],
    }
    arguments.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results["rows"]))


if __name__ == "__main__":
    main()

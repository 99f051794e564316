"""Trains the bundled model: NCSN++ on coloured handwritten digits. Resumes where it was stopped.

    python examples/digits/train.py --run runs/digits
    python examples/digits/train.py --data fashion --run runs/fashion --output runs/fashion/checkpoint   # a second one

Continuous VE training with the sigma^2-weighted denoising score matching loss (Song et al. 2021, equation 7): with
``x = x_0 + sigma z`` and log sigma uniform, the mean over dimensions of ``(sigma s(x, sigma) + z)^2``. When all
iterations are done the weights' moving average is written as a diffusers checkpoint, which `make model` exports.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler, UNet2DModel
from torch import Tensor, nn

from sde_onnx.export.checkpoints.unet2d import network_config, unet2d_key
from sde_onnx.export.network.fir import Downsample
from sde_onnx.export.network.ncsnpp import NCSNpp

from data import DATA, colour, load_ink
from training import follow, learning_rate

SIZE = 16
UNET = {
    "sample_size": SIZE,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "attention_head_dim": None,
    "mid_block_scale_factor": math.sqrt(2),
    "time_embedding_type": "fourier",
    "center_input_sample": True,
    "norm_eps": 1e-6,
    "norm_num_groups": None,
}
CONFIG = network_config(UNET)
SIGMA_MIN, SIGMA_MAX = 0.01, 20.0
NUM_SCALES, SNR = 1000, 0.16
ITERATIONS = 4700
BATCH, LEARNING_RATE, WARM_UP, EMA_DECAY, CLIP = 128, 1.5e-3, 300, 0.999, 1.0
SAVE_EVERY = 250
UNSEEN = 512   # held-out images of the loss in the log


class FilterThenPool(nn.Sequential):
    """FIR downsampling as a 3x3 filter and 2x2 means: the same numbers, a much faster backward pass on a CPU."""

    def __init__(self, channels: int) -> None:
        smooth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        line = torch.tensor([0.25, 0.5, 0.25])
        smooth.weight = nn.Parameter(torch.outer(line, line).expand(channels, 1, 3, 3).clone(), requires_grad=False)
        super().__init__(smooth, nn.AvgPool2d(2))


def build_network() -> NCSNpp:
    """The network, initialized as the original does: uniform by fan average, last layers of each branch zero."""
    network = NCSNpp(CONFIG)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            last = name.endswith((".conv1", ".attention.out")) or name.startswith("output_pyramid")
            nn.init.zeros_(module.weight) if last else nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network


def for_training(network: NCSNpp) -> NCSNpp:
    """A copy with the same parameters whose FIR downsampling trains faster."""
    fast = copy.deepcopy(network)
    for name, module in list(fast.named_modules()):
        if isinstance(module, Downsample):
            fast.set_submodule(name, FilterThenPool(module.channels))
    return fast.to(memory_format=torch.channels_last)


def loss_per_dimension(network: nn.Module, x0: Tensor, generator: torch.Generator) -> Tensor:
    """Mean of ``(sigma s + z)^2`` over a batch at random noise levels."""
    log_sigma = math.log(SIGMA_MIN) + math.log(SIGMA_MAX / SIGMA_MIN) * torch.rand(len(x0), generator=generator)
    sigma = log_sigma.exp()[:, None, None, None]
    z = torch.randn(x0.shape, generator=generator)
    return (sigma * network(x0 + sigma * z, sigma.flatten()) + z).square().mean()


def train(run: Path, iterations: int, data: str) -> NCSNpp:
    """Trains on ``data`` to ``iterations``, from the state in ``run`` if there is one; the averaged network."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = for_training(build_network())
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, LEARNING_RATE)
    average = copy.deepcopy(network)
    start = 0
    state_file = run / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        start = state["iteration"]
    run.mkdir(parents=True, exist_ok=True)

    ink, _ = load_ink(SIZE, held_out=False, data=data)
    unseen, _ = load_ink(SIZE, held_out=True, data=data)
    unseen = unseen[:UNSEEN]
    losses: list[float] = []
    clock = time.monotonic()
    for iteration in range(start, iterations):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(LEARNING_RATE, iteration, iterations, warm_up=WARM_UP)
        batch = ink[torch.randint(len(ink), (BATCH,), generator=generator)]
        loss = loss_per_dimension(network, colour(batch, generator), generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(trainable, CLIP)
        optimizer.step()
        follow(average, network, iteration, decay=EMA_DECAY)
        losses.append(loss.item())

        if (iteration + 1) % SAVE_EVERY == 0 or iteration + 1 == iterations:
            with torch.no_grad():
                fixed = torch.Generator().manual_seed(1)
                held_out = loss_per_dimension(average, colour(unseen, fixed), fixed).item()
            row = {
                "iteration": iteration + 1,
                "loss": sum(losses) / len(losses),
                "held_out_loss_of_average": held_out,
                "seconds_per_iteration": (time.monotonic() - clock) / len(losses),
            }
            with (run / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)
            torch.save(
                {
                    "network": network.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "generator": generator.get_state(),
                    "iteration": iteration + 1,
                },
                run / "state.tmp",
            )
            (run / "state.tmp").replace(state_file)
            losses, clock = [], time.monotonic()

    trained = NCSNpp(CONFIG)
    own = trained.state_dict().keys()
    trained.load_state_dict({key: value for key, value in average.state_dict().items() if key in own})
    return trained.eval()


def save_checkpoint(network: NCSNpp, folder: Path) -> None:
    """Writes the network as a diffusers ``ScoreSdeVePipeline``."""
    unet = UNet2DModel(**UNET)
    unet.load_state_dict({unet2d_key(name, CONFIG): value for name, value in network.state_dict().items()})
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=NUM_SCALES, snr=SNR, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    ScoreSdeVePipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/digits"), help="folder of the resumable state and log")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--data", choices=DATA, default=DATA[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "checkpoint", help="the checkpoint")
    arguments = parser.parse_args()
    save_checkpoint(train(arguments.run, arguments.iterations, arguments.data), arguments.output)


if __name__ == "__main__":
    main()

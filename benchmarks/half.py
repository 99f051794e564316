"""What float16 costs the score, and what keeping the image's resolution in float32 costs in multiplications, as JSON.

    python benchmarks/half.py --output benchmarks/results/half.json

Errors are those of graphs for CUDA with their kernels emulated on the CPU, of the bundled digits at 40 noise levels,
with images of its own and noise. The convolutions of the resolution that is kept are three in TensorFloat-32, which
tensor cores do at half the rate of float16: so each of their multiplications counts as six.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

import sde_onnx
from sde_onnx.export import from_diffusers
from sde_onnx.export.rewrites.emulation import emulated
from sde_onnx.export.to_onnx import build_model

from environment import ROOT, environment
from random_unets import NETWORKS, random_unet

CHECKPOINT = ROOT / "examples" / "digits" / "checkpoint"
LEVELS, IMAGES, DRAWS = 40, 8, 4
TIMES = 6   # three products, at half the rate


def errors(precision: str, images: np.ndarray) -> list[float]:
    """|emulated - float32| / |float32| at each of LEVELS noise levels, the smallest first."""
    model = build_model(from_diffusers(str(CHECKPOINT)).network, target="cuda", precision=precision)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(emulated(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    exact = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    rng, found, schedule = np.random.default_rng(0), [], exact.metadata.schedule
    for sigma in np.geomspace(schedule.sigma_min, schedule.sigma_max, LEVELS).astype(np.float32):
        off = of = 0.0
        for _ in range(DRAWS):
            x, sigmas = images + sigma * rng.standard_normal(images.shape, np.float32), np.full(len(images), sigma)
            expected = exact(x, sigmas)
            off += float(((session.run(["score"], {"x": x, "sigma": sigmas})[0] - expected) ** 2).sum())
            of += float((expected**2).sum())
        found.append((off / of) ** 0.5)
    return found


def top_share(name: str) -> float:
    """The share of a network's multiplications that read features of the image's resolution."""
    network = NETWORKS[name]
    with torch.device("meta"):
        unet = random_unet(network.size, network.channels, attention=network.attention, layers=network.layers,
                           kind=network.kind)
    counts = {True: 0, False: 0}

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Conv2d):
            x = inputs[0]
            is_top = x.shape[2] == network.size and x.shape[1] > 4
            counts[is_top] += result.numel() * module.weight[0].numel()
        else:
            counts[False] += result.numel() * module.in_features

    for module in unet.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad(), torch.device("meta"):
        unet(torch.empty(1, 3, network.size, network.size), torch.ones(1))
    return counts[True] / sum(counts.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the result as JSON")
    arguments = parser.parse_args()
    model = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    images = sde_onnx.sample(model, range(IMAGES))
    found = {precision: errors(precision, images) for precision in ("fp32", "fp16", "mixed")}
    for precision, each in found.items():
        print(f"{precision}: {each[0]:.1e}, {each[1]:.1e}, {each[2]:.1e} at the smallest, most {max(each):.1e}",
              flush=True)
    shares = {name: top_share(name) for name in ("32", "256", "1024")}
    for name, share in shares.items():
        print(f"{name}: {100 * share:.0f}% of the multiplications at the top, so {1 + (TIMES - 1) * share:.1f} times "
              "the work of float16", flush=True)
    if arguments.output:
        times = {name: 1 + (TIMES - 1) * share for name, share in shares.items()}
        rows = {"errors": found, "top_share": shares, "times": times}
        arguments.output.write_text(json.dumps({"environment": environment("python benchmarks/half.py"), **rows},
                                               indent=1) + "\n")


if __name__ == "__main__":
    main()

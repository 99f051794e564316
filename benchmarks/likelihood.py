"""Measures likelihoods of the bundled model: training digits, digits that it has not seen, noise; batches; tolerances.

    python benchmarks/likelihood.py --output benchmarks/results/likelihood.json
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

import sde_onnx
from sde_onnx.image_files import Images
from sde_onnx.likelihood import lowest_bits_per_dim
from sde_onnx.models import bundled_gradient

from environment import environment
from fidelity import real_digits

BATCHES = (1, 7, 64)
COMPARED, FINE = 64, 16   # images that are measured in each of the batch sizes, and with more steps


def groups(count: int, sigma_min: float) -> dict[str, Images]:
    """Images by kind, ``[N, C, H, W]``."""
    generator = np.random.default_rng(0)
    training, unseen = (real_digits(count, held_out=held_out)[0].transpose(0, 3, 1, 2) for held_out in (False, True))
    noisy = {f"{name} with noise of sigma_min": (digits[: count // 8] / 255 + sigma_min * generator.standard_normal(
        digits[: count // 8].shape)).astype(np.float32) for name, digits in (("training digits", training),
                                                                           ("unseen digits", unseen))}
    gray = generator.normal(128, 40, (count // 8, 3, 16, 16)).round().clip(0, 255).astype(np.uint8)
    return {
        "training digits": training,
        "unseen digits": unseen,
        **noisy,
        "uniform noise": generator.integers(0, 256, (count // 8, 3, 16, 16), np.uint8),
        "Gaussian noise, mean 128, deviation 40": gray,
    }


def summary(result: sde_onnx.Likelihood) -> dict[str, Any]:
    bits = result.bits_per_dim
    return {"images": len(bits), "mean": float(bits.mean()), "standard_error": float(bits.std(ddof=1) / len(bits)**0.5),
            "deviation": float(bits.std(ddof=1)), "evaluations": float(result.evaluations.mean()),
            "bits_per_dim": [round(value, 5) for value in bits.tolist()]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=512, help="digits of each kind; an eighth of it of noise")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    about = environment(shlex.join(["python", "benchmarks/likelihood.py", "--count", str(arguments.count)]))
    model = sde_onnx.load(bundled_gradient(), "cpu")
    images = groups(arguments.count, model.metadata.schedule.sigma_min)
    some = images["training digits"][:COMPARED]
    found = {size: sde_onnx.log_likelihood(model, some, probes=1, batch_size=size).bits_per_dim for size in BATCHES}
    apart = max(float(np.abs(bits - found[1]).max()) for bits in found.values())
    print(f"batches of {BATCHES}: {apart:.1e} bits/dim apart at most", flush=True)
    few = some[:FINE]
    finer = sde_onnx.log_likelihood(model, few, probes=1, steps=128).bits_per_dim
    steps = {}
    for count in (16, 32, 64):
        bits = sde_onnx.log_likelihood(model, few, probes=1, steps=count).bits_per_dim
        steps[str(count)] = float(np.abs(bits - finer).max())
    adaptive = sde_onnx.log_likelihood(model, few, probes=1, rtol=1e-5, atol=1e-5)
    steps["rtol 1e-5"] = float(np.abs(adaptive.bits_per_dim - finer).max())
    print("from 128 steps, at most:", steps, flush=True)
    rows = {}
    for name, group in images.items():
        rows[name] = summary(sde_onnx.log_likelihood(model, group, probes=1, progress=True))
        print(f"{name:40} {rows[name]['mean']:.3f} +- {rows[name]['standard_error']:.3f} bits/dim, deviation "
              f"{rows[name]['deviation']:.3f}, {rows[name]['images']} images", flush=True)
    floors = lowest_bits_per_dim(model.metadata.schedule.sigma_min)
    result = {"environment": about, "batches_apart": apart, "from_128_steps": steps,
              "evaluations_at_rtol_1e-5": float(adaptive.evaluations.mean()), "floors": floors, "groups": rows}
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

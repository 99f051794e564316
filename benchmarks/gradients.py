"""Times the score with its vector-Jacobian product: diffusers in PyTorch, and our gradient files. Interleaved.

    python benchmarks/gradients.py --networks 32 --turns 15 --output benchmarks/results/gradients.json
    python benchmarks/gradients.py --networks 32 --batches 1 4 8 --turns 11 \
        --output benchmarks/results/gradients_batches.json

What is compared, for accuracy too, is the product with a fixed v. The networks are those of benchmarks/evaluations.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from environment import environment
from evaluations import NETWORK_NAMES, inputs, make_once, prepare, stamp_of_exports, values
from timing import Subject, compare

REFERENCE = "diffusers eager fp32"
Array = NDArray[np.float32]


def vectors(x: Array) -> Array:
    """The v of every subject."""
    return np.random.default_rng(1).standard_normal(x.shape, np.float32)


def eager(unet_folder: str) -> Callable[[Array, Array], Array]:
    """torch's reverse mode on diffusers' own module; weights want no gradient."""
    import torch
    from diffusers import UNet2DModel

    unet = UNet2DModel.from_pretrained(unet_folder, low_cpu_mem_usage=False).eval().requires_grad_(False)

    def product(x: Array, sigma: Array) -> Array:
        tensor = torch.from_numpy(x).requires_grad_()
        score = unet(tensor, torch.from_numpy(sigma)).sample
        gradient, = torch.autograd.grad(score, tensor, torch.from_numpy(vectors(x)))
        return gradient.numpy()

    return product


def ours(path: str) -> Callable[[Array, Array], Array]:
    import sde_onnx

    model = sde_onnx.load(path, "cpu")
    return lambda x, sigma: model.vjp(x, sigma, vectors(x))[1]


def make_gradient(source: Path, path: Path, target: str) -> None:
    from sde_onnx.export.gradient.model_file import export_gradient

    export_gradient(source, path, target=target, force=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORK_NAMES, default=["32"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    about = environment(shlex.join(["python", "benchmarks/gradients.py", "--networks", *arguments.networks, "--batches",
                                    *map(str, arguments.batches), "--turns", str(arguments.turns)]))
    rows = []
    for name in arguments.networks:
        folder = prepare(name, [1])
        path, for_cpu = folder / "gradient.onnx", folder / "gradient-cpu.onnx"
        for file, target in ((path, "any"), (for_cpu, "cpu")):
            make_once(file, stamp_of_exports(), make_gradient, folder / "model.onnx", file, target)
        subjects = [Subject(REFERENCE, eager, (str(folder / "checkpoint" / "unet"),)),
                    Subject("sde-onnx", ours, (str(path),)), Subject("sde-onnx, --target cpu", ours, (str(for_cpu),))]
        for batch in arguments.batches:
            print(f"{name}, batch {batch}", flush=True)
            cases = inputs(folder, batch, np.random.default_rng(0))
            x, sigma = list(cases.values())[1]
            found = values(compare(subjects, x, sigma, cases, reference=REFERENCE, turns=arguments.turns))
            for subject, result in found.items():
                print(f"    {subject:32} {result['median'] * 1e3:9.1f} ms {result['ratio']:6.2f}x "
                      f"error {max(result['errors'].values(), default=0):.1e} peak {result['peak_mb'] or 0:.0f} MB")
            rows.append({"network": name, "batch": batch, "environment": about, "reference": REFERENCE,
                         "subjects": found})
    if arguments.output:
        arguments.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

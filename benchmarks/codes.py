"""Measures how well pictures come back from their latents, against the tolerance and the steps of the flow.

    python benchmarks/codes.py --output benchmarks/results/codes.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import sde_onnx

from environment import environment
from fidelity import real_digits

TOLERANCES, STEPS = (1e-3, 1e-4, 1e-5, 1e-6), (8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    about = environment("python benchmarks/codes.py")
    model = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    images = real_digits(8, held_out=False)[0].transpose(0, 3, 1, 2)
    rows = {}
    for name, how in {**{f"rtol {value:g}": {"rtol": value, "atol": value} for value in TOLERANCES},
                      **{f"{steps} steps": {"steps": steps} for steps in STEPS}}.items():
        again = sde_onnx.decode(model, sde_onnx.encode(model, images, **how), **how)
        difference = again - images.astype(np.float32) / 255
        rows[name] = {"rms": float(np.sqrt((difference**2).mean())), "largest": float(np.abs(difference).max())}
        print(name, rows[name], flush=True)
    if arguments.output:
        result = {"environment": about, "images": len(images), "rows": rows}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What half precision does to pictures: the same seeds of the digits in float32 and in bfloat16 or float16.

    python benchmarks/precision.py --output benchmarks/results/bf16.json
    python benchmarks/precision.py --provider cuda --output benchmarks/results/fp16.json

Samples under OpenVINO (bfloat16) or CUDA (float16) in both precisions, judges both sets, and compares
seed by seed. As a measure of what a Fréchet distance means, those of half of either set to the other float32 half, of
other seeds, stand beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from sde_onnx.files import sha256

from environment import environment
from fidelity import frechet_distance, real_digits
from judge import kept_judges, weights_of
from samples import cached_samples

HALF = {"openvino": "bf16", "cuda": "fp16"}
SOLVER = "sde-dpmpp-2m"
COMMAND = "python benchmarks/precision.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", choices=list(HALF), default="openvino")
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, help="the result as JSON")
    arguments = parser.parse_args()
    half = HALF[arguments.provider]
    pixels = {precision: cached_samples(arguments.count, solver=SOLVER, steps=arguments.steps,
                                        provider=arguments.provider, precision=precision,
                                        model_file=_model_file(arguments.provider, precision)).pixels
              for precision in ("fp32", half)}
    judge = kept_judges()[0]
    real, labels = real_digits(arguments.count, held_out=False)   # what the model was trained on; the judge was not
    real_features, real_p = judge.look(real)
    looks = {name: judge.look(pictures) for name, pictures in pixels.items()}
    classes = {name: p.argmax(axis=1) for name, (_, p) in looks.items()}
    difference = np.abs(pixels["fp32"].astype(int) - pixels[half])
    middle = arguments.count // 2
    sure = (looks["fp32"][1].max(axis=1) > 0.9)
    result = {
        "environment": environment(f"{COMMAND} --provider {arguments.provider} --count {arguments.count} --steps "
                                   f"{arguments.steps}"),
        "images": arguments.count,
        "solver": SOLVER,
        "steps": arguments.steps,
        "judge_weights": sha256(weights_of("digits")),
        "judge_accuracy_on_real": float((real_p.argmax(axis=1) == labels).mean()),
        f"frechet_{half}_fp32": frechet_distance(looks[half][0], looks["fp32"][0]),
        "frechet_to_other_seeds": {name: frechet_distance(features[:middle], looks["fp32"][0][middle:])
                                   for name, (features, _) in looks.items()},
        "frechet_to_real": {name: frechet_distance(features, real_features) for name, (features, _) in looks.items()},
        "recognised": {"real": float((real_p.max(axis=1) > 0.9).mean())}
        | {name: float((p.max(axis=1) > 0.9).mean()) for name, (_, p) in looks.items()},
        "same_class": float((classes["fp32"] == classes[half]).mean()),
        "same_class_where_sure": float((classes["fp32"] == classes[half])[sure].mean()),
        "mean_difference_of_255": float(difference.mean()),
    }
    print(json.dumps({key: value for key, value in result.items() if key != "environment"}, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def _model_file(provider: str, precision: str) -> Path | None:
    """The digits as the provider takes them; the bundled file if not given."""
    if provider != "cuda":
        return None
    from evaluations import prepare
    from gpu import export_for_cuda

    folder = prepare("digits", [1])
    export_for_cuda(folder)
    return folder / f"cuda-{precision}.onnx"


if __name__ == "__main__":
    main()

"""Measures the part of a sampling run that is not the network: `sde-onnx bench` on two models, as JSON.

    python benchmarks/loop.py --output benchmarks/results/loop.json

The 256x256 network is that of benchmarks/evaluations.py, which makes it; the digits are the bundled model.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import sde_onnx
from sde_onnx.benchmark import benchmark

from environment import environment
from evaluations import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="the result as JSON")
    arguments = parser.parse_args()
    rows = []
    for name, path, batch in (("digits", sde_onnx.bundled_model(), 16), ("256", prepare("256", [1]) / "model.onnx", 1)):
        for provider, precision in (("cpu", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")):
            result = benchmark(sde_onnx.load(path, provider, precision=precision), batch_size=batch, seconds=20)
            rows.append({"network": name, "provider": provider, "precision": precision, "loop_share": result.loop_share,
                         "evaluation": result.evaluation, **asdict(result)})
            print(f"{name}, batch {batch}, {provider} {precision}: {result.evaluation * 1e3:.1f} ms an evaluation, "
                  f"{100 * result.loop_share:.2f}% outside the network", flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        about = environment("python benchmarks/loop.py")
        arguments.output.write_text(json.dumps({"environment": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

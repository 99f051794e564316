"""Runs our files under older and other runtimes, each in an environment of its own: ``make compatibility``.

    PYTHONPATH=tests:benchmarks python -m compatibility --output benchmarks/results/compatibility.json

What they should make is what this environment makes. Environments are kept in build/compatibility.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import sde_onnx
from sde_onnx.export import export, from_diffusers
from sde_onnx.export.embedding.loop import embed
from sde_onnx.export.gradient.model_file import export_gradient

from compatibility.run_files import OnnxRuntime, driven
from environment import environment

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "compatibility"
HERE = Path(__file__).parent
SEEDS = np.array([0, 7, 2**31 - 1])
LONG_SEEDS = np.array([-1, 2**63 - 1, -(2**63)])   # 64 bits
STEPS = 12
RUNTIMES = {   # what is run, and what is installed for it
    "ONNX Runtime 1.17": ("onnxruntime", ["onnxruntime==1.17.3", "numpy<2"]),
    "ONNX Runtime 1.19": ("onnxruntime", ["onnxruntime==1.19.2"]),
    "ONNX Runtime 1.21": ("onnxruntime", ["onnxruntime==1.21.1"]),
    "ONNX Runtime, newest": ("onnxruntime", ["onnxruntime"]),
    "OpenVINO": ("openvino", ["openvino"]),
    "onnxruntime-node": ("node", ["onnxruntime-node"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the result as JSON")
    arguments = parser.parse_args()
    files = WORK / "files"
    half_weights = make_files(files)
    rows: dict[str, Any] = {}
    for title, (kind, packages) in RUNTIMES.items():
        folder = WORK / title.lower().replace(" ", "-").replace(",", "")
        command = node(folder, packages) if kind == "node" else python(folder, kind, packages)
        result = subprocess.run([*command, str(files)], cwd=folder, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"{title}: {result.stderr[-2000:]}")
        rows[title] = json.loads(result.stdout) | {"lines_on_stderr": len(result.stderr.splitlines())}
        print(title, json.dumps(rows[title]), flush=True)
    result_of_run = {"environment": environment("make compatibility"), "half_weights": half_weights, "runtimes": rows}
    arguments.output.write_text(json.dumps(result_of_run, indent=1) + "\n")


def make_files(folder: Path) -> dict[str, float]:
    """Files of every kind, with what they take and what they make here; what weights in float16 save and cost."""
    folder.mkdir(parents=True, exist_ok=True)
    model, gradient, half = (folder / f"{name}.onnx" for name in ("model", "gradient", "half"))
    checkpoint = from_diffusers(ROOT / "examples" / "digits" / "checkpoint")
    export(checkpoint, model, force=True)
    about_half = export(checkpoint, half, weights="fp16", force=True)
    export_gradient(model, gradient, force=True)
    metadata = sde_onnx.read_metadata(model)
    rng = np.random.default_rng(0)
    x, v = (rng.standard_normal((2, *metadata.image_shape)).astype(np.float32) for _ in range(2))
    scored = {"x": x, "sigma": np.array([0.1, 3.0], np.float32)}
    inputs: dict[str, Mapping[str, Any]] = {"model": scored, "gradient": scored | {"v": v}}
    for name, solver, seeds, how in (("evaluation", None, SEEDS, {"kind": "evaluation"}),
                                     ("sampler", None, SEEDS, {}), ("sampler, pc", "pc", SEEDS, {}),
                                     ("sampler, steps as input", "heun", SEEDS, {"max_steps": 20}),
                                     ("sampler, fp16 weights", None, SEEDS, {}),
                                     ("sampler, seeds of 64 bits", None, LONG_SEEDS, {})):
        path = folder / f"{name}.onnx"
        sampling = sde_onnx.resolve(metadata, solver=solver, steps=STEPS)
        embed(half if "fp16" in name else model, path, sampling, force=True, **how)
        nothing = np.zeros((len(seeds), *metadata.image_shape), np.float32)
        inputs[name] = ({"seed": seeds} | ({"steps": np.array([STEPS])} if "max_steps" in how else {}) |
                        ({"x": nothing, "memory0": nothing} if "kind" in how else {}))
    for name, feeds in inputs.items():
        session = OnnxRuntime(folder / f"{name}.onnx")
        outputs = {"model": ["score"], "gradient": ["score", "vjp"]}.get(name, ["image"])
        made = [driven(session, feeds)] if name == "evaluation" else session.run(outputs, dict(feeds))
        results = dict(zip(outputs, made, strict=True))
        np.savez(folder / f"{name}.npz", **{f"in_{key}": value for key, value in feeds.items()},
                 **{f"out_{key}": value for key, value in results.items()})
        is_sampler = name.startswith("sampler")
        (folder / f"{name}.json").write_text(json.dumps({
            "inputs": {key: [str(number) for number in value.ravel()] for key, value in feeds.items()
                       } if is_sampler else {},
            "image": results["image"].ravel().tolist() if is_sampler else None}))
    (folder / "cases.json").write_text(json.dumps(list(inputs)))
    return {"bytes": half.stat().st_size, "bytes_fp32": model.stat().st_size,
            "relative_error": max(about_half.parity.values())}


def python(folder: Path, kind: str, packages: list[str]) -> list[str]:
    """A Python environment with these packages alone, and how files are run in it."""
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "installed").touch()
    return [str(folder / "bin" / "python"), str(HERE / "run_files.py"), kind]


def node(folder: Path, packages: list[str]) -> list[str]:
    """A folder with these npm packages, and how files are run in it; their scripts would fetch CUDA libraries."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text("{}\n")
    subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", *packages],
                   cwd=folder, check=True)
    return ["node", str(HERE / "run_files.mjs")]


if __name__ == "__main__":
    main()

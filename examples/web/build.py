"""Builds the page into a folder that any static host can serve.

    python examples/web/build.py build/web          after npm ci in examples/web
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx

import sde_onnx
from sde_onnx.export.embedding.loop import embed
from sde_onnx.runtime.metadata import KEY, NOISE_KEY, SAMPLER_KEY

HERE = Path(__file__).parent
RUNTIME = HERE / "node_modules" / "onnxruntime-web" / "dist"
SAMPLERS = (("sde-dpmpp-2m", 25, 100), ("pc", 100, 200))   # steps, and the most that may be asked for


def choice(path: Path) -> dict[str, Any]:
    """What the page wants to know of an evaluation file, off its metadata."""
    properties = {item.key: item.value for item in onnx.load(path).metadata_props}
    metadata = sde_onnx.ModelMetadata.from_json(properties[KEY], name=path.name)
    about = json.loads(properties[SAMPLER_KEY])
    return {"file": path.name, "labels": metadata.labels, "label_optional": metadata.label_optional,
            "noise_nodes": properties[NOISE_KEY].splitlines(),
            **{key: about[key] for key in ("solver", "operator", "min_steps", "steps", "max_steps")}}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    if not RUNTIME.is_dir():
        sys.exit(f"{RUNTIME} is missing: npm ci in {HERE}")
    folder = Path(sys.argv[1])
    (folder / "ort").mkdir(parents=True, exist_ok=True)
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm", "ort.webgpu.min.mjs",
                 "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"):
        shutil.copy(RUNTIME / name, folder / "ort" / name)
    for name in ("index.html", "page.js", "sampler.js"):
        shutil.copy(HERE / name, folder / name)
    choices, metadata = [], sde_onnx.read_metadata(sde_onnx.bundled_model())
    for solver, steps, max_steps in SAMPLERS:
        file = f"{solver}.onnx"
        sampling = sde_onnx.resolve(metadata, solver=solver, steps=steps)
        embed(sde_onnx.bundled_model(), folder / file, sampling, max_steps=max_steps, kind="evaluation",
              operator="mask", force=True)
        choices.append(choice(folder / file))
    (folder / "samplers.json").write_text(json.dumps(choices, indent=1) + "\n")


if __name__ == "__main__":
    main()

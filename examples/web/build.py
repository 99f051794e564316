"""Builds the page into a folder that any static host can serve.

    python examples/web/build.py build/web          after npm ci in examples/web
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import sde_onnx
from sde_onnx.export.embed import embed

HERE = Path(__file__).parent
RUNTIME = HERE / "node_modules" / "onnxruntime-web" / "dist"
SAMPLERS = (("sde-dpmpp-2m", 12), ("sde-dpmpp-2m", 25), ("sde-dpmpp-2m", 50), ("pc", 100))
SELECTED = ("sde-dpmpp-2m", 25)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    if not RUNTIME.is_dir():
        sys.exit(f"{RUNTIME} is missing: npm ci in {HERE}")
    folder = Path(sys.argv[1])
    (folder / "ort").mkdir(parents=True, exist_ok=True)
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(RUNTIME / name, folder / "ort" / name)
    for name in ("index.html", "page.js", "sampler.js"):
        shutil.copy(HERE / name, folder / name)
    choices = []
    for solver, steps in SAMPLERS:
        file = f"{solver}-{steps}.onnx"
        embed(sde_onnx.bundled_model(), folder / file, solver=solver, steps=steps, kind="step", force=True)
        choices.append({"file": file, "solver": solver, "steps": steps, "selected": (solver, steps) == SELECTED})
    (folder / "samplers.json").write_text(json.dumps(choices, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Samples of the bundled digits, kept in build/samples: a measurement that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sde_onnx
from sde_onnx.files import replacing, sha256
from sde_onnx.generate.sample import batches_of
from sde_onnx.images import to_uint8
from sde_onnx.solvers.plan import Plan, run

from environment import ROOT

__all__ = ["Samples", "cached_samples"]

CHUNK = 256   # images of a file
BATCH = 64    # images at a time: their activations stay in the cache of a core


@dataclass(frozen=True)
class Samples:
    """Images and what they took."""

    pixels: NDArray[np.uint8]   # [N, H, W, C]
    nfe: float                  # evaluations an image, averaged over chunks


def cached_samples(
    count: int,
    *,
    solver: str,
    steps: int | None,
    provider: str,
    precision: str = "fp32",
    model_file: Path | None = None,
    variant: tuple[str, Plan] | None = None,
    first: int = 0,
    **options: Any,
) -> Samples:
    """Images of the seeds from ``first`` on, in whole chunks; sampled now, where an earlier call has not.

    Of the bundled digits, or of the model in another file. A variant is a plan that takes the place of the solver's,
    under a name.
    """
    path = model_file or sde_onnx.bundled_model()
    metadata = sde_onnx.read_metadata(path)
    sampling = sde_onnx.resolve(metadata, solver=solver, steps=steps, options=options)
    settings = [sha256(path), sampling.to_json(), provider, precision, CHUNK, *(variant[:1] if variant else ())]
    loop = None if variant is None else lambda rows, score, noise: run(variant[1], score, noise)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "samples" / f"{solver}-{sampling.steps}-{provider}-{precision}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    model = None
    pixels, nfe = [], []
    for start in range(first, first + count, CHUNK):
        chunk = folder / f"{start}.npz"
        if not chunk.exists():
            model = model or sde_onnx.load(path, provider, precision=precision)
            last = []
            for batch in batches_of(model, range(start, start + CHUNK), sampling, labels=None, batch_size=BATCH,
                                    loop=loop):
                *_, step = batch.steps
                last.append(step)
            with replacing(chunk) as temporary, temporary.open("wb") as file:
                np.savez(file, pixels=np.concatenate([to_uint8(step.x_mean) for step in last]),
                         nfe=max(step.nfe for step in last))
            print(f"{folder.name} {start}", flush=True)
        with np.load(chunk) as held:
            pixels.append(held["pixels"])
            nfe.append(int(held["nfe"]))
    return Samples(np.concatenate(pixels)[:count], float(np.mean(nfe)))

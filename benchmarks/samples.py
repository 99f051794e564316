"""Samples of the bundled digits, kept in build/samples: a measurement that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sde_onnx
from sde_onnx.files import sha256
from sde_onnx.images import to_uint8

from environment import ROOT

__all__ = ["cached_samples"]

CHUNK = 256   # images of a file, and at a time


def cached_samples(
    count: int, *, solver: str, steps: int, provider: str, precision: str = "fp32", first: int = 0, **options: Any
) -> NDArray[np.uint8]:
    """Images of the seeds from ``first`` on, ``[N, H, W, C]``."""
    path = sde_onnx.bundled_model()
    settings = [sha256(path), solver, steps, provider, precision, options, CHUNK]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "samples" / f"{solver}-{steps}-{provider}-{precision}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    model = None
    parts = []
    for start in range(first, first + count, CHUNK):
        chunk = folder / f"{start}.npy"
        if not chunk.exists():
            model = model or sde_onnx.load(path, provider, precision=precision)
            seeds = range(start, start + CHUNK)
            images = sde_onnx.sample(model, seeds, steps, solver=solver, batch_size=CHUNK, **options)
            temporary = chunk.with_suffix(".part.npy")
            np.save(temporary, to_uint8(images))
            temporary.rename(chunk)
            print(f"{folder.name} {start}", flush=True)
        parts.append(np.load(chunk))
    return np.concatenate(parts)[:count]

"""Checkpoints exported once and found again."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

from sde_onnx.export.checkpoints.diffusers import find_files, from_diffusers
from sde_onnx.export.to_onnx import REVISION, export
from sde_onnx.files import cache_folder, sha256
from sde_onnx.runtime.metadata import FORMAT

__all__ = ["cached_export"]


def cached_export(source: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the model file of a checkpoint, exporting it if this was not done before.

    A file is known by the contents of the checkpoint, the metadata's format, the graph's revision and the version of
    sde-onnx, not by its name.

    Args:
        source: see :func:`sde_onnx.export.checkpoints.diffusers.from_diffusers`.
        cache_dir: the folder of the cache; the user's cache folder if not given.

    Raises:
        CheckpointError, ParityError, OutputError: see :func:`sde_onnx.export.to_onnx.export`.
    """
    files = find_files(source)
    parts = [sha256(path) for path in (files.weights, files.unet_config, files.scheduler_config) if path is not None]
    digest = hashlib.sha256("\n".join([*parts, str(FORMAT), str(REVISION), version("sde-onnx")]).encode()).hexdigest()
    path = (Path(cache_dir) if cache_dir else cache_folder()) / f"{digest[:24]}.onnx"
    if not path.is_file():
        export(from_diffusers(source), path, force=True)   # whoever came first meanwhile wrote the same file
    return path

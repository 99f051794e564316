"""Checkpoints exported once and found again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sde_onnx.export.checkpoints import digest_of
from sde_onnx.export.checkpoints.diffusers import find_files, from_diffusers, from_objects
from sde_onnx.export.gradient.model_file import export_gradient
from sde_onnx.export.to_onnx import REVISION, export
from sde_onnx.files import cache_folder, replacing, sha256
from sde_onnx.progress import QUIET, tqdm
from sde_onnx.runtime.metadata import FORMAT

__all__ = ["cached_export", "cached_export_of_objects", "cached_gradient"]


def cached_export(source: str, cache_dir: str | os.PathLike[str] | None = None, **where: Any) -> Path:
    """Returns the model file of a checkpoint, exporting it if this was not done before.

    A file is known by the contents of the checkpoint, the metadata's format, the graph's revision and the version of
    sde-onnx, not by its name. One that is not what was written is made again.

    Args:
        source: see :func:`sde_onnx.export.checkpoints.diffusers.from_diffusers`.
        cache_dir: the folder of the cache; the user's cache folder if not given.
        where: see :func:`sde_onnx.export.checkpoints.diffusers.find_files`.

    Raises:
        CheckpointError, ParityError, OutputError: see :func:`sde_onnx.export.to_onnx.export`.
    """
    if cache_dir is not None:   # of downloads too
        where |= {"cache_dir": cache_dir}
    files = find_files(source, **where)
    parts = [sha256(path) for path in (files.weights, files.unet_config, files.scheduler_config) if path is not None]
    return _cached(parts, lambda path: export(from_diffusers(source, **where), path, force=True), cache_dir)


def cached_export_of_objects(unet: Any, scheduler: Any, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The same of diffusers' own objects, which are known by their weights and configs."""
    configs = [json.dumps(dict(part.config), sort_keys=True, default=str) for part in (unet, scheduler)]
    parts = [digest_of(unet.state_dict()), *configs]
    return _cached(parts, lambda path: export(from_objects(unet, scheduler), path, force=True), cache_dir)


def cached_gradient(model: Path, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the gradient file of a model file, making it if this was not done before.

    Raises:
        ModelFileError, GradientError, ParityError, OutputError: see :func:`export_gradient`.
    """
    return _cached(["gradient", sha256(model)], lambda path: export_gradient(model, path, force=True), cache_dir)


def _cached(parts: list[str], make: Callable[[Path], object], cache_dir: str | os.PathLike[str] | None) -> Path:
    digest = hashlib.sha256("\n".join([*parts, str(FORMAT), str(REVISION), version("sde-onnx")]).encode()).hexdigest()
    path = (Path(cache_dir) if cache_dir else cache_folder()) / f"{digest[:24]}.onnx"
    known = path.with_suffix(".sha256")   # of the file as it was written
    if not (path.is_file() and known.is_file() and known.read_bytes() == sha256(path).encode()):
        with tqdm(total=1, desc="exporting the network, once", bar_format="{desc}: {elapsed}",
                  disable=QUIET.get() or None) as bar:
            make(path)   # whoever came first meanwhile wrote the same file
            with replacing(known) as temporary:
                temporary.write_text(sha256(path))
            bar.update()
    return path

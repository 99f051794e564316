"""Score-SDE (NCSN++) models as one ONNX file each, and their samplers without PyTorch.

    model = sde_onnx.load("m.onnx")
    images = sde_onnx.sample(model, seeds=range(4))                  # float32 [4, C, H, W] in [0, 1]

Names are imported when they are first used, so that ``sde-onnx --help`` waits for neither numpy nor ONNX Runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sde_onnx.errors import SdeOnnxError
    from sde_onnx.generate.sample import sample, sample_batches
    from sde_onnx.models import bundled_model
    from sde_onnx.pipeline import ImagePipelineOutput, ScoreSdeVePipeline
    from sde_onnx.runtime.metadata import ModelMetadata
    from sde_onnx.runtime.score_model import ScoreModel, load, read_metadata
    from sde_onnx.solvers.catalogue import Sampling, resolve
    from sde_onnx.solvers.schedule import VeSchedule

__all__ = [
    "ImagePipelineOutput",
    "ModelMetadata",
    "Sampling",
    "ScoreModel",
    "ScoreSdeVePipeline",
    "SdeOnnxError",
    "VeSchedule",
    "bundled_model",
    "load",
    "read_metadata",
    "resolve",
    "sample",
    "sample_batches",
]

_HOMES = {
    "ImagePipelineOutput": "pipeline",
    "ModelMetadata": "runtime.metadata",
    "Sampling": "solvers.catalogue",
    "ScoreModel": "runtime.score_model",
    "ScoreSdeVePipeline": "pipeline",
    "SdeOnnxError": "errors",
    "VeSchedule": "solvers.schedule",
    "bundled_model": "models",
    "load": "runtime.score_model",
    "read_metadata": "runtime.score_model",
    "resolve": "solvers.catalogue",
    "sample": "generate.sample",
    "sample_batches": "generate.sample",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sde_onnx' has no attribute {name!r}")
    return getattr(import_module(f"sde_onnx.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

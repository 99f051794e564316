"""Score-SDE (NCSN++) models as one ONNX file each, and their samplers without PyTorch.

    model = sde_onnx.load("m.onnx")
    images = sde_onnx.sample(model, seeds=range(4))                  # float32 [4, C, H, W] in [0, 1]

Names are imported when they are first used, so that ``sde-onnx --help`` waits for neither numpy nor ONNX Runtime.

ONNX Runtime's packages send telemetry by default. It is turned off here: set ``ORT_DISABLE_TELEMETRY=0`` to keep it.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

# It sends what it knows of a model to its makers, leaves files in the home and the working folder, and warns where it
# cannot. It is asked about when ONNX Runtime is imported, which is after this line and too early for its own functions.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from sde_onnx.codes import decode as decode
    from sde_onnx.codes import edit as edit
    from sde_onnx.codes import encode as encode
    from sde_onnx.codes import interpolate as interpolate
    from sde_onnx.errors import SdeOnnxError as SdeOnnxError
    from sde_onnx.generate.sample import sample as sample
    from sde_onnx.generate.sample import sample_batches as sample_batches
    from sde_onnx.image_files import read_images as read_images
    from sde_onnx.likelihood import Likelihood as Likelihood
    from sde_onnx.likelihood import log_likelihood as log_likelihood
    from sde_onnx.models import bundled_classifier as bundled_classifier
    from sde_onnx.models import bundled_gradient as bundled_gradient
    from sde_onnx.models import bundled_model as bundled_model
    from sde_onnx.pipeline import ImagePipelineOutput as ImagePipelineOutput
    from sde_onnx.pipeline import ScoreSdeVePipeline as ScoreSdeVePipeline
    from sde_onnx.restoration import restore as restore
    from sde_onnx.runtime.classifier import load_classifier as load_classifier
    from sde_onnx.runtime.load import load as load
    from sde_onnx.runtime.load import read_metadata as read_metadata
    from sde_onnx.runtime.metadata import ModelMetadata as ModelMetadata
    from sde_onnx.runtime.score_model import ScoreModel as ScoreModel
    from sde_onnx.solvers.catalogue import Sampling as Sampling
    from sde_onnx.solvers.catalogue import resolve as resolve
    from sde_onnx.solvers.schedule import VeSchedule as VeSchedule

_HOMES = {   # of the public names
    "codes": ["decode", "edit", "encode", "interpolate"],
    "errors": ["SdeOnnxError"],
    "generate.sample": ["sample", "sample_batches"],
    "image_files": ["read_images"],
    "likelihood": ["Likelihood", "log_likelihood"],
    "models": ["bundled_classifier", "bundled_gradient", "bundled_model"],
    "pipeline": ["ImagePipelineOutput", "ScoreSdeVePipeline"],
    "restoration": ["restore"],
    "runtime.classifier": ["load_classifier"],
    "runtime.metadata": ["ModelMetadata"],
    "runtime.load": ["load", "read_metadata"],
    "runtime.score_model": ["ScoreModel"],
    "solvers.catalogue": ["Sampling", "resolve"],
    "solvers.schedule": ["VeSchedule"],
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"sde_onnx.{home}"), name)
    raise AttributeError(f"module 'sde_onnx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

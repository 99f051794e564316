"""Checkpoints to model files. Needs the export extra: torch and onnx are used here and nowhere else.

    export(from_diffusers("path/or/hub-id"), "m.onnx")
"""

from sde_onnx.export.checkpoints.diffusers import from_diffusers
from sde_onnx.export.to_onnx import export

__all__ = ["export", "from_diffusers"]

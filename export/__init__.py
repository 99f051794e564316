"""Checkpoints to model files. Needs the export extra: torch and onnx are used here and nowhere else.

    export(from_diffusers("path/or/hub-id"), "m.onnx")
    export(from_score_sde("checkpoint_24.pth", "cifar10_ncsnpp_continuous"), "m.onnx")
    export(from_edm("network-snapshot-200000.pkl"), "m.onnx")
    export(module, "m.onnx", schedule=VeSchedule(0.01, 50.0), image_shape=(3, 32, 32), predicts="noise")
"""

from sde_onnx.extras import require_export

require_export()   # before the imports below fail one by one

from sde_onnx.export.checkpoints.diffusers import from_diffusers  # noqa: E402
from sde_onnx.export.checkpoints.edm import from_edm  # noqa: E402
from sde_onnx.export.checkpoints.module import from_module  # noqa: E402
from sde_onnx.export.checkpoints.score_sde import from_score_sde  # noqa: E402
from sde_onnx.export.to_onnx import export  # noqa: E402

__all__ = ["export", "from_diffusers", "from_edm", "from_module", "from_score_sde"]

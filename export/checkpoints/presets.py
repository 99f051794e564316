"""The original's configs of its variance-exploding models, by the names of their files.

Source: ``configs/ve`` of score_sde_pytorch (Song et al. 2021, appendix H): what shapes the network and its sampling;
what only trains it is left out. The file of the Church model says sigma_max 380, as do two hub models that were trained
with 348; a checkpoint of one's own may differ too, so every number can be replaced at export.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PRESETS"]

Tree = dict[str, dict[str, Any]]

NCSNPP = {
    "name": "ncsnpp", "scale_by_sigma": True, "nonlinearity": "swish", "conditional": True, "resamp_with_conv": True,
    "fir": True, "fir_kernel": (1, 3, 3, 1), "skip_rescale": True, "resblock_type": "biggan",
    "progressive_combine": "sum", "attn_resolutions": (16,), "sigma_min": 0.01, "embedding_type": "fourier",
}
RESIDUAL = NCSNPP | {"progressive": "none", "progressive_input": "residual", "nf": 128, "ch_mult": (1, 2, 2, 2),
                     "num_res_blocks": 4, "num_scales": 1000}
SKIP_256 = NCSNPP | {"progressive": "output_skip", "progressive_input": "input_skip", "nf": 128,
                     "ch_mult": (1, 1, 2, 2, 2, 2, 2), "num_res_blocks": 2, "num_scales": 2000}
SKIP_1024 = SKIP_256 | {"nf": 16, "ch_mult": (1, 2, 4, 8, 16, 32, 32, 32), "num_res_blocks": 1}
DDPM = {
    "name": "ddpm", "scale_by_sigma": True, "nonlinearity": "swish", "conditional": True, "resamp_with_conv": True,
    "nf": 128, "ch_mult": (1, 2, 2, 2), "num_res_blocks": 2, "attn_resolutions": (16,), "sigma_min": 0.01,
    "num_scales": 1000,
}


def _tree(model: Mapping[str, Any], *, image_size: int, sigma_max: float, snr: float, **options: Any) -> Tree:
    return {
        "model": {**model, "sigma_max": sigma_max, **options},
        "data": {"image_size": image_size, "num_channels": 3, "centered": False},
        "sampling": {"snr": snr, "n_steps_each": 1},
        "training": {"sde": "vesde"},
    }


PRESETS: dict[str, Tree] = {
    "cifar10_ncsnpp": _tree(RESIDUAL, image_size=32, sigma_max=50, snr=0.16, embedding_type="positional"),
    "cifar10_ncsnpp_continuous": _tree(RESIDUAL, image_size=32, sigma_max=50, snr=0.16),
    "cifar10_ncsnpp_deep_continuous": _tree(RESIDUAL, image_size=32, sigma_max=50, snr=0.16, num_res_blocks=8),
    "cifar10_ddpm": _tree(DDPM, image_size=32, sigma_max=50, snr=0.16),
    "celeba_ncsnpp": _tree(RESIDUAL, image_size=64, sigma_max=90, snr=0.17, embedding_type="positional"),
    "bedroom_ncsnpp_continuous": _tree(SKIP_256, image_size=256, sigma_max=378, snr=0.075),
    "church_ncsnpp_continuous": _tree(SKIP_256, image_size=256, sigma_max=380, snr=0.075),
    "celebahq_256_ncsnpp_continuous": _tree(SKIP_256, image_size=256, sigma_max=348, snr=0.075),
    "ffhq_256_ncsnpp_continuous": _tree(SKIP_256, image_size=256, sigma_max=348, snr=0.075),
    "celebahq_ncsnpp_continuous": _tree(SKIP_1024, image_size=1024, sigma_max=1348, snr=0.15),
    "ffhq_ncsnpp_continuous": _tree(SKIP_1024, image_size=1024, sigma_max=1348, snr=0.15),
}

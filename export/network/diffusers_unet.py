"""diffusers' ``UNet2DModel`` of any blocks, as its ``ScoreSdeVePipeline`` calls it: sigma is its timestep."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sde_onnx.errors import CheckpointError
from sde_onnx.export.network.score_network import ScoreNetwork

__all__ = ["DiffusersUnet"]


class DiffusersUnet(ScoreNetwork):
    """diffusers' module.

    Args:
        unet: a ``UNet2DModel`` in evaluation mode.

    Raises:
        CheckpointError: it is one that the pipeline cannot sample, or labels are not whole numbers.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        config = unet.config
        size = config.sample_size
        if config.in_channels != config.out_channels or size is None:
            raise CheckpointError(f"UNet2DModel takes {config.in_channels} channels of size {size} and gives "
                                  f"{config.out_channels}, expected as many of a known size")
        if config.time_embedding_type == "learned":
            raise CheckpointError("UNet2DModel option time_embedding_type = 'learned' has an entry for each whole "
                                  "number: no sigma between them can be asked for")
        if config.class_embed_type is not None:
            raise CheckpointError(f"UNet2DModel option class_embed_type = {config.class_embed_type!r} is not "
                                  "supported, expected num_class_embeds alone")
        self.unet = unet
        height, width = (size, size) if isinstance(size, int) else size
        self.image_shape = (config.in_channels, height, width)
        self.labels = config.num_class_embeds or 0

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        score: Tensor = self.unet(x, sigma, class_labels=label, return_dict=False)[0]
        return score

    def summary(self) -> dict[str, object]:
        config = self.unet.config
        return {"class": "UNet2DModel", "channels": list(config.block_out_channels),
                "blocks": [*config.down_block_types, *config.up_block_types]}

"""EDM's networks: NCSN++ or DDPM++ under a preconditioning, in the score of data in [0, 1].

EDM's data are in [-1, 1], so ``x = 2 x01 - 1``, ``sigma = 2 sigma01``. With F the network and d the data's deviation,

    EDMPrecond    sigma01 s01 = d F(x / r, ln(sigma) / 4) / r - sigma x / r^2        r = sqrt(sigma^2 + d^2)
    VEPrecond     sigma01 s01 = F(x, ln sigma01)

where the denoised image D of the paper is ``x + sigma01 s01 sigma``. So no difference of nearly equal images is taken.

Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", table 1 and section 5.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sde_onnx.export.network.ncsnpp import NCSNpp
from sde_onnx.export.network.score_network import ScoreNetwork

__all__ = ["EdmNetwork", "Preconditioning"]

Preconditioning = Literal["EDMPrecond", "VEPrecond"]


class EdmNetwork(ScoreNetwork):
    """A network of EDM.

    Args:
        network: F, with ``center_input`` and ``scale_by_sigma`` off, which stand in the preconditioning. Its Fourier
            frequencies are those of ln sigma: a quarter of EDM's, or for VEPrecond EDM's own.
        preconditioning: EDM's name of it.
        sigma_data: d, deviation of the data in [-1, 1]; of EDMPrecond.
    """

    def __init__(self, network: NCSNpp, preconditioning: Preconditioning, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning
        self.sigma_data = sigma_data
        self.image_shape, self.labels, self.label_optional = network.image_shape, network.labels, network.labels > 0

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        x, each = 2 * x - 1, sigma[:, None, None, None]
        if self.preconditioning == "VEPrecond":
            return self.network.features(x, self._position(sigma), label) / each
        variance = (2 * each) ** 2 + self.sigma_data**2
        out = self.network.features(x / variance**0.5, self._position(2 * sigma), label)
        return self.sigma_data / variance**0.5 * out / each - 2 * x / variance

    def summary(self) -> dict[str, object]:
        return {"class": self.preconditioning, "sigma_data": self.sigma_data} | self.network.config.to_json()

    def _position(self, sigma: Tensor) -> Tensor:
        """What the embedding takes: sigma, whose logarithm the Fourier features take, or EDM's number for it."""
        if self.network.config.embedding == "fourier":
            return sigma
        log = torch.log(sigma)
        return log if self.preconditioning == "VEPrecond" else log / 4

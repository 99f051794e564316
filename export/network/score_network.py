"""What can be exported: a module that gives the score of noisy images with data in [0, 1].

Other conventions are turned into that one, with the network's own range of data ``[lo, hi]`` and ``w = hi - lo``:

    x_net = lo + w x            sigma_net = w sigma
    from the score              s = w F(x_net, sigma_net)
    from the noise              s = -F(x_net, sigma_net) / sigma
    from the denoised image     s = ((F(x_net, sigma_net) - lo) / w - x) / sigma^2

Source: Vincent 2011, "A connection between score matching and denoising autoencoders"; Song et al. 2021, section 2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sde_onnx.errors import ConfigError, first_line

__all__ = ["ConvertedNetwork", "Predicts", "ScoreNetwork", "check_score_network"]

Predicts = Literal["score", "noise", "denoised"]
SAME = 1e-4   # relative difference that rounding explains, of one image in two batches


class ScoreNetwork(nn.Module, ABC):
    """``(x [N, C, H, W], sigma [N]) -> score``; with ``labels`` a third argument, ``label`` int64 ``[N]``.

    Attributes:
        image_shape: ``(C, H, W)``.
        labels: classes that a label chooses from; 0: the network takes none.
        label_optional: whether a label of -1 is no class, and allowed.
        gives_images: whether it was trained to give the denoised image, from which the score is reckoned.
    """

    image_shape: tuple[int, int, int]
    labels: int = 0
    label_optional: bool = False
    gives_images: bool = False

    @abstractmethod
    def summary(self) -> dict[str, object]:
        """What the file says of the network, as JSON values."""


class ConvertedNetwork(ScoreNetwork):
    """Any module, in whatever it predicts and whatever range its data have.

    Args:
        module: ``(x, sigma)`` or, with labels, ``(x, sigma, label)`` to an array of x's shape, in the network's units.
        image_shape: ``(C, H, W)``.
        predicts: what it returns.
        data_range: of the images that it was trained on.
        labels: classes that a label chooses from, 0 for none.

    Raises:
        ConfigError: an argument out of its range.
    """

    def __init__(
        self, module: nn.Module, image_shape: tuple[int, int, int], *, predicts: Predicts = "score",
        data_range: tuple[float, float] = (0.0, 1.0), labels: int = 0,
    ) -> None:
        super().__init__()
        shape = tuple(image_shape)
        if len(shape) != 3 or not all(type(size) is int and size > 0 for size in shape):
            raise ConfigError(f"image_shape is {image_shape}, expected (channels, height, width)")
        if predicts not in get_args(Predicts):
            raise ConfigError(f"predicts is {predicts!r}, expected one of: {', '.join(get_args(Predicts))}")
        if not data_range[0] < data_range[1]:
            raise ConfigError(f"data_range is {data_range}, expected (lowest, highest)")
        if type(labels) is not int or labels < 0:
            raise ConfigError(f"labels is {labels!r}, expected a whole number of classes, 0 for none")
        self.module = module
        self.image_shape = shape
        self.predicts, self.labels, self.gives_images = predicts, labels, predicts == "denoised"
        self.low, self.width = float(data_range[0]), float(data_range[1] - data_range[0])

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        is_unit = (self.low, self.width) == (0, 1)
        inner = (x, sigma) if is_unit else (self.low + self.width * x, self.width * sigma)
        out = self.module(*inner) if label is None else self.module(*inner, label)
        if not isinstance(out, Tensor):
            raise TypeError(f"it returns a {type(out).__name__}, expected an array of x's shape")
        each = sigma[:, None, None, None]
        if self.predicts == "score":
            return out if is_unit else self.width * out
        if self.predicts == "noise":
            return -out / each
        return ((out - self.low) / self.width - x) / each**2

    def summary(self) -> dict[str, object]:
        return {"class": type(self.module).__name__, "predicts": self.predicts,
                "data_range": [self.low, self.low + self.width]}


def check_score_network(network: ScoreNetwork) -> None:
    """Refuses a module that no file can stand for, before the long work begins.

    Raises:
        ConfigError: it fails, returns another shape, changes between calls, or an image depends on its batch.
    """
    generator = torch.Generator().manual_seed(0)
    x, sigma = torch.rand(3, *network.image_shape, generator=generator), torch.tensor([0.1, 1.0, 2.0])
    label = (torch.arange(3) % network.labels,) if network.labels else ()
    module = network.module if isinstance(network, ConvertedNetwork) else network
    name = type(module).__name__
    others = {parameter.dtype for parameter in module.parameters()} - {torch.float32}
    if others:
        raise ConfigError(f"{name} has parameters of {', '.join(map(str, others))}, expected float32: module.float()")
    with torch.no_grad():
        try:
            first, second = network(x, sigma, *label), network(x, sigma, *label)
            alone = network(x[1:2], sigma[1:2], *(value[1:2] for value in label))
        except Exception as error:   # whatever a foreign module raises
            message = first_line(error)
            raise ConfigError(f"{name} fails on x {list(x.shape)} and sigma {list(sigma.shape)}: {message}") from error
    if first.shape != x.shape:
        raise ConfigError(f"{name} returns {list(first.shape)} for x {list(x.shape)}, expected an array of x's shape")
    if not torch.equal(first, second):
        raise ConfigError(f"{name} returns something else when it is called again: is it in evaluation mode, without "
                          "dropout and noise of its own?")
    if (alone - first[1:2]).norm() > SAME * first[1:2].norm():
        raise ConfigError(f"{name} gives an image that depends on its batch: each image's score must be its own")

"""A torch module of the user's own as a checkpoint."""

from __future__ import annotations

from torch import nn

from sde_onnx.errors import ConfigError
from sde_onnx.export.checkpoints import Checkpoint, digest_of
from sde_onnx.export.network.score_network import ConvertedNetwork, Predicts, check_score_network
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["from_module"]


def from_module(
    module: nn.Module,
    *,
    schedule: VeSchedule,
    image_shape: tuple[int, int, int],
    predicts: Predicts = "score",
    data_range: tuple[float, float] = (-1.0, 1.0),
    snr: float = 0.16,
    n_corrector: int = 1,
    labels: int = 0,
    name: str | None = None,
) -> Checkpoint:
    """Takes a trained torch module as it is.

    Args:
        module: ``(x [N, C, H, W], sigma [N])`` to an array of x's shape, in evaluation mode and its own units: images
            in ``data_range`` plus noise, and the noise std beside them. With labels it takes them third, int64 ``[N]``.
        schedule: noise levels in units of data in [0, 1]: a network of data in [-1, 1] that was trained up to a sigma
            of 100 has a ``sigma_max`` of 50.
        image_shape: ``(C, H, W)``, C from 1 to 4; H and W may differ.
        predicts: what the module returns: ``"score"`` (the gradient in its own units), ``"noise"`` (standard normal) or
            ``"denoised"`` (the image).
        data_range: of the images that it was trained on.
        snr, n_corrector: of the paper's corrector, which ``pc`` uses.
        labels: classes that a label chooses from, each image needs one; 0: the module takes none.
        name: what the file calls the model; the module's class if not given.

    Raises:
        ConfigError: an argument out of its range, or a module that fails, returns another shape, changes between calls,
            or mixes the images of a batch.
    """
    if not isinstance(schedule, VeSchedule):
        raise ConfigError(f"schedule is {type(schedule).__name__}, expected a VeSchedule")
    network = ConvertedNetwork(module, image_shape, predicts=predicts, data_range=data_range, labels=labels)
    check_score_network(network)
    return Checkpoint(network=network, schedule=schedule, snr=snr, n_corrector=n_corrector,
                      name=name or type(module).__name__, sha256=digest_of(module.state_dict()),
                      data_range=(float(data_range[0]), float(data_range[1])))

"""diffusers' ``ScoreSdeVePipeline`` checkpoints: folders and hub models."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_onnx.errors import CheckpointError
from sde_onnx.export.checkpoints import (
    Checkpoint,
    digest_of,
    load_network,
    naming,
    option_count,
    option_number,
    read_weights,
)
from sde_onnx.export.checkpoints.unet2d import (
    UNET_CLASS,
    is_ncsnpp,
    load_unet,
    modern_names,
    network_config,
    unet2d_key,
)
from sde_onnx.export.network.score_network import ScoreNetwork, check_score_network
from sde_onnx.files import read_json, sha256
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["CheckpointFiles", "find_files", "from_diffusers", "from_objects"]

SCHEDULER_CLASS = "ScoreSdeVeScheduler"
WEIGHTS = "diffusion_pytorch_model"   # the name of their files without suffix


@dataclass(frozen=True)
class CheckpointFiles:
    """Where the parts of a checkpoint lie."""

    unet_config: Path
    weights: Path
    scheduler_config: Path | None   # a lone unet folder has none


def from_diffusers(
    source: str,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    snr: float | None = None,
    **where: Any,
) -> Checkpoint:
    """Reads a checkpoint that diffusers' ``ScoreSdeVePipeline.save_pretrained`` wrote, in any of its layouts.

    Args:
        source: a folder (``model_index.json`` with ``unet/`` and ``scheduler/``; everything at the root, as the oldest
            on the hub; or a ``unet`` folder alone), or the id of a hub model.
        sigma_min, sigma_max, snr: instead of the scheduler's. Two models on the hub name another sigma_max than they
            were trained with.
        where: which files, see :func:`find_files`.

    Raises:
        CheckpointError: a file is missing or damaged, the network cannot be sampled, or the weights do not fit it.
        MissingExtraError: the network has other blocks than NCSN++'s, and diffusers is not installed.
    """
    files = find_files(source, **where)
    name = Path(source).resolve().name if os.path.isdir(source) else source
    weights = modern_names(read_weights(files.weights))
    with naming(str(files.unet_config)):
        network = _network(read_json(files.unet_config, CheckpointError), weights, source=str(files.weights))
    if files.scheduler_config is None and (sigma_max is None or snr is None):
        raise CheckpointError(f"{source} has no scheduler_config.json: give --sigma-max and --snr as trained with")
    scheduler = read_json(files.scheduler_config, CheckpointError) if files.scheduler_config else {}
    changes = {"sigma_min": sigma_min, "sigma_max": sigma_max, "snr": snr}
    return _checkpoint(network, scheduler | {key: value for key, value in changes.items() if value is not None},
                       scheduler_from=str(files.scheduler_config), name=name, digest=sha256(files.weights))


def from_objects(unet: Any, scheduler: Any) -> Checkpoint:
    """Takes diffusers' own objects, as its pipeline does.

    Args:
        unet: a ``UNet2DModel``; it stays as it is.
        scheduler: a ``ScoreSdeVeScheduler``.

    Raises:
        CheckpointError: the network cannot be sampled.
    """
    weights = {name: value.detach().cpu() for name, value in unet.state_dict().items()}
    network = _network(dict(unet.config), weights, source=type(unet).__name__)
    return _checkpoint(network, dict(scheduler.config), scheduler_from=type(scheduler).__name__,
                       name=type(unet).__name__, digest=digest_of(weights))


def _network(unet: Mapping[str, Any], weights: dict[str, Tensor], *, source: str) -> ScoreNetwork:
    """An NCSN++ by our own class, any other by diffusers'."""
    if (kind := unet.get("_class_name", UNET_CLASS)) != UNET_CLASS:
        raise CheckpointError(f"the network is a {kind}, expected a {UNET_CLASS}")
    if is_ncsnpp(unet):
        config = network_config(unet)
        return load_network(config, weights, lambda key: unet2d_key(key, config), source=source)
    network = load_unet(unet, weights, source=source)
    check_score_network(network)
    return network


def _checkpoint(
    network: ScoreNetwork, scheduler: Mapping[str, Any], *, scheduler_from: str, name: str, digest: str
) -> Checkpoint:
    if (kind := scheduler.get("_class_name", SCHEDULER_CLASS)) != SCHEDULER_CLASS:
        raise CheckpointError(f"{scheduler_from} is of a {kind}, expected a {SCHEDULER_CLASS}")
    # What is left out has diffusers' defaults.
    schedule = VeSchedule(
        sigma_min=option_number(scheduler, "sigma_min", 0.01),
        sigma_max=option_number(scheduler, "sigma_max", 1348.0),
        num_scales=option_count(scheduler, "num_train_timesteps", 2000),
        sampling_eps=option_number(scheduler, "sampling_eps", 1e-5),
    )
    return Checkpoint(network=network, schedule=schedule, snr=option_number(scheduler, "snr", 0.15),
                      n_corrector=option_count(scheduler, "correct_steps", 1), name=name, sha256=digest)


def find_files(
    source: str, *, use_safetensors: bool | None = None, variant: str | None = None, **hub: Any
) -> CheckpointFiles:
    """Finds the parts of a checkpoint in a folder, or fetches them from the hub.

    Args:
        source: a folder, or the id of a hub model.
        use_safetensors: only ``.safetensors``, or only ``.bin``; either if not given.
        variant: of the weights' files, as in ``diffusion_pytorch_model.fp16.safetensors``.
        hub: of :func:`huggingface_hub.snapshot_download`: ``revision``, ``cache_dir``, ``local_files_only``.

    Raises:
        CheckpointError: no such folder or hub model, or a part is missing.
    """
    suffixes = {None: (".safetensors", ".bin"), True: (".safetensors",), False: (".bin",)}[use_safetensors]
    names = [f"{WEIGHTS}{'.' + variant if variant else ''}{suffix}" for suffix in suffixes]
    root = Path(source)
    if not os.path.exists(source) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        root = _fetch(source, names, **hub)
    if not os.path.isdir(root):
        kind = "a file" if os.path.exists(root) else "missing"
        raise CheckpointError(f"{source} is {kind}, expected a checkpoint folder, the id of a hub model, or a .pth, "
                              ".pkl or .pt file")
    unet = root / "unet" if (root / "unet").is_dir() else root
    config = unet / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{config} is missing: {source} is not a diffusers checkpoint, or not all of one")
    weights = [unet / name for name in names if (unet / name).is_file()]
    if not weights:
        neither = "neither " if len(names) > 1 else "no "
        raise CheckpointError(f"{unet} has {neither}{' nor '.join(names)}: the weights are missing")
    scheduler = root / "scheduler" / "scheduler_config.json"
    if not scheduler.is_file():
        scheduler = root / "scheduler_config.json"
    if not scheduler.is_file() and (root / "model_index.json").is_file():
        raise CheckpointError(f"{root / 'scheduler' / 'scheduler_config.json'} is missing: export {unet} with "
                              "--sigma-max and --snr as trained with")
    return CheckpointFiles(config, weights[0], scheduler if scheduler.is_file() else None)


def _fetch(repository: str, weights: Sequence[str], **hub: Any) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(repository, **hub, allow_patterns=["*.json", *weights,
                                                                         *(f"unet/{name}" for name in weights)]))
    except RevisionNotFoundError:
        raise CheckpointError(f"{repository} has no revision {hub.get('revision')!r} on the Hugging Face hub") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise CheckpointError(f"{repository} is neither a folder here nor a model on the Hugging Face hub") from None
    except OSError as error:   # all others of the hub's errors are of its kind
        raise CheckpointError(
            f"{repository} is not a folder here, and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}): download it elsewhere and give its folder"
        ) from None

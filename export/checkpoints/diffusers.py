"""diffusers' ``ScoreSdeVePipeline`` checkpoints: folders and hub models, their configs and names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_onnx.errors import CheckpointError
from sde_onnx.export.checkpoints import Checkpoint, load_network, read_weights, sha256
from sde_onnx.export.ncsnpp import NCSNppConfig
from sde_onnx.schedule import VeSchedule

__all__ = ["CheckpointFiles", "diffusers_key", "find_files", "from_diffusers", "network_config"]

UNET_CLASS = "UNet2DModel"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

# UNet2DModel's options that NCSN++ fixes: the values that can be exported, and diffusers' default.
FIXED_OPTIONS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "in_channels": ((3,), 3),
    "out_channels": ((3,), 3),
    "time_embedding_type": (("fourier",), "positional"),
    "mid_block_type": (("UNetMidBlock2D",), "UNetMidBlock2D"),
    "act_fn": (("silu", "swish"), "silu"),
    "resnet_time_scale_shift": (("default",), "default"),
    "add_attention": ((True,), True),
    "class_embed_type": ((None,), None),
    "num_class_embeds": ((None,), None),
    "time_embedding_dim": ((None,), None),
}
DOWN_BLOCKS = {"SkipDownBlock2D": False, "AttnSkipDownBlock2D": True}   # whether the block attends
UP_BLOCKS = {"SkipUpBlock2D": False, "AttnSkipUpBlock2D": True}

# Attention's names before diffusers 0.17.
LEGACY_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

RESNET_NAMES = {"norm0": "norm1", "conv0": "conv1", "emb": "time_emb_proj", "norm1": "norm2", "conv1": "conv2",
                "shortcut": "conv_shortcut"}
ATTENTION_NAMES = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
PLAIN_NAMES = {"emb0": "time_embedding.linear_1", "emb1": "time_embedding.linear_2", "conv_in": "conv_in",
               "embedding.frequencies": "time_proj.weight"}


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
) -> Checkpoint:
    """Reads a checkpoint that diffusers' ``ScoreSdeVePipeline.save_pretrained`` wrote, in any of its layouts.

    Args:
        source: a folder (``model_index.json`` with ``unet/`` and ``scheduler/``; everything at the root, as the oldest
            on the hub; or a ``unet`` folder alone), or the id of a hub model.
        sigma_min: instead of the scheduler's.
        sigma_max: instead of the scheduler's: two models on the hub name another than they were trained with.
        snr: instead of the scheduler's.

    Raises:
        CheckpointError: a file is missing or damaged, the network is not NCSN++, or the weights do not fit it.
    """
    files = find_files(source)
    name = source if not Path(source).is_dir() else Path(source).resolve().name
    with _naming(files.unet_config):
        config = network_config(_read_json(files.unet_config))
    if files.scheduler_config is None and (sigma_max is None or snr is None):
        raise CheckpointError(f"{source} has no scheduler_config.json: give --sigma-max and --snr as trained with")
    with _naming(files.scheduler_config or files.unet_config):
        scheduler = _read_json(files.scheduler_config) if files.scheduler_config else {}
        schedule = VeSchedule(
            sigma_min=float(scheduler.get("sigma_min", 0.01)) if sigma_min is None else sigma_min,
            sigma_max=float(scheduler.get("sigma_max", 1348.0)) if sigma_max is None else sigma_max,
            num_scales=int(scheduler.get("num_train_timesteps", 2000)),
            sampling_eps=float(scheduler.get("sampling_eps", 1e-5)),
        )
        snr = float(scheduler.get("snr", 0.15)) if snr is None else snr
        n_corrector = int(scheduler.get("correct_steps", 1))
    weights = modern_names(read_weights(files.weights))
    return Checkpoint(
        network=load_network(config, weights, lambda key: diffusers_key(key, config), source=str(files.weights)),
        schedule=schedule,
        snr=snr,
        n_corrector=n_corrector,
        name=name,
        sha256=sha256(files.weights),
    )


def find_files(source: str) -> CheckpointFiles:
    """Finds the parts of a checkpoint in a folder, or fetches them from the hub.

    Raises:
        CheckpointError: no such folder or hub model, or a part is missing.
    """
    root = Path(source)
    if not root.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        root = _fetch(source)
    if not root.is_dir():
        raise CheckpointError(f"{source} is {'a file' if root.exists() else 'missing'}, expected a checkpoint folder")
    unet = root / "unet" if (root / "unet").is_dir() else root
    config = unet / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{config} is missing: {source} is not a diffusers checkpoint, or not all of one")
    weights = [unet / name for name in WEIGHTS if (unet / name).is_file()]
    if not weights:
        raise CheckpointError(f"{unet} has neither {' nor '.join(WEIGHTS)}: the weights are missing")
    scheduler = root / "scheduler" / "scheduler_config.json"
    if not scheduler.is_file():
        scheduler = root / "scheduler_config.json"
    if not scheduler.is_file() and (root / "model_index.json").is_file():
        raise CheckpointError(f"{root / 'scheduler' / 'scheduler_config.json'} is missing")
    return CheckpointFiles(config, weights[0], scheduler if scheduler.is_file() else None)


def _fetch(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", *WEIGHTS, *(f"unet/{w}" for w in WEIGHTS)]))
    except RepositoryNotFoundError:
        raise CheckpointError(f"{repository} is neither a folder here nor a model on the Hugging Face hub") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{repository} is not a folder here, and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}): download it elsewhere and give its folder"
        ) from None


def network_config(unet: Mapping[str, Any]) -> NCSNppConfig:
    """Translates a UNet2DModel config.

    Raises:
        CheckpointError: an option whose value makes it another network; names the option.
    """
    if (kind := unet.get("_class_name", UNET_CLASS)) != UNET_CLASS:
        raise CheckpointError(f"the network is a {kind}, expected a UNet2DModel with NCSN++ blocks")
    for option, (supported, default) in FIXED_OPTIONS.items():
        if (value := unet.get(option, default)) not in supported:
            raise CheckpointError(
                f"UNet2DModel option {option} = {value!r} is not supported, expected "
                f"{' or '.join(map(repr, supported))}: this is not an unconditional VE NCSN++"
            )
    channels = tuple(unet.get("block_out_channels", (224, 448, 672, 896)))
    down = _attending(unet, "down_block_types", DOWN_BLOCKS, len(channels))
    up = _attending(unet, "up_block_types", UP_BLOCKS, len(channels))
    if down != up[::-1]:
        raise CheckpointError(
            f"UNet2DModel option up_block_types = {list(unet.get('up_block_types', []))} does not attend where "
            "down_block_types does: this is not NCSN++"
        )
    size = unet.get("sample_size")
    if not isinstance(size, int):
        raise CheckpointError(f"UNet2DModel option sample_size = {size!r} is not supported, expected one number")
    layers = int(unet.get("layers_per_block", 2))
    sizes = tuple(size // 2**level for level in range(len(channels)))
    return NCSNppConfig(
        image_size=size,
        channels=channels,
        num_res_blocks=layers,
        attn_resolutions=tuple(here for here, attends in zip(sizes, down, strict=True) if attends),
        attn_head_channels=unet.get("attention_head_dim", 8),
        mid_skip_scale=1 / float(unet.get("mid_block_scale_factor", 1)),
        center_input=bool(unet.get("center_input_sample", False)),
        norm_eps=float(unet.get("norm_eps", 1e-5)),
        norm_groups_at=_norm_groups(unet, sizes, channels, down, layers),
    )


def _attending(unet: Mapping[str, Any], option: str, kinds: dict[str, bool], levels: int) -> list[bool]:
    names = unet.get(option, [])
    for name in names:
        if name not in kinds:
            raise CheckpointError(
                f"UNet2DModel option {option} has {name!r}, which is not supported, expected {' or '.join(kinds)}"
            )
    if len(names) != levels:
        raise CheckpointError(f"UNet2DModel option {option} names {len(names)} blocks, block_out_channels {levels}")
    return [kinds[name] for name in names]


def _norm_groups(
    unet: Mapping[str, Any], sizes: tuple[int, ...], channels: tuple[int, ...], attends: list[bool], layers: int
) -> dict[str, int]:
    """The norms whose groups diffusers does not count by the original's rule of four channels a group.

    Attention outside the middle always has 32; the residual blocks before a decoder's attention count
    ``a + b // 4`` channels where ``(a + b) // 4`` was meant; the middle and the output take ``norm_num_groups``.
    """
    groups = {}
    for level, (size, width) in enumerate(zip(sizes, channels, strict=True)):
        if not attends[level]:
            continue
        for index in range(layers):
            groups[f"encoder.{size}x{size}_block{index}.attention.norm"] = 32
        groups[f"decoder.{size}x{size}_block{layers}.attention.norm"] = 32
        deeper = channels[min(level + 1, len(channels) - 1)]
        shallower = channels[max(level - 1, 0)]
        for index in range(layers + 1):
            h = deeper if index == 0 else width
            skip = shallower if index == layers else width
            groups[f"decoder.{size}x{size}_block{index}.norm0"] = min(h + skip // 4, 32)
    if common := unet.get("norm_num_groups", 32):
        groups |= {f"middle{block}.norm{norm}": common for block in (0, 1) for norm in (0, 1)}
        groups["middle0.attention.norm"] = common
        groups[f"output_pyramid.{sizes[0]}x{sizes[0]}.norm"] = common
    if common := unet.get("attn_norm_num_groups"):
        groups["middle0.attention.norm"] = common
    return groups


def diffusers_key(key: str, config: NCSNppConfig) -> str:
    """From a name in our network's ``state_dict`` to the name in UNet2DModel's."""
    for ours, theirs in PLAIN_NAMES.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    part, _, rest = key.partition(".")
    if part in ("middle0", "middle1"):
        return _block_key("mid_block", rest, resnet=f"resnets.{part[-1]}", attention="attentions.0")
    place, _, rest = rest.partition(".")
    size, _, role = place.partition("_")
    level = config.sizes.index(int(size.partition("x")[0]))
    down, up = f"down_blocks.{level}", f"up_blocks.{len(config.channels) - 1 - level}"
    if role.startswith("block"):
        index = role.removeprefix("block")
        if part == "encoder":
            return _block_key(down, rest, resnet=f"resnets.{index}", attention=f"attentions.{index}")
        return _block_key(up, rest, resnet=f"resnets.{index}", attention="attentions.0")
    if part == "encoder":
        return _block_key(f"down_blocks.{level - 1}", rest, resnet="resnet_down", attention="")
    if part == "decoder":
        return _block_key(up, rest, resnet="resnet_up", attention="")
    if part == "input_pyramid":
        return f"down_blocks.{level - 1}.skip_conv.{rest.removeprefix('conv.')}"
    if level == 0:
        return rest.replace("norm.", "conv_norm_out.").replace("conv.", "conv_out.")
    return f"{up}.skip_{rest}"


def _block_key(parent: str, rest: str, *, resnet: str, attention: str) -> str:
    module, _, parameter = rest.rpartition(".")
    if module.startswith("attention."):
        return f"{parent}.{attention}.{ATTENTION_NAMES[module.removeprefix('attention.')]}.{parameter}"
    return f"{parent}.{resnet}.{RESNET_NAMES[module]}.{parameter}"


def modern_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames what old releases of diffusers named otherwise."""
    renamed = {}
    for key, value in weights.items():
        if ".attentions." in key:
            parent, name, parameter = key.rsplit(".", 2)
            key = f"{parent}.{LEGACY_NAMES.get(name, name)}.{parameter}"
        # Old files hold the Fourier frequencies twice; where only the old name is there, it is the one.
        if key == "time_proj.W":
            if "time_proj.weight" in weights:
                continue
            key = "time_proj.weight"
        renamed[key] = value
    return renamed


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns values of the wrong type or range in a config file into an error that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds a value that makes no sense: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values

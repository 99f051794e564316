"""diffusers' ``UNet2DModel`` where it is an NCSN++: its config and the names of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_onnx.errors import CheckpointError, first_line, one_line
from sde_onnx.export.checkpoints import UNREADABLE, check_fit, fill, option_count, option_number
from sde_onnx.export.network.diffusers_unet import DiffusersUnet
from sde_onnx.export.network.ncsnpp import MOST, MOST_CHANNELS, MOST_LEVELS, NCSNppConfig
from sde_onnx.extras import require_diffusers

__all__ = ["UNET_CLASS", "is_ncsnpp", "load_unet", "modern_names", "network_config", "unet2d_key"]

UNET_CLASS = "UNet2DModel"
CHANNELS = (224, 448, 672, 896)   # of each level, where a config names none

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


def is_ncsnpp(unet: Mapping[str, Any]) -> bool:
    """Whether a UNet2DModel config is that of an NCSN++, which has a class of ours."""
    down, up = unet.get("down_block_types", ()), unet.get("up_block_types", ())
    return (
        all(unet.get(option, default) in supported for option, (supported, default) in FIXED_OPTIONS.items())
        and set(down) <= set(DOWN_BLOCKS) and set(up) <= set(UP_BLOCKS)
        and [DOWN_BLOCKS[name] for name in down] == [UP_BLOCKS[name] for name in reversed(up)]
        and len(down) == len(unet.get("block_out_channels", CHANNELS))
        and isinstance(unet.get("sample_size"), int)
    )


def load_unet(config: Mapping[str, Any], weights: dict[str, Tensor], *, source: str) -> DiffusersUnet:
    """Builds diffusers' own module, of any blocks, and gives it the weights.

    Args:
        config: of a UNet2DModel.
        weights: by diffusers' names of today.
        source: what to call the checkpoint in messages.

    Raises:
        CheckpointError: diffusers makes no network of the config, the weights do not fit it, or the pipeline cannot
            sample it.
        MissingExtraError: diffusers is not installed.
    """
    _check_bounds(config)
    require_diffusers()
    from diffusers import UNet2DModel

    options = {name: value for name, value in config.items() if not name.startswith("_")}

    def made() -> Any:
        try:
            unet: Any = UNet2DModel(**options)   # type: ignore[no-untyped-call]  # diffusers has no types
            return unet.eval()
        except (*UNREADABLE, AssertionError, NameError) as error:
            raise CheckpointError(f"{source}: diffusers makes no {UNET_CLASS} of its config: {first_line(error)}"
                                  ) from None

    with torch.device("meta"):   # no memory is taken before the weights are known to fit
        empty = made()
    DiffusersUnet(empty)   # which refuses what the pipeline cannot sample
    check_fit(empty, weights, lambda name: name, source=source)
    unet = made()
    fill(unet, weights, lambda name: name, source=source)
    return DiffusersUnet(unet)


def _check_bounds(config: Mapping[str, Any]) -> None:
    """``CheckpointError`` where a config asks for more than any network has, which would take memory and time alone."""
    sizes = config.get("sample_size")
    sides = sizes if isinstance(sizes, list | tuple) else [sizes]
    if len(sides) > 2 or any(side is not None and not (type(side) is int and 0 < side <= MOST["image_size"])
                             for side in sides):
        raise CheckpointError(f"option sample_size = {one_line(sizes)}, expected 1 to {MOST['image_size']}")
    layers, channels = config.get("layers_per_block", 2), config.get("block_out_channels", CHANNELS)
    if type(layers) is not int or not 0 < layers <= MOST["num_res_blocks"]:
        raise CheckpointError(f"option layers_per_block = {one_line(layers)}, expected 1 to {MOST['num_res_blocks']}")
    if not isinstance(channels, list | tuple) or not 0 < len(channels) <= MOST_LEVELS or not all(
            type(count) is int and 0 < count <= MOST_CHANNELS for count in channels):
        raise CheckpointError(f"option block_out_channels = {one_line(channels)}, expected 1 to {MOST_LEVELS} whole "
                              f"numbers of 1 to {MOST_CHANNELS}")


def network_config(unet: Mapping[str, Any]) -> NCSNppConfig:
    """Translates a UNet2DModel config of which :func:`is_ncsnpp` is true."""
    channels = tuple(unet.get("block_out_channels", CHANNELS))
    attends = [DOWN_BLOCKS[name] for name in unet["down_block_types"]]
    size, layers = unet["sample_size"], option_count(unet, "layers_per_block", 2)
    sizes = tuple(size // 2**level for level in range(len(channels)))
    return NCSNppConfig(
        image_size=size,
        channels=channels,
        num_res_blocks=layers,
        attn_resolutions=tuple(here for here, attend in zip(sizes, attends, strict=True) if attend),
        attn_head_channels=unet.get("attention_head_dim", 8),
        mid_skip_scale=1 / option_number(unet, "mid_block_scale_factor", 1),
        center_input=bool(unet.get("center_input_sample", False)),
        norm_eps=option_number(unet, "norm_eps", 1e-5),
        norm_groups_at=_norm_groups(unet, sizes, channels, attends, layers),
    )


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
    if (common := unet.get("norm_num_groups", 32)) is not None:
        groups |= {f"middle{block}.norm{norm}": common for block in (0, 1) for norm in (0, 1)}
        groups["middle0.attention.norm"] = common
        groups[f"output_pyramid.{sizes[0]}x{sizes[0]}.norm"] = common
    if (common := unet.get("attn_norm_num_groups")) is not None:
        groups["middle0.attention.norm"] = common
    return groups


def unet2d_key(key: str, config: NCSNppConfig) -> str:
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

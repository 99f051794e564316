"""score_sde_pytorch's networks: its config tree and the names of its weights.

The original numbers its modules in the order in which they are made (``all_modules.17.Conv_0.weight``), so the names
follow from walking the architecture in that order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sde_onnx.errors import CheckpointError
from sde_onnx.export.ncsnpp import NCSNppConfig

__all__ = ["ema_weights", "network_config", "score_sde_keys"]

RESNET_NAMES = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "emb": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1"}
SHORTCUT_NAMES = {"biggan": "Conv_2", "ddpm": "NIN_0"}
ATTENTION_NAMES = {"norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "out": "NIN_3"}
RESAMPLED_CONV = {True: "Conv2d_0", False: "Conv_0"}   # by whether resampling is FIR


def network_config(tree: Mapping[str, Any]) -> NCSNppConfig:
    """Translates the original's config tree (``model``, ``data``, ``training``).

    Raises:
        CheckpointError: an option whose value makes it another kind of network; names the option.
    """
    model, data = tree["model"], tree["data"]
    expected = {"sde": (tree["training"]["sde"], ("vesde",)), "name": (model["name"], ("ncsnpp", "ddpm")),
                "nonlinearity": (model["nonlinearity"], ("swish",)), "conditional": (model["conditional"], (True,)),
                "fir_kernel": (tuple(model.get("fir_kernel", (1, 3, 3, 1))), ((1, 3, 3, 1),))}
    for option, (value, supported) in expected.items():
        if value not in supported:
            raise CheckpointError(
                f"score_sde option {option} = {value!r} is not supported, expected {' or '.join(map(repr, supported))}"
            )
    is_ddpm = model["name"] == "ddpm"
    # The DDPM network reads none of NCSN++'s options, whatever its config names.
    options = {} if is_ddpm else model
    positional = is_ddpm or model["embedding_type"] == "positional"
    sizes = {data["image_size"] // 2**level for level in range(len(model["ch_mult"]))}
    return NCSNppConfig(
        image_size=data["image_size"],
        image_channels=data["num_channels"],
        channels=tuple(model["nf"] * factor for factor in model["ch_mult"]),
        base_channels=model["nf"],
        num_res_blocks=model["num_res_blocks"],
        attn_resolutions=tuple(size for size in model["attn_resolutions"] if size in sizes),
        embedding="positional" if positional else "fourier",
        noise_levels=(model["sigma_min"], model["sigma_max"], model["num_scales"]) if positional else None,
        resblock=options.get("resblock_type", "ddpm"),
        resample_with_conv=model["resamp_with_conv"],
        fir=options.get("fir", False),
        progressive=options.get("progressive", "none"),
        progressive_input=options.get("progressive_input", "none"),
        progressive_combine=options.get("progressive_combine", "sum"),
        skip_scale=math.sqrt(0.5) if options.get("skip_rescale", False) else 1.0,
        center_input=not data["centered"],
        scale_by_sigma=model["scale_by_sigma"],
        norm_groups=32 if is_ddpm else None,
    )


def _module_keys(config: NCSNppConfig) -> dict[str, str]:
    """From our modules and parameters to the original's: prefixes of names, each ending where a parameter begins."""
    keys: dict[str, str] = {}
    count = 0

    def take(module: str, names: Mapping[str, str] | None = None) -> None:
        """The next module of the original is this one of ours; ``names`` are those of its parts."""
        nonlocal count
        for ours, theirs in (names or {"": ""}).items():
            keys[".".join(filter(None, (module, ours)))] = ".".join(
                filter(None, ("all_modules", str(count), theirs))
            )
        count += 1

    def take_block(module: str) -> None:
        take(module, RESNET_NAMES | {"shortcut": SHORTCUT_NAMES[config.resblock]})

    def take_resampler(module: str) -> None:
        if config.resblock == "biggan":
            take_block(module)
        else:
            take(module, {"conv": RESAMPLED_CONV[config.fir]})

    levels = list(enumerate(config.sizes))
    if config.embedding == "fourier":
        take("embedding", {"frequencies": "W"})
    for module in ("emb0", "emb1", "conv_in"):
        take(module)
    for level, size in levels:
        if level > 0:
            take_resampler(f"encoder.{size}x{size}_down")
            if config.progressive_input == "input_skip":
                take(f"input_pyramid.{size}x{size}", {"conv": "Conv_0"})
            elif config.progressive_input == "residual":
                take(f"input_pyramid.{size}x{size}", {"conv": RESAMPLED_CONV[config.fir]})
        for index in range(config.num_res_blocks):
            take_block(f"encoder.{size}x{size}_block{index}")
            if size in config.attn_resolutions:
                take(f"encoder.{size}x{size}_block{index}.attention", ATTENTION_NAMES)
    take_block("middle0")
    take("middle0.attention", ATTENTION_NAMES)
    take_block("middle1")
    for level, size in reversed(levels):
        for index in range(config.num_res_blocks + 1):
            take_block(f"decoder.{size}x{size}_block{index}")
        if size in config.attn_resolutions:
            take(f"decoder.{size}x{size}_block{config.num_res_blocks}.attention", ATTENTION_NAMES)
        if config.progressive == "residual" and level < len(levels) - 1:
            take(f"output_pyramid.{size}x{size}", {"conv": RESAMPLED_CONV[config.fir]})
        elif config.progressive != "none":
            take(f"output_pyramid.{size}x{size}.norm")
            take(f"output_pyramid.{size}x{size}.conv")
        if level > 0:
            take_resampler(f"decoder.{size}x{size}_up")
    if config.progressive != "output_skip":
        take("head.norm")
        take("head.conv")
    return keys


def score_sde_keys(config: NCSNppConfig) -> Callable[[str], str]:
    """Returns the function from a name in our network's ``state_dict`` to the original's."""
    modules = _module_keys(config)

    def score_sde_key(key: str) -> str:
        if key in modules:
            return modules[key]
        module, _, parameter = key.rpartition(".")
        if ".NIN_" in modules[module]:
            parameter = {"weight": "W", "bias": "b"}[parameter]
        return f"{modules[module]}.{parameter}"

    return score_sde_key


def ema_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The moving average of the weights, which the paper's samples come from, by the original's names.

    ``ema.shadow_params`` lists the trainable parameters in order and without names; the Fourier frequencies are not
    trained and are only in ``model``. The original's 1x1 layers hold ``[in, out]``, a convolution ``[out, in, 1, 1]``.

    Raises:
        CheckpointError: there is no moving average, or it does not fit the model.
    """
    if "ema" not in checkpoint:
        raise CheckpointError("the checkpoint holds no moving average ('ema') of the weights")
    weights = {key.removeprefix("module."): value for key, value in checkpoint["model"].items()}
    weights.pop("sigmas", None)
    trainable = [key for key in weights if key != "all_modules.0.W"]
    averages = checkpoint["ema"]["shadow_params"]
    if [weights[key].shape for key in trainable] != [average.shape for average in averages]:
        raise CheckpointError("the checkpoint's moving average does not fit its model parameter by parameter")
    weights |= dict(zip(trainable, averages, strict=True))
    for key, value in weights.items():
        module, nin, parameter = key.partition(".NIN_")
        if nin and parameter.endswith(".W"):
            # In attention a linear layer; in a residual block, which has a convolution beside it, a 1x1 convolution.
            weights[key] = value.T if f"{module}.Conv_0.weight" not in weights else value.T[:, :, None, None]
    return weights

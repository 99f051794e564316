"""score_sde_pytorch's checkpoints: its config tree, the names of its weights, its files.

The original numbers its modules in the order in which they are made (``all_modules.17.Conv_0.weight``), so the names
follow from walking the architecture in that order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_onnx.errors import CheckpointError
from sde_onnx.export.checkpoints import (
    Checkpoint,
    dense,
    load_network,
    named_tensors,
    naming,
    option_count,
    option_counts,
    option_number,
    read_pickle,
)
from sde_onnx.export.checkpoints.config_files import read_config
from sde_onnx.export.network.ncsnpp import NCSNppConfig
from sde_onnx.files import sha256, why_no_file
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["ema_weights", "from_score_sde", "network_config", "score_sde_keys"]

SAMPLING_EPS = 1e-5   # where the original stops a variance-exploding process, whatever the config
LEVELS = ("sigma_min", "sigma_max", "num_scales")
RESNET_NAMES = {"norm0": "GroupNorm_0", "conv0": "Conv_0", "emb": "Dense_0", "norm1": "GroupNorm_1", "conv1": "Conv_1"}
SHORTCUT_NAMES = {"biggan": "Conv_2", "ddpm": "NIN_0"}
ATTENTION_NAMES = {"norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2", "out": "NIN_3"}
RESAMPLED_CONV = {True: "Conv2d_0", False: "Conv_0"}   # by whether resampling is FIR


def from_score_sde(
    path: str | os.PathLike[str],
    config: str,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    snr: float | None = None,
) -> Checkpoint:
    """Reads a checkpoint of the original code, with the moving average of its weights.

    Args:
        path: ``checkpoint_N.pth``.
        config: a key of :data:`sde_onnx.export.checkpoints.presets.PRESETS`, or a config file, ``.json`` or ``.py``.
        sigma_min, sigma_max, snr: instead of the config's. The levels of a discrete network move with them.

    Raises:
        CheckpointError: a file is missing or damaged, the network is of another kind, or the weights do not fit it.
    """
    path = Path(path)
    tree = read_config(config)
    if (kind := why_no_file(path)) is not None:
        raise CheckpointError(f"{path} is {kind}, expected a .pth file")
    model, sampling = dict(tree["model"]), tree["sampling"]
    model |= {key: value for key, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)) if value is not None}
    with naming(f"config {config}"):
        network = network_config({**tree, "model": model})
        schedule = VeSchedule(
            sigma_min=option_number(model, "sigma_min"),
            sigma_max=option_number(model, "sigma_max"),
            num_scales=option_count(model, "num_scales"),
            sampling_eps=SAMPLING_EPS,
        )
    contents = read_pickle(path)
    if not isinstance(contents, dict) or not isinstance(contents.get("model"), dict):
        raise CheckpointError(f"{path} is no checkpoint of score_sde: it holds no 'model' with named weights")
    weights = ema_weights(contents, source=str(path))
    return Checkpoint(
        network=load_network(network, weights, score_sde_keys(network), source=f"{path} with config {config}"),
        schedule=schedule,
        snr=option_number(sampling, "snr", 0.16) if snr is None else snr,
        n_corrector=option_count(sampling, "n_steps_each", 1),
        name=path.name,
        sha256=sha256(path),
    )


def network_config(tree: Mapping[str, Any]) -> NCSNppConfig:
    """Translates the original's config tree (``model``, ``data``, ``training``).

    Raises:
        CheckpointError: an option whose value makes it another kind of network; names the option.
    """
    model, data = tree["model"], tree["data"]
    expected = {"sde": (tree["training"]["sde"], ("vesde",)), "name": (model["name"], ("ncsnpp", "ddpm")),
                "nonlinearity": (model["nonlinearity"], ("swish",)), "conditional": (model["conditional"], (True,)),
                "fir_kernel": (tuple(model.get("fir_kernel", (1, 3, 3, 1))), ((1, 3, 3, 1),)),
                "centered": (data["centered"], (False,))}   # data in [-1, 1], in whose units sigma would be
    for option, (value, supported) in expected.items():
        if value not in supported:
            raise CheckpointError(
                f"score_sde option {option} = {value!r} is not supported, expected {' or '.join(map(repr, supported))}"
            )
    is_ddpm = model["name"] == "ddpm"
    # The DDPM network reads none of NCSN++'s options, whatever its config names.
    options = {} if is_ddpm else model
    embedding: Any = "positional" if is_ddpm else model["embedding_type"]
    image_size, base_channels = option_count(data, "image_size"), option_count(model, "nf")
    factors = option_counts(model, "ch_mult")
    sizes = {image_size // 2**level for level in range(len(factors))}
    return NCSNppConfig(
        image_size=image_size,
        image_channels=option_count(data, "num_channels"),
        channels=tuple(base_channels * factor for factor in factors),
        base_channels=base_channels,
        num_res_blocks=option_count(model, "num_res_blocks"),
        attn_resolutions=tuple(size for size in option_counts(model, "attn_resolutions") if size in sizes),
        embedding=embedding,
        noise_levels=tuple(model[name] for name in LEVELS) if embedding == "positional" else None,
        resblock=options.get("resblock_type", "ddpm"),
        resample_with_conv=model["resamp_with_conv"],
        fir=options.get("fir", False),
        progressive=options.get("progressive", "none"),
        progressive_input=options.get("progressive_input", "none"),
        progressive_combine=options.get("progressive_combine", "sum"),
        skip_scale=math.sqrt(0.5) if options.get("skip_rescale", False) else 1.0,
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


def ema_weights(checkpoint: Mapping[str, Any], *, source: str = "the checkpoint") -> dict[str, Tensor]:
    """The moving average of the weights, which the paper's samples come from, by the original's names.

    ``ema.shadow_params`` lists the trainable parameters in order and without names; the Fourier frequencies are not
    trained and are only in ``model``. The original's 1x1 layers hold ``[in, out]``, a convolution ``[out, in, 1, 1]``.

    Args:
        checkpoint: what the file holds.
        source: what to call it in messages.

    Raises:
        CheckpointError: there is no moving average, it does not fit the model, or either is something else.
    """
    if "ema" not in checkpoint:
        raise CheckpointError("the checkpoint holds no moving average ('ema') of the weights, which is what samples "
                              "come from: take one that training wrote, not a copy of its 'model' alone")
    model = named_tensors(checkpoint["model"], f"{source}: 'model'")
    weights = {key.removeprefix("module."): value for key, value in model.items()}
    weights.pop("sigmas", None)
    trainable = [key for key in weights if key != "all_modules.0.W"]
    ema = checkpoint["ema"]
    averages = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(averages, list | tuple):
        raise CheckpointError(f"{source}: its moving average ('ema') has no list of 'shadow_params'")
    averages = [dense(average, f"{source}: one of its 'shadow_params'") for average in averages]
    if [weights[key].shape for key in trainable] != [average.shape for average in averages]:
        raise CheckpointError("the checkpoint's moving average does not fit its model parameter by parameter")
    weights |= dict(zip(trainable, averages, strict=True))
    for key, value in weights.items():
        module, nin, parameter = key.partition(".NIN_")
        if nin and parameter.endswith(".W") and value.ndim == 2:   # another shape is refused where it is loaded
            # In attention a linear layer; in a residual block, which has a convolution beside it, a 1x1 convolution.
            weights[key] = value.T if f"{module}.Conv_0.weight" not in weights else value.T[:, :, None, None]
    return weights

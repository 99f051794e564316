"""NVlabs/edm's checkpoints: SongUNet under EDMPrecond or VEPrecond, from its pickles or from a plain dict of tensors.

A pickle of EDM carries the source text of its classes, which EDM runs to read it. Here nothing of a file runs: the
names that a pickle may use are listed, and what they stand for are tensors, dicts and texts. The architecture follows
from the names and shapes of the weights. deepinv's ``edm-*.pt`` are such dicts without the prefix ``model.``.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from sde_onnx.errors import CheckpointError, first_line
from sde_onnx.export.checkpoints import UNREADABLE, Checkpoint, load_network, option_number, read_weights
from sde_onnx.export.network.edm import EdmNetwork, Preconditioning
from sde_onnx.export.network.ncsnpp import NCSNppConfig
from sde_onnx.files import read_json, sha256, why_no_file
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["PRECONDITIONINGS", "from_edm"]

PRECONDITIONINGS = get_args(Preconditioning)
# EDM samples over these ranges of sigma for data in [-1, 1]; half of them for data in [0, 1].
RANGES = {"EDMPrecond": (0.002, 80.0), "VEPrecond": (0.02, 100.0)}
NETWORK = "SongUNet"
BLOCK_NAMES = {"norm0": "norm0", "conv0": "conv0", "emb": "affine", "norm1": "norm1", "conv1": "conv1",
               "shortcut": "skip", "attention.norm": "norm2", "attention.out": "proj", "attention.query": "query",
               "attention.key": "key", "attention.value": "value"}
PLAIN_NAMES = {"embedding": "map_noise", "label_emb": "map_label", "emb0": "map_layer0", "emb1": "map_layer1"}
UNUSED = ("map_augment.weight",)   # sampling gives no augmentation, which is the same as zeros


def from_edm(
    path: str | os.PathLike[str],
    config: str | None = None,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    snr: float | None = None,
) -> Checkpoint:
    """Reads a network of EDM, with the moving average of its weights.

    Args:
        path: ``network-snapshot-N.pkl`` as EDM writes it, or a ``.pt`` of named tensors.
        config: of a ``.pt``, what a plain dict does not say: ``"EDMPrecond"``, ``"VEPrecond"``, or a ``.json`` with
            ``{"precond": {"class_name": ..., "init_kwargs": {"sigma_data": ...}}}``.
        sigma_min, sigma_max: instead of the range that EDM samples over, in units of data in [0, 1].
        snr: of the paper's corrector, which EDM has not.

    Raises:
        CheckpointError: the file is missing, damaged or names what no checkpoint needs, the network is of another kind,
            or its weights do not fit together.
    """
    path = Path(path)
    if (kind := why_no_file(path)) is not None:
        raise CheckpointError(f"{path} is {kind}, expected a .pkl or .pt")
    if path.suffix == ".pkl":
        preconditioning, sigma_data, weights = _read_pickle(path)
    else:
        preconditioning, sigma_data = _read_config(path, config)
        weights = read_weights(path)
    if preconditioning not in PRECONDITIONINGS:
        raise CheckpointError(f"{path} is of {preconditioning}, expected {' or '.join(PRECONDITIONINGS)}: no other is "
                              "variance-exploding")
    weights = {key.removeprefix("model."): value for key, value in weights.items()}
    network_config = _network_config(weights, source=str(path))
    quarter = 0.25 if preconditioning == "EDMPrecond" else 1.0   # of ln sigma is what EDM's features take
    network = load_network(network_config, _plain_weights(weights, frequency=quarter), _key(network_config),
                           source=str(path))
    low, high = RANGES[preconditioning]
    return Checkpoint(
        network=EdmNetwork(network, preconditioning, sigma_data).eval(),   # type: ignore[arg-type]  # checked above
        schedule=VeSchedule(low / 2 if sigma_min is None else sigma_min, high / 2 if sigma_max is None else sigma_max),
        snr=0.16 if snr is None else snr, n_corrector=1, name=path.name, sha256=sha256(path), data_range=(-1.0, 1.0),
    )


# The pickle.

class _Object(dict[str, Any]):
    """An object of EDM as its pickle describes it: ``class_name`` and ``state``, nothing that runs."""


class _Container:
    """A module container of torch, whose attributes are all that is read."""


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of a storage; torch refuses one that reaches beyond it."""
    return torch.as_strided(torch.tensor([], dtype=storage.dtype).set_(storage), size, stride, offset)


def _storage(blob: bytes) -> Any:
    """A tensor's own blob, which torch's function of that name would read without restriction."""
    return torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)


SCALAR = np.float64().__reduce__()[0]   # numpy's own, whose module has changed its name
# All names that a checkpoint of EDM uses, and what stands for them.
ALLOWED: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Object,
    ("torch.nn.modules.container", "ModuleDict"): _Container,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): OrderedDict,
    ("dnnlib.util", "EasyDict"): _Object,
    ("numpy.core.multiarray", "scalar"): SCALAR,
    ("numpy._core.multiarray", "scalar"): SCALAR,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    """Reads a pickle of EDM; any name that is not listed is refused, and nothing of the file runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise CheckpointError(f"it names {module}.{name}, which no checkpoint of EDM needs: refused, not run")
        return ALLOWED[module, name]


def _read_pickle(path: Path) -> tuple[str, float, dict[str, Tensor]]:
    """Preconditioning, deviation of the data, and weights by EDM's names."""
    try:
        with path.open("rb") as file:
            contents = _Unpickler(file).load()
        network = contents["ema"]
        parts: dict[str, Tensor] = {}
        _collect(network["state"], "", parts)
        inner = network["state"]["_modules"]["model"]
        kind, sigma_data = str(network["class_name"]), float(network["state"].get("sigma_data", 0.5))
        if inner["class_name"] != NETWORK:
            raise CheckpointError(f"its network is a {inner['class_name']}, expected a {NETWORK}")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (*UNREADABLE, pickle.UnpicklingError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint of EDM: {first_line(error)}") from None
    return kind, sigma_data, parts


def _collect(state: Mapping[str, Any], prefix: str, found: dict[str, Tensor]) -> None:
    """Adds the tensors of a module's attributes by their path, as ``state_dict`` names them."""
    for kind in ("_parameters", "_buffers"):
        found |= {prefix + name: value for name, value in state[kind].items() if value is not None}
    for name, module in state["_modules"].items():
        if module is not None:
            inner = module["state"] if isinstance(module, _Object) else vars(module)
            _collect(inner, f"{prefix}{name}.", found)


def _read_config(path: Path, config: str | None) -> tuple[str, float]:
    if config is None:
        raise CheckpointError(f"{path} holds weights alone: say how they are used with --config "
                              f"{' or '.join(PRECONDITIONINGS)}, or a .json")
    if config in PRECONDITIONINGS:
        return config, 0.5
    preconditioning = read_json(Path(config), CheckpointError).get("precond")
    if not isinstance(preconditioning, dict) or not isinstance(preconditioning.get("init_kwargs"), dict):
        raise CheckpointError(f"{config} has no 'precond' with 'class_name' and 'init_kwargs', which says how the "
                              "network is used")
    return str(preconditioning.get("class_name")), option_number(preconditioning["init_kwargs"], "sigma_data", 0.5)


# The weights.

def _network_config(weights: Mapping[str, Tensor], *, source: str) -> NCSNppConfig:
    """The architecture, from the names and shapes of the weights."""
    first = [match for key in weights if (match := re.fullmatch(r"enc\.(\d+)x\1_conv\.weight", key))]
    blocks = {int(match[1]): value for key, value in weights.items()
              if (match := re.fullmatch(r"enc\.(\d+)x\1_block0\.conv0\.weight", key))}
    if len(first) != 1 or not blocks or "map_layer0.weight" not in weights:
        raise CheckpointError(f"{source} has not the weights of a {NETWORK}")
    if odd := [key for key in weights if re.search(r"aux_(skip|down|up)", key)]:
        raise CheckpointError(f"{source} has {odd[0]}: an encoder or decoder of another type than EDM trains with")
    base, image_channels = weights[first[0][0]].shape[:2]
    if weights["map_layer0.weight"].shape[0] != 4 * base:
        raise CheckpointError(f"{source}: map_layer0 has {weights['map_layer0.weight'].shape[0]} channels, expected "
                              f"four times those of the first convolution, {base}")
    size = int(first[0][1])
    filters = [value for key, value in weights.items() if key.endswith("resample_filter")]
    label = weights.get("map_label.weight")
    return NCSNppConfig(
        image_size=size, image_channels=image_channels, base_channels=base,
        channels=tuple(blocks[place].shape[0] for place in sorted(blocks, reverse=True)),
        num_res_blocks=sum(f"enc.{size}x{size}_block{index}.conv0.weight" in weights for index in range(len(weights))),
        attn_resolutions=tuple(place for place in blocks if f"enc.{place}x{place}_block0.qkv.weight" in weights),
        embedding="fourier" if "map_noise.freqs" in weights else "positional",
        labels=0 if label is None else label.shape[1],
        fir=any(value.shape[-1] == 4 for value in filters), progressive="none",
        progressive_input="residual" if any("aux_residual" in key for key in weights) else "none",
        center_input=False, scale_by_sigma=False,
    )


def _plain_weights(weights: Mapping[str, Tensor], *, frequency: float) -> dict[str, Tensor]:
    """The weights as our layers have them: queries, keys and values apart, 1x1 convolutions as matrices.

    Args:
        weights: by EDM's names without the prefix.
        frequency: factor of the Fourier features' frequencies.
    """
    plain: dict[str, Tensor] = {}
    for key, value in weights.items():
        module, _, parameter = key.rpartition(".")
        if key in UNUSED or parameter == "resample_filter":
            continue
        if module.endswith(".qkv"):   # channel 3 j + 0, 1, 2 is query, key, value of channel j
            for place, name in enumerate(("query", "key", "value")):
                plain[f"{module.removesuffix('qkv')}{name}.{parameter}"] = _matrix(value[place::3])
        elif module.endswith(".proj"):
            plain[key] = _matrix(value)
        elif parameter == "freqs":
            plain[key] = value * frequency
        elif key == "map_label.weight":   # EDM multiplies labels by the root of their number
            plain[key] = value * math.sqrt(value.shape[1])
        else:
            plain[key] = value
    return plain


def _matrix(value: Tensor) -> Tensor:
    """A 1x1 convolution's weight ``[out, in, 1, 1]`` as a linear layer's; a bias as it is."""
    return value[:, :, 0, 0] if value.ndim == 4 else value


def _key(config: NCSNppConfig) -> Callable[[str], str]:
    """Returns the function from a name in our network's ``state_dict`` to EDM's."""
    deepest, largest = (f"{size}x{size}" for size in (config.sizes[-1], config.sizes[0]))
    parts = {"encoder": "enc", "decoder": "dec"}

    def key(name: str) -> str:
        module, _, parameter = name.rpartition(".")
        top, _, rest = module.partition(".")
        if module in PLAIN_NAMES:
            return f"{PLAIN_NAMES[module]}.{'freqs' if parameter == 'frequencies' else parameter}"
        if module == "conv_in":
            return f"enc.{largest}_conv.{parameter}"
        if top == "head":
            return f"dec.{largest}_aux_{rest}.{parameter}"
        if top == "input_pyramid":
            return f"enc.{rest.removesuffix('.conv')}_aux_residual.{parameter}"
        if top.startswith("middle"):
            return f"dec.{deepest}_in{top[-1]}.{BLOCK_NAMES[rest]}.{parameter}"
        block, _, layer = rest.partition(".")
        if block.endswith("_up"):   # EDM calls it by the resolution that it makes, we by the one that it ends
            size = 2 * int(block.partition("x")[0])
            block = f"{size}x{size}_up"
        return f"{parts[top]}.{block}.{BLOCK_NAMES[layer]}.{parameter}"

    return key

"""Foreign checkpoints: what they hold, and what every reader of one checks."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sde_onnx import files
from sde_onnx.checks import is_number
from sde_onnx.errors import CheckpointError, first_line, one_line
from sde_onnx.export.network.ncsnpp import NCSNpp, NCSNppConfig
from sde_onnx.export.network.score_network import ScoreNetwork
from sde_onnx.solvers.options import OPTIONS
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["UNREADABLE", "Checkpoint", "check_fit", "dense", "digest_of", "fill", "load_network", "named_tensors",
           "naming", "option_count", "option_counts", "option_number", "read_pickle", "read_weights"]

# What torch's and safetensors' readers raise on files that are cut off or hold something else.
UNREADABLE = (*files.UNREADABLE, SafetensorError)
SHOWN = 8   # names listed in a message before the rest is counted


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, whatever it came from."""

    network: ScoreNetwork  # in evaluation mode
    schedule: VeSchedule
    snr: float
    n_corrector: int
    name: str              # of the folder, hub model, file or class
    sha256: str            # of the file with the weights, or of the weights
    data_range: tuple[float, float] = (0.0, 1.0)   # of the images that it was trained on

    def __post_init__(self) -> None:
        for name, value in (("snr", self.snr), ("n_corrector", self.n_corrector)):
            OPTIONS[name].checked(name, value)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads named tensors from ``.safetensors``, or from a pickle that holds nothing else.

    Raises:
        CheckpointError: the file is damaged, or unpickling it would run code.
    """
    return named_tensors(read_pickle(path) if path.suffix != ".safetensors" else _read_safetensors(path), str(path))


def named_tensors(values: Any, source: str) -> dict[str, Tensor]:
    """Returns weights as they are, if they are a dictionary of names and :func:`dense` tensors.

    Args:
        values: from a checkpoint.
        source: what to call it in messages.

    Raises:
        CheckpointError: they are something else.
    """
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise CheckpointError(f"{source} holds a {type(values).__name__}, expected named tensors")
    for key, value in values.items():
        dense(value, f"{source}: {key}")
    return values


def dense(value: Any, source: str) -> Tensor:
    """Returns a weight as it is, if it is a tensor of numbers that lie in memory one after another.

    Raises:
        CheckpointError: it is something else; names it as ``source``.
    """
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{source} is a {type(value).__name__}, expected a tensor")
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
        kind = "quantized" if value.is_quantized else f"{value.dtype}, {value.layout}, on {value.device}"
        raise CheckpointError(f"{source} is a tensor that is {kind}, expected a plain one of real numbers")
    return value


def read_pickle(path: Path) -> Any:
    """Reads a file that torch.save wrote, if it holds tensors, numbers, texts and containers of them alone.

    Raises:
        CheckpointError: the file is damaged, or unpickling it would run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")   # it is read, or refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read, it may be truncated: {first_line(error)}") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))   # torch's advice has many lines, and colours
        what = f"it names {found[1]}" if found else first_line(error)
        raise CheckpointError(
            f"{path} is damaged, or not a plain file of weights: unpickling it may run code, which is refused ({what})"
        ) from None


def load_network(
    config: NCSNppConfig, weights: dict[str, Tensor], foreign_key: Callable[[str], str], *, source: str
) -> NCSNpp:
    """Builds the network and gives it the weights of a checkpoint, each exactly once.

    Args:
        config: the architecture.
        weights: by the checkpoint's own names.
        foreign_key: from a name of ours to the checkpoint's.
        source: what to call the checkpoint in messages.

    Raises:
        CheckpointError: names missing or left over, a wrong shape, or a value that is not finite.
    """
    with torch.device("meta"):   # no memory is taken before the weights are known to fit
        check_fit(NCSNpp(config), weights, foreign_key, source=source)
    network = NCSNpp(config).eval()
    fill(network, weights, foreign_key, source=source)
    return network


def fill(network: nn.Module, weights: dict[str, Tensor], foreign_key: Callable[[str], str], *, source: str) -> None:
    """Gives a network the weights of a checkpoint, each exactly once. Arguments and errors: :func:`load_network`."""
    state = {}
    for name, key in check_fit(network, weights, foreign_key, source=source).items():
        state[name] = weights[key].to(torch.float32)
        if not torch.isfinite(state[name]).all():
            raise CheckpointError(f"{source}: {key} holds NaN or infinity; the checkpoint is damaged")
    network.load_state_dict(state)


def check_fit(
    network: nn.Module, weights: dict[str, Tensor], foreign_key: Callable[[str], str], *, source: str
) -> dict[str, str]:
    """The checkpoint's name for each of a network's; ``CheckpointError`` if names or shapes differ.

    Arguments: :func:`load_network`; the network may be on torch's ``meta`` device.
    """
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    wanted = {foreign_key(name): name for name in shapes}
    missing, unused = wanted.keys() - weights.keys(), weights.keys() - wanted.keys()
    if missing or unused:
        parts = [f"{len(names)} {what}: {_listing(names)}" for what, names in
                 (("missing", missing), ("not known", unused)) if names]
        raise CheckpointError(f"{source}: the weights do not fit the config; {'; '.join(parts)}")
    for key, name in wanted.items():
        if weights[key].shape != shapes[name]:
            raise CheckpointError(
                f"{source}: {key} has shape {list(weights[key].shape)}, expected {list(shapes[name])} by the config"
            )
    return {name: key for key, name in wanted.items()}


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """A SHA-256 of named tensors, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def option_number(options: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A number of a config file, or its default, if it has one; ``CheckpointError`` if it is something else."""
    value = options[name] if default is None else options.get(name, default)
    if not is_number(value):
        raise CheckpointError(f"option {name} = {one_line(value)}, expected a number")
    return float(value)


def option_count(options: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number of a config file, or its default, if it has one; ``CheckpointError`` if it is something else."""
    value = option_number(options, name, default)
    if not value.is_integer():
        raise CheckpointError(f"option {name} = {value!r}, expected a whole number")
    return int(value)


def option_counts(options: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """A list of whole numbers of a config file; ``CheckpointError`` if it is something else."""
    values = options[name]
    if not isinstance(values, list | tuple) or not all(is_number(value) and float(value).is_integer()
                                                       for value in values):
        raise CheckpointError(f"option {name} = {one_line(values)}, expected a list of whole numbers")
    return tuple(int(value) for value in values)


@contextmanager
def naming(config: str) -> Iterator[None]:
    """Turns a missing option, or a value of the wrong type or range, into an error that names the config file."""
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{config}: {error}") from None
    except KeyError as error:
        raise CheckpointError(f"{config} has no option {error}") from None
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(f"{config} holds a value that makes no sense: {error}") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read, it may be truncated: {first_line(error)}") from None


def _listing(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more

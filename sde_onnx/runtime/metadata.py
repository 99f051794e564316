"""What a model file says of itself: one JSON object under ``metadata_props["sde_onnx"]``."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sde_onnx.checks import is_number
from sde_onnx.errors import ConfigError, ModelFileError, first_line, one_line
from sde_onnx.solvers.options import OPTIONS
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["FORMAT", "KEY", "NOISE_KEY", "ROWS_KEY", "SAMPLER_FORMATS", "SAMPLER_KEY", "ModelMetadata",
           "check_one_file", "metadata_properties", "telling_damage"]

KEY = "sde_onnx"
SAMPLER_KEY = "sde_onnx_sampler"   # of files that `sde-onnx embed` has made, beside KEY
NOISE_KEY = "sde_onnx_noise_nodes"   # of such files: the names of the nodes that draw noise, a line each
ROWS_KEY = "sde_onnx_rows"         # of files with a loop for a device, beside KEY: the format of a plan's rows
FORMAT = 3
SAMPLER_FORMATS = (2, 3)           # without and with an operator: older versions read what they can


LARGEST_SIDE, MOST_LABELS, MOST_VALUES = 2**16, 2**31 - 1, 2**48   # no model has more


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata of a model file, formats 1 to 3."""

    schedule: VeSchedule
    snr: float                       # the Langevin corrector's signal-to-noise ratio
    n_corrector: int                 # corrections a step
    image_shape: tuple[int, int, int]   # C, H, W
    data_range: tuple[float, float]  # of the images that the model was trained on
    architecture: Mapping[str, Any]  # summary of the network
    precision: str                   # of the inside; inputs and outputs are float32 always
    target: str                      # execution provider that the graph is written for: "any", "cpu", "cuda"
    source: Mapping[str, str]        # name and sha256 of the checkpoint
    parity: Mapping[str, float] = field(default_factory=dict)  # relative error at export, by case
    versions: Mapping[str, str] = field(default_factory=dict)  # sde_onnx, torch, opset
    labels: int = 0                  # classes that the input `label` chooses from; 0: there is no such input
    label_optional: bool = False     # whether a label may be left out
    gradient: bool = False           # whether the file also gives `vjp`, of an input `v`
    weights: str = "fp32"            # how they are stored

    def __post_init__(self) -> None:
        for name, value in self.solver_options.items():
            OPTIONS[name].checked(name, value)
        if not _is_count(self.labels, MOST_LABELS):
            raise ConfigError(f"labels is {one_line(self.labels)}, expected a whole number of 0 to {MOST_LABELS}")
        if len(self.image_shape) != 3 or not all(_is_count(size, LARGEST_SIDE) and size for size in self.image_shape):
            raise ConfigError(f"image_shape is {one_line(self.image_shape)}, expected three whole numbers of 1 to "
                              f"{LARGEST_SIDE}")
        for name in ("label_optional", "gradient"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} is {one_line(getattr(self, name))}, expected true or false")
        for name in ("precision", "target", "weights"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} is {one_line(getattr(self, name))}, expected a text")
        if len(self.data_range) != 2 or not all(map(is_number, self.data_range)):
            raise ConfigError(f"data_range is {one_line(self.data_range)}, expected two numbers")
        objects = (self.architecture, self.source, self.parity, self.versions)
        if not all(isinstance(value, Mapping) for value in objects):
            raise ConfigError("architecture, source, parity and versions must be objects")
        if not all(map(is_number, self.parity.values())):
            raise ConfigError(f"parity is {one_line(self.parity)}, expected numbers")
        sizes = [self.architecture.get(name) for name in ("widest", "kept", "parameters")]
        channels = self.architecture.get("channels", [])
        if not isinstance(channels, list | tuple) or not all(_is_count(count, MOST_VALUES) for count in channels) or (
                not all(size is None or _is_count(size, MOST_VALUES) for size in sizes)):
            raise ConfigError(f"architecture is {one_line(self.architecture)}, expected whole numbers of channels, "
                              "values and parameters")
        try:
            self.to_json()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the metadata hold what JSON cannot: {first_line(error)}") from None

    @property
    def solver_options(self) -> dict[str, float]:
        """What the model says of solvers' options that are left to it, by name."""
        return {"snr": self.snr, "n_corrector": self.n_corrector}

    def to_json(self) -> str:
        """The metadata as the JSON text that the file holds."""
        number = 3 if self.gradient else 2 if self.labels else 1   # older versions read what they can
        return json.dumps({"format": number, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, name: str) -> ModelMetadata:
        """Reads the JSON text of a model file.

        Args:
            text: the JSON.
            name: what to call the file in messages.

        Raises:
            ModelFileError: no JSON object, a newer format, or fields missing or out of range.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"{name}: its sde_onnx metadata is not JSON ({first_line(error)}); export it again"
                                 ) from None
        number = values.get("format") if isinstance(values, dict) else None
        if not isinstance(number, int) or number < 1:
            raise ModelFileError(f"{name}: its sde_onnx metadata names no format; export the model again")
        if number > FORMAT:
            raise ModelFileError(
                f"{name} has metadata format {number}, this sde-onnx reads up to {FORMAT}: upgrade sde-onnx"
            )
        try:
            since = {"labels": 0, "label_optional": False, "gradient": False, "weights": "fp32"}   # came later
            known = {item.name: (since | values)[item.name] for item in fields(cls)}
            known["schedule"] = VeSchedule(**known["schedule"])
            known["image_shape"] = tuple(known["image_shape"])
            known["data_range"] = tuple(known["data_range"])
            return cls(**known)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise ModelFileError(f"{name}: its sde_onnx metadata is damaged ({type(error).__name__}: "
                                 f"{first_line(error)}); export it again") from None


@contextmanager
def telling_damage(name: str) -> Iterator[None]:
    """Refuses a file whose texts, as ONNX Runtime gives them, are no texts; ``ModelFileError``."""
    try:
        yield
    except UnicodeDecodeError:
        raise ModelFileError(f"{name} is damaged: it holds texts that are none; make it again") from None


METADATA_PROPS = 14   # the field of a ModelProto; each entry's key is field 1, its value field 2
LOCATION = b"\x0a\x08location\x12"   # the key of a tensor's file, as a StringStringEntryProto begins
EXTERNAL = re.compile(rb"j([\0-\x7f]|[\x80-\xff][\1-\x7f])\Z")   # before it: field 13 of a TensorProto, and a length


def check_one_file(path: Path) -> None:
    """``ModelFileError`` of an ONNX file that keeps its weights in others.

    A run is gone on with by the same model alone, and a model is known by the hash of its file. Source: onnx.proto,
    TensorProto's external_data, as protobuf's own writers write it.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            place = content.find(LOCATION)
            while place >= 0 and not EXTERNAL.search(content[max(0, place - 3) : place]):   # an entry of metadata
                place = content.find(LOCATION, place + 1)
    except ValueError:   # of an empty file, of which ONNX Runtime has more to say
        return
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
    if place >= 0:
        raise ModelFileError(f"{path} keeps weights in another file, expected all in one: "
                             "`onnx.save(onnx.load(FILE), NEW)` puts them together")


VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5   # protobuf's wire types


def metadata_properties(model: bytes) -> dict[str, str]:
    """The metadata of an ONNX file, read off its protobuf: ONNX Runtime tells it only where it can run the graph.

    Args:
        model: the file's content, which ONNX Runtime has read without complaint.

    Source: onnx.proto, message ModelProto; protobuf's encoding.
    """
    properties = {}
    for number, entry in _fields(model):
        if number == METADATA_PROPS:
            texts = dict(_fields(entry))
            properties[texts.get(1, b"").decode()] = texts.get(2, b"").decode()
    return properties


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The numbers and contents of a message's length-delimited fields."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        length = {FIXED64: 8, FIXED32: 4}.get(tag & 7, 0)
        if tag & 7 == VARINT:
            _, place = _varint(message, place)
        elif tag & 7 == BYTES:
            length, place = _varint(message, place)
            yield tag >> 3, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place

"""The errors and warnings of sde-onnx, one root and a subclass for each cause to be told, and how messages show things.

A message says what was got, what was expected and what to do, in one line; the command line prints it as it is.
"""

from __future__ import annotations

import unicodedata

__all__ = [
    "BatchSizeWarning",
    "CheckpointError",
    "ConfigError",
    "GradientError",
    "InputError",
    "InstallationWarning",
    "MissingExtraError",
    "ModelFileError",
    "NonFiniteError",
    "OutputError",
    "ParityError",
    "ProviderError",
    "ProviderWarning",
    "SdeOnnxError",
    "SlowPrecisionWarning",
    "counted",
    "escaped",
    "first_line",
    "one_line",
    "shown_size",
]


UNSHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")   # controls, formats such as the direction of writing, surrogates, new lines


class SdeOnnxError(Exception):
    """Anything that sde-onnx refuses or cannot do.

    Its message is one line whatever the names in it, which files may give: characters that do not print are escaped.
    """

    def __str__(self) -> str:
        return escaped(super().__str__())


class InputError(SdeOnnxError, ValueError):
    """An argument is out of its range, or an array has the wrong shape or dtype."""


class ConfigError(SdeOnnxError, ValueError):
    """An architecture or schedule that cannot be."""


class CheckpointError(SdeOnnxError, ValueError):
    """A checkpoint is missing, damaged, or of a network that is not supported."""


class MissingExtraError(SdeOnnxError, ImportError):
    """A package that an optional part needs is not installed."""


class ModelFileError(SdeOnnxError, ValueError):
    """A file is not an ONNX model of ours."""


class ForeignFileError(ModelFileError):
    """A file is an ONNX model, and not of ours."""


class ProviderError(SdeOnnxError):
    """An execution provider was asked for and cannot run here. No RuntimeError: as such ONNX Runtime's are caught."""


class GradientError(SdeOnnxError, ValueError):
    """A graph has no gradient, or not with the rules that there are."""


class ParityError(SdeOnnxError, RuntimeError):
    """An exported graph does not compute what the network computes."""


class NonFiniteError(SdeOnnxError, ArithmeticError):
    """NaN or infinity appeared while sampling."""


class OutputError(SdeOnnxError, OSError):
    """An output exists already or cannot be written."""


class InstallationWarning(UserWarning):
    """Packages that overwrite each other are installed together."""


class BatchSizeWarning(ResourceWarning):
    """Fewer images at a time are sampled than were asked for, since they do not fit into memory."""


class ProviderWarning(UserWarning):
    """A provider runs, but not in the way that was tried first."""


class SlowPrecisionWarning(UserWarning):
    """A precision was asked for that is slower here than float32."""


def counted(count: int, noun: str) -> str:
    """A number of things for a message: 1 image, 2 images."""
    return f"{count} {noun}{'s' * (count != 1)}"


def shown_size(size: int) -> str:
    """A number of bytes for a message."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def escaped(text: str) -> str:
    """A text in one line that changes nothing else on a terminal: its control characters as Python writes them."""
    return "".join(repr(letter)[1:-1] if unicodedata.category(letter) in UNSHOWN else letter for letter in text)


def first_line(error: BaseException) -> str:
    """What an error of another library says in one line; the system's without its number."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def one_line(value: object) -> str:
    """A value of a caller's for a message: its repr in one line, and not all of a long one."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:   # a whole number of more digits than Python writes
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."

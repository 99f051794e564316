"""Optional dependencies: asked for where they are needed, missed with the line that installs them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from sde_onnx.errors import MissingExtraError

__all__ = ["has_export", "require_diffusers", "require_export", "require_matplotlib", "require_ray",
           "require_scipy"]

EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "safetensors", "huggingface_hub")


def require_scipy() -> None:
    """Makes sure that adaptive ODE solvers can run here; ``MissingExtraError`` if not."""
    _require("this solver needs", "scipy", extra="ode")


def require_matplotlib() -> None:
    """Makes sure that a plot can be drawn here; ``MissingExtraError`` if not."""
    _require("a plot needs", "matplotlib", extra="plot")


def require_ray() -> None:
    """Makes sure that Ray is here; ``MissingExtraError`` if not."""
    _require("sampling on Ray needs", "ray", extra="ray")


def require_diffusers() -> None:
    """Makes sure that a network of diffusers' own blocks can be read here; ``MissingExtraError`` if not."""
    _require("this network has other blocks than NCSN++'s, which need", "diffusers", extra="diffusers")


def require_export() -> None:
    """Makes sure that a checkpoint can be exported here; ``MissingExtraError`` if not."""
    _require("this needs", *EXPORT_PACKAGES, extra="export")


def has_export() -> bool:
    """Whether the export extra is installed."""
    return not _missing(EXPORT_PACKAGES)


def _require(needs: str, *packages: str, extra: str) -> None:
    if missing := _missing(packages):
        raise MissingExtraError(f"{needs} {', '.join(missing)}, not installed here: pip install 'sde-onnx[{extra}]'")


def _missing(packages: Sequence[str]) -> list[str]:
    return [name for name in packages if find_spec(name) is None]

"""Optional dependencies: asked for where they are needed, missed with the line that installs them."""

from __future__ import annotations

from importlib.util import find_spec

from sde_onnx.errors import MissingExtraError

__all__ = ["has_export", "require_diffusers", "require_export", "require_matplotlib", "require_scipy"]

EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "safetensors", "huggingface_hub")


def require_scipy() -> None:
    """Makes sure that adaptive ODE solvers can run here.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    if find_spec("scipy") is None:
        raise MissingExtraError("this solver needs scipy, not installed here: pip install 'sde-onnx[ode]'")


def require_matplotlib() -> None:
    """Makes sure that a plot can be drawn here.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("a plot needs matplotlib, not installed here: pip install 'sde-onnx[plot]'")


def require_diffusers() -> None:
    """Makes sure that a network of diffusers' own blocks can be read here.

    Raises:
        MissingExtraError: diffusers is not installed.
    """
    if find_spec("diffusers") is None:
        raise MissingExtraError("this network has other blocks than NCSN++'s, which need diffusers, not installed "
                                "here: pip install 'sde-onnx[diffusers]'")


def require_export() -> None:
    """Makes sure that a checkpoint can be exported here.

    Raises:
        MissingExtraError: a package of the export extra is not installed.
    """
    if missing := _missing():
        raise MissingExtraError(
            f"this needs {', '.join(missing)}, not installed here: pip install 'sde-onnx[export]'"
        )


def has_export() -> bool:
    """Whether the export extra is installed."""
    return not _missing()


def _missing() -> list[str]:
    return [name for name in EXPORT_PACKAGES if find_spec(name) is None]

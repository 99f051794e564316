"""``python -m sde_onnx`` and ``sde-onnx``: the command line."""

from __future__ import annotations

import sys

__all__ = ["run"]


def run() -> None:
    """Runs the command line; an interruption while its modules are read is one line, as it is later."""
    try:
        from sde_onnx.cli import main
    except KeyboardInterrupt:
        sys.exit("Aborted!")
    main(prog_name="sde-onnx")


if __name__ == "__main__":
    run()

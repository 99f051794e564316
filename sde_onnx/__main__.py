"""``python -m sde_onnx``: the command line."""

from sde_onnx.cli import main

main(prog_name="sde-onnx")

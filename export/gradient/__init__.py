"""Gradients of ONNX graphs: reverse mode, one rule an operator."""

from sde_onnx.export.gradient.reverse import add_gradient

__all__ = ["add_gradient"]

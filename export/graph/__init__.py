"""Graphs of ONNX: traced, built, read, matched."""

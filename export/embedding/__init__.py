"""Samplers as ONNX files: a plan, the network and the noise in one graph."""

"""A model file, running: its metadata, ONNX Runtime's sessions and providers, the loop on a device."""

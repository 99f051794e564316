"""What samples: noise levels, noise, and solvers as plans of network evaluations.

numpy alone; knows neither sessions nor files. :mod:`sde_onnx.solvers.catalogue` is the way in.
"""

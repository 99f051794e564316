"""The subjects of the benchmarks: each function returns a score function, in whichever process calls it.

torch is imported inside: a subject that needs none must not pay for it in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["diffusers_compiled", "diffusers_eager", "ours", "plain_export"]

Array = NDArray[np.float32]
ScoreFunction = Callable[[Array, Array], Array]


def diffusers_eager(unet_folder: str, bf16: bool = False, compiled: bool = False) -> ScoreFunction:
    """diffusers' own module in PyTorch.

    Args:
        unet_folder: the checkpoint's unet folder.
        bf16: run in channels_last under autocast to bfloat16.
        compiled: through torch.compile.
    """
    import torch
    from diffusers import UNet2DModel

    unet = UNet2DModel.from_pretrained(unet_folder, low_cpu_mem_usage=False).eval()
    if bf16:
        unet = unet.to(memory_format=torch.channels_last)
    run: Any = torch.compile(unet) if compiled else unet

    def score(x: Array, sigma: Array) -> Array:
        tensor = torch.from_numpy(x)
        if bf16:
            tensor = tensor.to(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return run(tensor, torch.from_numpy(sigma)).sample.float().contiguous().numpy()

    return score


def diffusers_compiled(unet_folder: str, bf16: bool = False) -> ScoreFunction:
    """diffusers' own module under torch.compile."""
    return diffusers_eager(unet_folder, bf16=bf16, compiled=True)


def plain_export(path: str) -> ScoreFunction:
    """A file that ``torch.onnx.export`` made of diffusers' own module, under ONNX Runtime's CPU provider."""
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    return lambda x, sigma: session.run(None, dict(zip(names, (x, sigma), strict=True)))[0]


def ours(path: str, provider: str, precision: str = "fp32") -> ScoreFunction:
    """A model file of ours."""
    import sde_onnx

    return sde_onnx.load(path, provider, precision=precision)

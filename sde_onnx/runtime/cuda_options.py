"""NVIDIA's GPUs: the options of ONNX Runtime's CUDA and TensorRT providers.

CUDA:

    prefer_nhwc                  channels last inside, which tensor cores take without a reorder
    fuse_conv_bias               a convolution and its bias as one kernel; exists for channels last. Not in float32: a
                                 plan that cannot be built so is built again with TensorFloat-32, without a word
    cudnn_conv_algo_search       which of cuDNN's plans is taken: EXHAUSTIVE, its heuristics B; HEURISTIC, A; DEFAULT,
                                 its fallback. Not every mode has a plan for every convolution: see SEARCHES
    cudnn_conv_use_max_workspace whatever memory the fastest plan asks for
    use_tf32                     0 in float32: TensorFloat-32 has 11 bits. 0 keeps cuDNN from every kernel on tensor
                                 cores, whatever the type, so it is 1 in float16
    arena_extend_strategy        kSameAsRequested: the arena grows by what is asked for and not to the next power of two
    enable_cuda_graph            for the loop on the device: an evaluation is one launch

Source: ONNX Runtime 1.31, core/providers/cuda/nn/conv.cc and cudnn_fe_call.cc.
"""

from __future__ import annotations

from sde_onnx.files import cache_folder

__all__ = ["CUDA_PRECISIONS", "HOW_TO_GET", "SEARCHES", "TENSORRT_PRECISIONS", "cuda_options", "tensorrt_options"]

CUDA_PRECISIONS = ("fp32", "tf32")     # of a file that leaves it open
TENSORRT_PRECISIONS = ("fp32", "fp16")
SEARCHES = ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")   # the best first
HOW_TO_GET = {
    "cuda": "for an NVIDIA GPU install its driver and `pip install 'onnxruntime-gpu[cuda,cudnn]'`",
    "tensorrt": "for an NVIDIA GPU install its driver and `pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt-cu13`",
}


def cuda_options(precision: str, *, search: str = SEARCHES[0], capture: bool = False) -> dict[str, str]:
    """Options of the CUDA provider.

    Args:
        precision: ``"fp32"``; ``"tf32"``, in which float32 convolutions and products run in TensorFloat-32; or
            ``"fp16"``, of a file that holds it.
        search: one of SEARCHES.
        capture: evaluations as CUDA graphs, for sessions that run on bound buffers alone.
    """
    return {
        "prefer_nhwc": "1",
        "fuse_conv_bias": str(int(precision != "fp32")),
        "cudnn_conv_algo_search": search,
        "cudnn_conv_use_max_workspace": "1",
        "use_tf32": str(int(precision != "fp32")),
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": str(int(capture)),
    }


def tensorrt_options(precision: str, *, cached: bool) -> dict[str, str]:
    """Options of the TensorRT provider, which builds an engine for minutes; ``cached`` keeps it in the cache folder."""
    half = {"trt_fp16_enable": str(int(precision == "fp16"))}
    if not cached:
        return half
    folder = cache_folder() / "tensorrt"
    folder.mkdir(parents=True, exist_ok=True)
    return half | {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }

"""Options of NVIDIA's providers, by precision."""

import pytest

from sde_onnx.runtime.cuda_options import SEARCHES, cuda_options, tensorrt_options


@pytest.mark.parametrize(("precision", "fast"), [("fp32", "0"), ("tf32", "1"), ("fp16", "1")])
def test_only_fp32_is_exact(precision, fast):
    """TensorFloat-32 rounds the inputs of products, and a fused bias what it is added to."""
    options = cuda_options(precision)
    assert (options["use_tf32"], options["fuse_conv_bias"], options["prefer_nhwc"]) == (fast, fast, "1")


def test_evaluations_are_captured_where_that_is_asked_for():
    assert cuda_options("fp32")["enable_cuda_graph"] == "0"
    assert cuda_options("fp32", capture=True)["enable_cuda_graph"] == "1"


def test_the_best_plans_are_looked_for_first():
    assert cuda_options("fp32")["cudnn_conv_algo_search"] == SEARCHES[0] == "EXHAUSTIVE"
    assert cuda_options("fp32", search="DEFAULT")["cudnn_conv_algo_search"] == "DEFAULT"


def test_engines_that_take_minutes_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SDE_ONNX_CACHE", str(tmp_path / "cache"))
    assert tensorrt_options("fp16", cached=False) == {"trt_fp16_enable": "1"}
    assert not (tmp_path / "cache").exists()
    options = tensorrt_options("fp32", cached=True)
    assert (options["trt_fp16_enable"], options["trt_engine_cache_enable"]) == ("0", "1")
    assert options["trt_engine_cache_path"] == str(tmp_path / "cache" / "tensorrt")
    assert (tmp_path / "cache" / "tensorrt").is_dir()

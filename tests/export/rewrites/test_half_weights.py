"""Weights stored in float16: half the file, the same graph in float32."""

import numpy as np
import onnx
import pytest
from commands import done, refuses
from onnx import TensorProto

import sde_onnx
from sde_onnx.errors import ConfigError
from sde_onnx.export import export, from_diffusers
from sde_onnx.export.gradient.model_file import export_gradient
from sde_onnx.export.rewrites.half_weights import store_in_half


@pytest.mark.thorough
def test_the_file_is_half_as_large_and_computes_in_float32(half, digits):
    whole = sde_onnx.bundled_model()
    assert half.stat().st_size < 0.52 * whole.stat().st_size
    graph = onnx.load(half).graph
    large = [item for item in graph.initializer if np.prod(item.dims) >= 256 and len(item.dims) > 1]
    assert {item.data_type for item in large} == {TensorProto.FLOAT16}
    model = sde_onnx.load(half, "cpu")
    assert (model.metadata.weights, model.metadata.precision) == ("fp16", "fp32")
    x = np.random.default_rng().standard_normal((3, 3, 16, 16)).astype(np.float32)
    for sigma in (0.01, 0.5, 20.0):
        levels = np.full(3, sigma, np.float32)
        error = np.linalg.norm(model(x, levels) - digits(x, levels)) / np.linalg.norm(digits(x, levels))
        assert 1e-6 < error < 1e-3   # of weights rounded to 11 bits, and of nothing else
    assert max(model.metadata.parity.values()) == pytest.approx(2e-4, rel=0.5)
    assert "fp32, weights fp16, for any provider" in done("info", half).output


@pytest.mark.thorough
def test_it_embeds_and_has_a_gradient(half, tmp_path):
    done("embed", half, "-o", tmp_path / "s.onnx", "--steps", 4, "--golden", tmp_path / "g.npz")
    assert "100.0000%" in done("verify", tmp_path / "s.onnx", tmp_path / "g.npz").output
    about = export_gradient(half, tmp_path / "gradient.onnx")
    assert max(error for case, error in about.parity.items() if case.startswith("vjp ")) < 5e-6
    assert (tmp_path / "gradient.onnx").stat().st_size < 1.1 * half.stat().st_size


def test_a_weight_that_float16_does_not_hold_is_refused():
    weight = onnx.numpy_helper.from_array(np.full((16, 16), 1e5, np.float32), "weight")
    node = onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [weight]))
    with pytest.raises(ConfigError, match=r"weight holds 1e\+05, float16 ends at 65504: store the weights in fp32"):
        store_in_half(model)


@pytest.mark.parametrize(("shape", "kind"), [
    ((1, 256), TensorProto.FLOAT),         # frequencies, whose phases of 10^3 rad would be off by turns
    ((1, 512, 1, 1), TensorProto.FLOAT),   # gains
    ((512,), TensorProto.FLOAT), ((4, 4), TensorProto.FLOAT),
    ((512, 512), TensorProto.FLOAT16), ((256, 1, 4, 4), TensorProto.FLOAT16), ((16, 16, 1, 1), TensorProto.FLOAT16),
], ids=str)
def test_what_is_more_than_a_vector_is_a_weight(shape, kind):
    """Whatever reads it: a weight may be scaled before its product."""
    value = onnx.numpy_helper.from_array(np.ones(shape, np.float32), "value")
    node = onnx.helper.make_node("Mul", ["x", "value"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [value]))
    store_in_half(model)
    assert [item.data_type for item in model.graph.initializer] == [kind]


def test_graphs_for_cuda_store_weights_in_their_precision(digits_checkpoint, tmp_path):
    checkpoint = digits_checkpoint
    refuses("--weights fp16 is not for --target cuda", "export", checkpoint, "-o", tmp_path / "m.onnx",
            "--target", "cuda", "--weights", "fp16", status=2)
    with pytest.raises(ConfigError, match="weights are 'int8', expected one of: fp32, fp16"):
        export(from_diffusers(checkpoint), tmp_path / "m.onnx", weights="int8")
    assert list(tmp_path.iterdir()) == []

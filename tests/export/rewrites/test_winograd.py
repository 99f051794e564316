"""3x3 convolutions as Winograd's: against torch in float64, and where they stay as they are."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from commands import done, refuses
from onnx import TensorProto, helper, numpy_helper

import sde_onnx
from sde_onnx.errors import InputError, ModelFileError, ProviderError
from sde_onnx.export.gradient.model_file import export_gradient
from sde_onnx.export.rewrites.winograd import POINTS, toom_cook, use_winograd

from networks import noisy_images, relative_error


def values(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def convolution(weight, bias=None, shape=("N", None, 16, 16), **attributes):
    """A model of one convolution of x, padded by 1."""
    constants = [numpy_helper.from_array(weight, "w"), *([] if bias is None else [numpy_helper.from_array(bias, "b")])]
    node = helper.make_node("Conv", ["x", *(item.name for item in constants)], ["y"],
                            **{"pads": [1, 1, 1, 1]} | attributes)
    groups = attributes.get("group", 1)
    x = values("x", [shape[0], weight.shape[1] * groups, *shape[2:]])
    graph = helper.make_graph([node], "g", [x], [values("y", ["N", weight.shape[0], None, None])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def kinds(model):
    return [node.op_type for node in model.graph.node]


def run(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("m", POINTS)
def test_the_matrices_slide_a_kernel_over_a_tile(m, rng):
    a, g, b = toom_cook(POINTS[m])
    assert (a.shape, g.shape, b.shape) == ((m + 2, m), (m + 2, 3), (m + 2, m + 2))
    d, kernel = rng.standard_normal(m + 2), rng.standard_normal(3)
    np.testing.assert_allclose(a.T @ ((g @ kernel) * (b.T @ d)), np.correlate(d, kernel, "valid"), atol=1e-13)


def test_the_matrices_of_two_results_are_those_of_the_paper():
    """Lavin and Gray 2016, section 4.1, whose G has the halves that other points move to B and whose signs differ."""
    a, g, b = toom_cook((Fraction(0), Fraction(1), Fraction(-1)))
    np.testing.assert_array_equal(np.abs(a.T), [[1, 1, 1, 0], [0, 1, 1, 1]])
    np.testing.assert_array_equal(np.abs(g), [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 1]])
    np.testing.assert_array_equal(np.abs(b.T), [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]])


@pytest.mark.parametrize(("size", "m"), [((16, 16), 4), ((8, 8), 2), ((32, 8), 4), ((18, 20), 2), ((12, 24), 4)])
@pytest.mark.parametrize(("channels", "results"), [(64, 64), (64, 96), (128, 64)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_is_the_convolution(size, m, channels, results, has_bias, rng):
    weight = (rng.standard_normal((results, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
    bias = rng.standard_normal(results).astype(np.float32) if has_bias else None
    model = convolution(weight, bias, ("N", None, *size))
    use_winograd(model)
    onnx.checker.check_model(model)
    strides = [list(attribute.ints) for node in model.graph.node for attribute in node.attribute
               if attribute.name == "strides"]
    assert strides == [[m, m]]
    for count in (1, 3):
        x = rng.standard_normal((count, channels, *size), np.float32)
        expected = F.conv2d(*(None if value is None else torch.from_numpy(value).double()
                              for value in (x, weight, bias)), padding=1)
        assert relative_error(run(model, x), expected.numpy()) < {2: 6e-7, 4: 2e-6}[m]


WEIGHT = np.ones((64, 64, 3, 3), np.float32)


@pytest.mark.parametrize("model", [
    convolution(WEIGHT, strides=[2, 2]), convolution(WEIGHT, dilations=[2, 2], pads=[2, 2, 2, 2]),
    convolution(WEIGHT, pads=[0, 0, 0, 0]), convolution(WEIGHT, pads=[1, 1, 0, 1]),
    convolution(WEIGHT[:, :1], group=64), convolution(WEIGHT[:, :, :1, :1], pads=[0, 0, 0, 0]),
    convolution(np.ones((64, 64, 5, 5), np.float32), pads=[2, 2, 2, 2]),
    convolution(WEIGHT[:32]), convolution(WEIGHT[:, :32]), convolution(WEIGHT, shape=("N", None, 9, 9)),
    convolution(WEIGHT, shape=("N", None, 6, 8)), convolution(WEIGHT, shape=("N", None, "H", "W")),
], ids=["stride", "dilation", "valid", "pads", "groups", "1x1", "5x5", "few results", "few channels", "odd", "small",
        "unknown size"])
def test_others_stay(model):
    use_winograd(model)
    assert kinds(model) == ["Conv"]


def test_a_weight_that_is_computed_stays_where_an_input_has_a_part_in_it():
    for name, stays in (("x", True), ("c", False)):
        nodes = [helper.make_node("ReduceMax", [name], ["scale"], keepdims=0),
                 helper.make_node("Mul", ["w", "scale"], ["scaled"]),
                 helper.make_node("Conv", ["x", "scaled"], ["y"], pads=[1, 1, 1, 1])]
        constants = [numpy_helper.from_array(value, key) for key, value in
                     {"w": WEIGHT, "c": np.full(3, 2, np.float32)}.items()]
        graph = helper.make_graph(nodes, "g", [values("x", ["N", 64, 16, 16])], [values("y", ["N", 64, 16, 16])],
                                  constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        x = np.random.default_rng(0).random((1, 64, 16, 16), np.float32)
        before = run(model, x)
        use_winograd(model)
        assert ("DepthToSpace" in kinds(model)) is not stays
        assert relative_error(run(model, x), before) < 2e-6


def test_the_kernels_are_transformed_when_the_file_is_loaded(rng, tmp_path):
    model = convolution(rng.standard_normal((64, 64, 3, 3)).astype(np.float32))
    use_winograd(model)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "loaded.onnx").graph
    assert [1, 36, 64, 64] in [list(item.dims) for item in loaded.initializer]
    assert sum(node.op_type == "Conv" for node in loaded.node) == 1   # that of the tiles, and none of the kernels


@pytest.fixture(scope="module")
def for_cpu(digits_checkpoint, shared):
    return shared("digits-cpu.onnx", lambda path: done("export", digits_checkpoint, "-o", path, "--target", "cpu"))


def test_a_file_for_cpu_has_the_scores_of_the_one_for_any(for_cpu, digits, rng):
    model = sde_onnx.load(for_cpu)
    assert (model.metadata.target, model.provider) == ("cpu", "cpu")
    assert "DepthToSpace" in kinds(onnx.load(for_cpu))
    assert max(model.metadata.parity.values()) < 5e-6
    assert abs(for_cpu.stat().st_size / sde_onnx.bundled_model().stat().st_size - 1) < 0.02   # weights are stored alike
    for sigma in (0.01, 0.5, 20.0):
        x, sigmas = noisy_images(rng, [sigma] * 3, (3, 16, 16))
        assert 0 < relative_error(model(x, sigmas), digits(x, sigmas)) < 1e-5


def test_a_file_for_cpu_runs_there_alone(for_cpu, tmp_path):
    assert "fp32, for cpu alone" in done("info", for_cpu).output
    with pytest.raises(ProviderError, match="was exported for cpu, openvino cannot run it: export it without --target"):
        sde_onnx.load(for_cpu, "openvino")
    for precision in ("tf32", "bf16", "fp16"):
        with pytest.raises(InputError, match=f"computes in fp32, not in {precision}"):
            sde_onnx.load(for_cpu, precision=precision)
    with pytest.raises(ModelFileError, match="was exported for cpu: export it without --target"):
        export_gradient(for_cpu, tmp_path / "g.onnx")


@pytest.mark.thorough
def test_it_samples_and_embeds(for_cpu, digits, tmp_path):
    options = {"solver": "heun", "steps": 5}
    images = sde_onnx.sample(sde_onnx.load(for_cpu), range(4), **options)
    np.testing.assert_allclose(images, sde_onnx.sample(digits, range(4), **options), atol=1e-3)
    done("embed", for_cpu, "-o", tmp_path / "s.onnx", "--steps", 4, "--golden", tmp_path / "g.npz")
    done("verify", tmp_path / "s.onnx", tmp_path / "g.npz")   # which the loop rounds in another way than the host


@pytest.mark.thorough
def test_its_gradient_is_written_for_cpu_too(digits_checkpoint, rng, tmp_path):
    done("export", digits_checkpoint, "-o", tmp_path / "m.onnx", "--target", "cpu", "--gradient", tmp_path / "g.onnx")
    done("gradient", sde_onnx.bundled_model(), "-o", tmp_path / "g2.onnx", "--target", "cpu")
    plain = sde_onnx.load(sde_onnx.bundled_gradient(), "cpu")
    for path in (tmp_path / "g.onnx", tmp_path / "g2.onnx"):
        model = sde_onnx.load(path)
        assert model.metadata.target == "cpu"
        assert kinds(onnx.load(path)).count("DepthToSpace") == 2 * kinds(onnx.load(tmp_path / "m.onnx")).count(
            "DepthToSpace")   # of the product as many as of the score
        for sigma in (0.01, 0.5, 20.0):
            x, sigmas = noisy_images(rng, [sigma] * 2, (3, 16, 16))
            v = rng.standard_normal(x.shape, np.float32)
            for got, expected in zip(model.vjp(x, sigmas, v), plain.vjp(x, sigmas, v), strict=True):
                assert 0 < relative_error(got, expected) < 1e-5


def test_what_does_not_go_together_is_refused(digits_checkpoint, tmp_path):
    refuses("--precision fp16 needs --target cuda", "export", digits_checkpoint, "-o", tmp_path / "m.onnx", "--target",
            "cpu", "--precision", "fp16", status=2)
    refuses("--target is for model files", "gradient", sde_onnx.bundled_model(), "-o", tmp_path / "g.onnx", "--of", "y",
            "--at", "x", "--target", "cpu", status=2)
    assert list(tmp_path.iterdir()) == []

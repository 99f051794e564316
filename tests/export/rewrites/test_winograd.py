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

from networks import noisy_images, worst_relative_error

ROUNDING = {2: 6e-7, 4: 2e-6}   # of float32 in one convolution, by m: twice what it is
OF_NETWORKS = 1e-5              # between two graphs of one network: what an export allows


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


def transforms(graph):
    """How often products become pixels: transposed convolutions whose tiles do not overlap."""
    ours = [{item.name: list(item.ints) for item in node.attribute} for node in graph.node
            if node.op_type == "ConvTranspose"]
    return sum(attributes.get("kernel_shape") == attributes["strides"] for attributes in ours)


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
    """Lavin and Gray 2016, section 4.1, but for signs that two matrices share."""
    a, g, b = toom_cook(POINTS[2])
    in_both, last = np.array([[-1], [1], [1], [1]]), np.array([[1], [1], [1], [-1]])
    np.testing.assert_array_equal((a * last).T, [[1, 1, 1, 0], [0, 1, -1, -1]])
    np.testing.assert_array_equal(g * in_both, [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    np.testing.assert_array_equal(b.T * in_both * last, [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])


@pytest.mark.parametrize("other", [(0, 1, -1, 2, -2), (0, 2, -2, 0.5, -0.5)])
def test_its_points_round_less_than_others(other):
    rng = np.random.default_rng(0)
    tiles, kernels = rng.standard_normal((64, 128, 6, 6)), rng.standard_normal((32, 128, 3, 3))
    exact = F.conv2d(*map(torch.from_numpy, (tiles, kernels))).numpy()

    def error(points):
        a, g, b = (np.kron(matrix, matrix) for matrix in toom_cook(points))
        values = np.einsum("tcp,pq->qct", tiles.reshape(64, 128, 36).astype(np.float32), b.astype(np.float32))
        weights = np.einsum("kcp,qp->qkc", kernels.reshape(32, 128, 9), g).astype(np.float32)
        results = np.einsum("qp,qkt->tkp", a.astype(np.float32), np.matmul(weights, values))
        return worst_relative_error(results.reshape(1, -1), exact.reshape(1, -1))

    assert error(tuple(map(Fraction, other))) > 1.3 * error(POINTS[4])


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
    assert strides == [[m, m]] * 2   # of both transforms
    for count in (1, 3):
        x = rng.standard_normal((count, channels, *size), np.float32)
        expected = F.conv2d(*(None if value is None else torch.from_numpy(value).double()
                              for value in (x, weight, bias)), padding=1)
        assert worst_relative_error(run(model, x), expected.numpy()) < ROUNDING[m]


WEIGHT = np.ones((64, 64, 3, 3), np.float32)


@pytest.mark.parametrize("model", [
    convolution(WEIGHT, strides=[2, 2]), convolution(WEIGHT, dilations=[2, 2], pads=[2, 2, 2, 2]),
    convolution(WEIGHT, pads=[0, 0, 0, 0]), convolution(WEIGHT, pads=[1, 1, 0, 1]),
    convolution(WEIGHT[:, :1], group=64), convolution(WEIGHT[:, :, :1, :1], pads=[0, 0, 0, 0]),
    convolution(np.ones((64, 64, 5, 5), np.float32), pads=[2, 2, 2, 2]),
    convolution(WEIGHT, auto_pad="SAME_UPPER", pads=[0, 0, 0, 0]),
    convolution(WEIGHT[:32]), convolution(WEIGHT[:, :32]), convolution(WEIGHT, shape=("N", None, 9, 9)),
    convolution(WEIGHT, shape=("N", None, 6, 8)), convolution(WEIGHT, shape=("N", None, "H", "W")),
], ids=["stride", "dilation", "valid", "pads", "groups", "1x1", "5x5", "auto", "few results", "few channels", "odd",
        "small", "unknown size"])
def test_others_stay(model):
    use_winograd(model)
    assert [node.op_type for node in model.graph.node] == ["Conv"]


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
        assert transforms(model.graph) == (0 if stays else 1)
        assert worst_relative_error(run(model, x), before) < ROUNDING[4]


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
    assert transforms(onnx.load(for_cpu).graph) > 0
    assert max(model.metadata.parity.values()) < OF_NETWORKS
    held = [sum(np.prod(item.dims) for item in onnx.load(path).graph.initializer)
            for path in (for_cpu, sde_onnx.bundled_model())]
    assert held[0] - held[1] < 3000   # weights are stored alike; the matrices and shapes are new
    for sigma in (0.01, 0.5, 20.0):
        x, sigmas = noisy_images(rng, [sigma] * 3, (3, 16, 16))
        assert 0 < worst_relative_error(model(x, sigmas), digits(x, sigmas)) < OF_NETWORKS


def test_a_file_for_cpu_runs_there_alone(for_cpu, tmp_path):
    assert "fp32, for cpu alone" in done("info", for_cpu).output
    with pytest.raises(ProviderError, match="was exported for cpu and not for openvino: export it without"):
        sde_onnx.load(for_cpu, "openvino")
    for precision in ("tf32", "bf16", "fp16"):
        with pytest.raises(InputError, match=f"computes in fp32, not in {precision}: export it without --target"):
            sde_onnx.load(for_cpu, precision=precision)
    with pytest.raises(InputError, match="provider 'nope' is unknown"):
        sde_onnx.load(for_cpu, "nope")
    makes = "sde-onnx export CHECKPOINT -o MODEL --target cpu --gradient FILE"
    with pytest.raises(ModelFileError, match=f"was exported for cpu, a gradient is made of what was not: `{makes}`"):
        export_gradient(for_cpu, tmp_path / "g.onnx")
    model = sde_onnx.load(for_cpu)
    x = np.zeros((1, *model.metadata.image_shape), np.float32)
    with pytest.raises(InputError, match=f"has no gradient: `{makes}` makes a file that has one"):
        model.vjp(x, np.ones(1, np.float32), x)


@pytest.mark.thorough
def test_it_samples_and_embeds(for_cpu, digits, tmp_path):
    request = {"solver": "heun", "steps": 5}
    images = sde_onnx.sample(sde_onnx.load(for_cpu), range(4), **request)
    np.testing.assert_allclose(images, sde_onnx.sample(digits, range(4), **request), atol=1 / 255)   # a level of a PNG
    told = done("embed", for_cpu, "-o", tmp_path / "s.onnx", "--steps", 4, "--golden", tmp_path / "g.npz").output
    assert "nfe 4, for cpu" in told
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    ort.InferenceSession(tmp_path / "s.onnx", options, providers=["CPUExecutionProvider"])
    loop = next(node for node in onnx.load(tmp_path / "loaded.onnx").graph.node if node.op_type == "Loop")
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    constants = {item.name: list(item.dims) for item in body.initializer}
    assert transforms(body) > 0
    assert [16, 9, 1, 1] not in [constants.get(name) for node in body.node for name in node.input]   # of the kernels
    done("verify", tmp_path / "s.onnx", tmp_path / "g.npz")   # which the loop rounds in another way than the host


@pytest.mark.thorough
def test_its_gradient_is_written_for_cpu_too(digits_checkpoint, rng, tmp_path):
    done("export", digits_checkpoint, "-o", tmp_path / "m.onnx", "--target", "cpu", "--gradient", tmp_path / "g.onnx")
    done("gradient", sde_onnx.bundled_model(), "-o", tmp_path / "g2.onnx", "--target", "cpu")
    plain = sde_onnx.load(sde_onnx.bundled_gradient(), "cpu")
    for path in (tmp_path / "g.onnx", tmp_path / "g2.onnx"):
        model = sde_onnx.load(path)
        assert model.metadata.target == "cpu"
        of_the_score = transforms(onnx.load(tmp_path / "m.onnx").graph)
        assert transforms(onnx.load(path).graph) == 2 * of_the_score > 0   # and as many of the product
        for sigma in (0.01, 0.5, 20.0):
            x, sigmas = noisy_images(rng, [sigma] * 2, (3, 16, 16))
            v = rng.standard_normal(x.shape, np.float32)
            for got, expected in zip(model.vjp(x, sigmas, v), plain.vjp(x, sigmas, v), strict=True):
                assert 0 < worst_relative_error(got, expected) < OF_NETWORKS


@pytest.mark.thorough
def test_weights_in_half_precision_are_transformed_too(half, digits_checkpoint, rng, tmp_path):
    done("export", digits_checkpoint, "-o", tmp_path / "m.onnx", "--target", "cpu", "--weights", "fp16", "--gradient",
         tmp_path / "g.onnx")
    x, sigmas = noisy_images(rng, [0.5] * 2, (3, 16, 16))
    expected = sde_onnx.load(half, "cpu")(x, sigmas)
    for name in ("m.onnx", "g.onnx"):
        assert (tmp_path / name).stat().st_size < 1.2 * half.stat().st_size
        model = sde_onnx.load(tmp_path / name)
        assert (model.metadata.target, model.metadata.weights) == ("cpu", "fp16")
        assert 0 < worst_relative_error(model(x, sigmas), expected) < OF_NETWORKS


def test_what_does_not_go_together_is_refused(digits_checkpoint, tmp_path):
    refuses("--precision fp16 needs --target cuda", "export", digits_checkpoint, "-o", tmp_path / "m.onnx", "--target",
            "cpu", "--precision", "fp16", status=2)
    refuses("--target is for model files", "gradient", sde_onnx.bundled_model(), "-o", tmp_path / "g.onnx", "--of", "y",
            "--at", "x", "--target", "cpu", status=2)
    with pytest.raises(InputError, match="target 'cuda' is unknown, expected one of: any, cpu"):
        export_gradient(sde_onnx.bundled_model(), tmp_path / "g.onnx", target="cuda")
    assert list(tmp_path.iterdir()) == []

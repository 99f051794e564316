"""Every gradient rule, alone: against torch's reverse mode and against finite differences, both in float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sde_onnx.errors import GradientError
from sde_onnx.export.gradient import add_gradient
from sde_onnx.export.gradient.reference import Reference, evaluate
from sde_onnx.export.gradient.rules import RULES

F32 = np.float32


def array(*shape: int, low: float = -1, high: float = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + 2**40).uniform(low, high, shape).astype(F32)   # no seed of `rng` is as large


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


IMAGE, WEIGHTS, DEPTHWISE = (2, 4, 6, 8), array(6, 4, 3, 3), array(4, 1, 4, 4)
# Operator, shape of x (with limits of its values, if not -1 and 1), the inputs with "x" where x goes, attributes.
CASES: list[tuple] = [
    ("Abs", IMAGE, ["x"], {}),
    ("Add", (2, 4, 1), ["x", array(2, 4, 5)], {}),
    ("Add", (4, 1), [array(2, 1, 5), "x"], {}),
    ("Add", IMAGE, ["x", "x"], {}),
    ("AveragePool", IMAGE, ["x"], {"kernel_shape": [3, 2], "strides": [3, 2]}),
    ("AveragePool", IMAGE, ["x"], {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 1, 1, 1]}),
    ("AveragePool", IMAGE, ["x"], {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1], "count_include_pad": 1}),
    ("BatchNormalization", IMAGE, ["x", array(4), array(4), array(4), array(4, low=0.5)], {"epsilon": 1e-3}),
    ("Cast", IMAGE, ["x"], {"to": TensorProto.DOUBLE}),
    ("Clip", IMAGE, ["x", F32(-0.5), F32(0.3)], {}),
    ("Clip", IMAGE, ["x", "", F32(0.3)], {}),
    ("Concat", IMAGE, [array(2, 1, 6, 8), "x", array(2, 3, 6, 8)], {"axis": 1}),
    ("Concat", IMAGE, ["x", "x"], {"axis": -1}),
    ("Conv", IMAGE, ["x", WEIGHTS, array(6)], {"pads": [1, 1, 1, 1]}),
    ("Conv", IMAGE, ["x", WEIGHTS], {"pads": [0, 2, 1, 0]}),
    ("Conv", IMAGE, ["x", WEIGHTS], {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    ("Conv", IMAGE, ["x", WEIGHTS], {"pads": [3, 3, 3, 3]}),
    ("Conv", IMAGE, ["x", WEIGHTS], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", IMAGE, ["x", WEIGHTS], {"pads": [0, 0, 1, 1], "strides": [2, 3]}),
    ("Conv", IMAGE, ["x", WEIGHTS], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", IMAGE, ["x", WEIGHTS], {"auto_pad": "SAME_LOWER"}),
    ("Conv", IMAGE, ["x", array(6, 4, 1, 1)], {}),
    ("Conv", IMAGE, ["x", array(6, 2, 3, 3)], {"group": 2, "pads": [1, 1, 1, 1]}),
    ("Conv", IMAGE, ["x", DEPTHWISE], {"group": 4, "pads": [1, 1, 2, 2]}),
    ("Conv", IMAGE, ["x", DEPTHWISE], {"group": 4, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", (2, 4, 7), ["x", array(5, 4, 3)], {"pads": [1, 0]}),
    ("ConvTranspose", IMAGE, ["x", array(4, 3, 4, 4)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("ConvTranspose", IMAGE, ["x", array(4, 1, 4, 4)], {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 4}),
    ("Cos", IMAGE, ["x"], {}),
    ("Div", (2, 4, 1), ["x", array(2, 4, 5, low=0.5, high=2)], {}),
    ("Div", ((4, 1), 0.5, 2), [array(2, 4, 5), "x"], {}),
    ("Dropout", IMAGE, ["x"], {}),
    ("Dropout", IMAGE, ["x", F32(0.5)], {}),
    ("Erf", IMAGE, ["x"], {}),
    ("Exp", IMAGE, ["x"], {}),
    ("Expand", (2, 1, 3), ["x", ints(4, 1, 5, 3)], {}),
    ("Flatten", IMAGE, ["x"], {"axis": 2}),
    ("Gather", IMAGE, ["x", ints(1)[0]], {"axis": 1}),
    ("Gather", IMAGE, ["x", ints(3, 0, 3, -1)], {"axis": 1}),
    ("Gather", IMAGE, ["x", ints(2, 3, 4)], {"axis": -1}),
    ("Gelu", IMAGE, ["x"], {}),
    ("Gemm", (2, 4), ["x", array(4, 5), array(5)], {"alpha": 0.5, "beta": 2.0}),
    ("Gemm", (2, 4), ["x", array(5, 4), array(2, 5)], {"transB": 1}),
    ("Gemm", (4, 2), ["x", array(4, 5)], {"transA": 1}),
    ("Gemm", (4, 2), ["x", array(5, 4)], {"transA": 1, "transB": 1, "alpha": 2.0}),
    ("Gemm", (4, 5), [array(2, 4), "x"], {}),
    ("Gemm", (5, 4), [array(2, 4), "x"], {"transB": 1}),
    ("Gemm", (4, 5), [array(4, 2), "x"], {"transA": 1}),
    ("Gemm", (5, 4), [array(4, 2), "x"], {"transA": 1, "transB": 1}),
    ("Gemm", (5,), [array(2, 4), array(4, 5), "x"], {"beta": 3.0}),
    ("Gemm", (5,), [array(2, 4), array(4, 5), "x"], {}),
    ("GlobalAveragePool", IMAGE, ["x"], {}),
    ("Identity", IMAGE, ["x"], {}),
    ("InstanceNormalization", IMAGE, ["x", array(4), array(4)], {"epsilon": 1e-3}),
    ("InstanceNormalization", (2, 4, 9), ["x", np.ones(4, F32), np.zeros(4, F32)], {}),
    ("InstanceNormalization", (2, 4, 9), ["x", np.ones(4, F32), array(4)], {}),
    ("LayerNormalization", (2, 5, 8), ["x", array(8), array(8)], {}),
    ("LayerNormalization", (2, 5, 8), ["x", array(5, 8)], {"axis": 1, "epsilon": 1e-2}),
    ("LeakyRelu", IMAGE, ["x"], {"alpha": 0.2}),
    ("Log", (IMAGE, 0.5, 2), ["x"], {}),
    ("LogSoftmax", (2, 5, 3), ["x"], {"axis": 1}),
    ("LogSoftmax", (2, 5, 3), ["x"], {}),
    ("MatMul", (2, 3, 4), ["x", array(4, 5)], {}),
    ("MatMul", (2, 3, 4), ["x", array(2, 4, 5)], {}),
    ("MatMul", (3, 4), ["x", array(2, 4, 5)], {}),
    ("MatMul", (2, 4, 5), [array(3, 4), "x"], {}),
    ("MatMul", (1, 4, 5), [array(3, 2, 6, 4), "x"], {}),
    ("Max", IMAGE, ["x", array(4, 6, 8, seed=1)], {}),
    ("MaxPool", IMAGE, ["x"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", IMAGE, ["x"], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("Min", (6, 8), [array(*IMAGE, seed=1), "x"], {}),
    ("Mul", (2, 4, 1), ["x", array(2, 4, 5)], {}),
    ("Mul", (5,), [array(2, 4, 5), "x"], {}),
    ("Mul", IMAGE, ["x", "x"], {}),
    ("Neg", IMAGE, ["x"], {}),
    ("Pad", IMAGE, ["x", ints(0, 1, 2, 0, 0, 0, 1, 3), F32(2)], {}),
    ("Pad", IMAGE, ["x", ints(1, 2), "", ints(-1)], {}),
    ("Pow", (IMAGE, 0.5, 2), ["x", F32(2.5)], {}),
    ("Pow", ((4, 1), 0.5, 2), ["x", array(2, 4, 5)], {}),
    ("Pow", IMAGE, ["x", ints(3)[0]], {}),
    ("Pow", ((2, 3), 0, 0), ["x", np.array([0, 1, 2], F32)], {}),
    ("Reciprocal", (IMAGE, 0.5, 2), ["x"], {}),
    ("ReduceMean", IMAGE, ["x", ints(2, 3)], {}),
    ("ReduceMean", IMAGE, ["x", ints(-1)], {"keepdims": 0}),
    ("ReduceMean", IMAGE, ["x", np.zeros(0, np.int64)], {}),
    ("ReduceSum", IMAGE, ["x", ints(1, 3)], {"keepdims": 0}),
    ("ReduceSum", IMAGE, ["x"], {}),
    ("ReduceSumSquare", IMAGE, ["x", ints(3)], {"keepdims": 0}),
    ("Relu", IMAGE, ["x"], {}),
    ("Reshape", IMAGE, ["x", ints(0, 2, -1)], {}),
    ("Resize", IMAGE, ["x", "", np.array([1, 1, 2, 3], F32)],
     {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Resize", IMAGE, ["x", "", "", ints(2, 4, 12, 16)], {}),
    ("Sigmoid", IMAGE, ["x"], {}),
    ("Sin", IMAGE, ["x"], {}),
    ("Slice", IMAGE, ["x", ints(1, -3), ints(3, 2**40), ints(1, 3)], {}),
    ("Slice", IMAGE, ["x", ints(-1), ints(-(2**60)), ints(3), ints(-2)], {}),
    ("Slice", IMAGE, ["x", ints(0), ints(6), ints(2), ints(2)], {}),
    ("Slice", (4, 4), ["x", ints(1, 0), ints(3, 4), "", ints(1, 2)], {}),
    ("Softmax", (2, 5, 3), ["x"], {"axis": 1}),
    ("Softmax", (2, 5, 3), ["x"], {}),
    ("Softplus", IMAGE, ["x"], {}),
    ("Split", IMAGE, ["x", ints(1, 3)], {"axis": 1}),
    ("Sqrt", (IMAGE, 0.5, 2), ["x"], {}),
    ("Squeeze", (2, 1, 5, 1), ["x", ints(1, 3)], {}),
    ("Sub", (2, 4, 1), ["x", array(2, 4, 5)], {}),
    ("Sub", (5,), [array(2, 4, 5), "x"], {}),
    ("Sum", (4, 1), [array(2, 4, 5), "x", "x"], {}),
    ("Tanh", IMAGE, ["x"], {}),
    ("Transpose", IMAGE, ["x"], {"perm": [2, 0, 3, 1]}),
    ("Transpose", (2, 3), ["x"], {}),
    ("Unsqueeze", (2, 5), ["x", ints(0, -1)], {}),
    ("Unsqueeze", (), ["x", ints(0)], {}),
    ("Where", (4, 1), [array(2, 4, 5) > 0, "x", array(5)], {}),
    ("Where", (5,), [array(2, 4, 5) > 0, array(4, 1), "x"], {}),
]


def graph_of(operator: str, x: np.ndarray, inputs: list, attributes: dict) -> onnx.ModelProto:
    """A model of one operator."""
    constants, names = [], []
    for place, item in enumerate(inputs):
        names.append(item if isinstance(item, str) else f"constant{place}")
        if not isinstance(item, str):
            constants.append(numpy_helper.from_array(np.asarray(item), names[-1]))
    results = ["y", "rest"] if operator == "Split" else ["y"]
    node = helper.make_node(operator, names, results, name="the node", **attributes)
    kind = TensorProto.DOUBLE if operator == "Cast" else TensorProto.FLOAT
    graph = helper.make_graph([node], "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
                              [helper.make_tensor_value_info("y", kind, None)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run(model: onnx.ModelProto, outputs: list[str], **feeds: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, feeds)


@pytest.mark.parametrize(("operator", "shape", "inputs", "attributes"), CASES,
                         ids=[f"{case[0]}{index}" for index, case in enumerate(CASES)])
def test_rule(operator, shape, inputs, attributes, rng):
    shape, low, high = shape if shape and isinstance(shape[0], tuple) else (shape, -1, 1)
    x = np.asarray(rng.uniform(low, high, shape), F32)
    model = graph_of(operator, x, inputs, attributes)
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    [y] = run(model, ["y"], x=x)
    v = rng.standard_normal(y.shape).astype(y.dtype)
    add_gradient(model, "y", "x")
    onnx.checker.check_model(model, full_check=True)
    unchanged, got = run(model, ["y", "vjp"], x=x, v=v)
    np.testing.assert_array_equal(unchanged, y)
    assert (got.dtype, got.shape) == (x.dtype, x.shape)

    def value(at: np.ndarray) -> np.ndarray:
        return evaluate(plain.graph, {"x": torch.from_numpy(np.asarray(at))}, "y").numpy()

    np.testing.assert_allclose(value(x.astype(np.float64)), y, rtol=1e-5, atol=1e-5)
    expected = Reference(plain, "y", "x").vjp({"x": x}, v)
    assert np.linalg.norm(got - expected) <= 2e-6 * np.linalg.norm(expected) + 1e-7
    direction, step = np.asarray(rng.standard_normal(shape)), 1e-7   # few values cross a kink
    along = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    assert float((along * v).sum()) == pytest.approx(float((expected * direction).sum()), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("bias", "quotients"), [(0, 1), (1, 2)])
def test_a_plain_norm_is_not_computed_again(bias, quotients):
    gain_and_bias = [np.ones(4, F32), np.full(4, bias, F32)]
    model = graph_of("InstanceNormalization", np.zeros((2, 4, 9), F32), ["x", *gain_and_bias], {})
    add_gradient(model, "y", "x")
    assert [node.op_type for node in model.graph.node].count("Div") == quotients


def test_every_rule_has_a_case():
    assert {case[0] for case in CASES} == set(RULES)


def test_of_equal_values_in_a_window_the_first_counts(rng):
    x = rng.integers(0, 2, (2, 4, 6, 8)).astype(F32)
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    model = graph_of("MaxPool", x, ["x"], attributes)
    [y] = run(model, ["y"], x=x)
    v = rng.standard_normal(y.shape).astype(F32)
    add_gradient(model, "y", "x")
    [got] = run(model, ["vjp"], x=x, v=v)
    tensor = torch.from_numpy(x).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(tensor, 3, 2, 1)
    expected, = torch.autograd.grad(pooled, tensor, torch.from_numpy(v))
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-6)


REFUSED = {
    "an operator without a rule": ("Ceil", (2, 3), ["x"], {}, "operator Ceil (node 'the node') has no gradient rule; "
                                                              "it feeds output 'y'"),
    "an input without a rule": ("Pow", (2, 3), [F32(2), "x"], {}, "has no gradient rule for its input 'x'"),
    "an interpolation": ("Resize", (1, 1, 4, 4), ["x", "", np.array([1, 1, 2, 2], F32)], {"mode": "linear"},
                         "the rule is for mode 'nearest'"),
    "a reflected border": ("Pad", (2, 3), ["x", ints(0, 1, 0, 1)], {"mode": "reflect"},
                           "the rule is for mode 'constant', not 'reflect'"),
    "an approximation": ("Gelu", (2, 3), ["x"], {"approximate": "tanh"}, "approximate = 'none'"),
    "windows beyond the image": ("MaxPool", (1, 1, 5, 5), ["x"],
                                 {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, "ceil_mode 0"),
    "windows with holes": ("MaxPool", (1, 1, 5, 5), ["x"], {"kernel_shape": [2, 2], "dilations": [2, 2]},
                           "windows without dilation"),
    "a scale that is not whole": ("Resize", (1, 1, 4, 4), ["x", "", np.array([1, 1, 2.2, 2], F32)], {},
                                  "the rule is for whole scales"),
    "channels resized": ("Resize", (1, 1, 4, 4), ["x", "", np.array([1, 2, 2, 2], F32)], {}, "two axes of an image"),
    "a line resized": ("Resize", (1, 1, 4), ["x", "", np.array([1, 1, 2], F32)], {}, "two axes of an image"),
    "a dropout that is on": ("Dropout", (2, 3), ["x", F32(0.5), np.array(True)], {}, "not being trained"),
    "nothing reduced": ("ReduceSum", (2, 3), ["x"], {"noop_with_empty_axes": 1}, "axes that are named"),
    "vectors": ("MatMul", (3,), [array(2, 3), "x"], {}, "not for vectors"),
}


@pytest.mark.parametrize(("operator", "shape", "inputs", "attributes", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_has_no_gradient_is_refused_by_a_line(operator, shape, inputs, attributes, message):
    model = graph_of(operator, array(*shape), inputs, attributes)
    before = model.SerializeToString()
    with pytest.raises(GradientError) as caught:
        add_gradient(model, "y", "x")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert model.SerializeToString() == before

"""The walk: what it follows, what it leaves out, what it refuses; and graphs that others have made."""

from __future__ import annotations

import importlib
import io

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import parser

from sde_onnx.errors import GradientError
from sde_onnx.export.gradient import add_gradient
from sde_onnx.export.gradient.reference import Reference, evaluate


def model_of(text: str) -> onnx.ModelProto:
    """A model of opset 20 from ONNX's own text form of a graph."""
    return parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]> {text}')


def run(model: onnx.ModelProto, outputs: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(outputs, feeds)


FAN_OUT = """g (float[N, 4] x, float[4, 4] unused) => (float[N, 4] y, float[N, 4] other)
<float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}> {
    a = Tanh(x)  b = MatMul(a, w)  c = Mul(a, b)  d = Add(c, x)  y = Sub(d, a)
    other = Ceil(y)
}"""


@pytest.mark.parametrize("batch", [1, 3])
def test_contributions_are_summed_for_any_batch(batch, rng):
    model, plain = model_of(FAN_OUT), model_of(FAN_OUT)
    add_gradient(model, "y", "x")   # though another output has no rule
    onnx.checker.check_model(model, full_check=True)
    x, v = (rng.standard_normal((batch, 4), np.float32) for _ in range(2))
    [got] = run(model, ["vjp"], {"x": x, "v": v, "unused": np.eye(4, dtype=np.float32)})
    expected = Reference(plain, "y", "x").vjp({"x": x}, v)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_only_what_lies_between_is_walked():
    text = """g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y)
    { a = Ceil(z)  b = Exp(x)  y = Mul(a, b)  c = Sin(y) }"""
    model = model_of(text)
    add_gradient(model, "y", "x", cotangent="weights", result="gradient")
    added = [node.op_type for node in model.graph.node][4:]
    assert added == ["Mul", "Mul", "Identity"]   # by a and by e^x; nothing of z, nor of c
    assert [item.name for item in model.graph.input] == ["x", "z", "weights"]
    assert [item.name for item in model.graph.output] == ["y", "gradient"]


@pytest.mark.parametrize("shape", [(3, 4, 2), (1, 1, 2)])
def test_what_was_reshaped_may_have_two_free_sizes(shape, rng):
    text = "g (float[N, M, 2] x) => (float[K] y) <int64[1] all = {-1}> { flat = Reshape(x, all)  y = Exp(flat) }"
    model = model_of(text)
    add_gradient(model, "y", "x")
    x = rng.standard_normal(shape, np.float32)
    v = rng.standard_normal(x.size, np.float32)
    [got] = run(model, ["vjp"], {"x": x, "v": v})
    np.testing.assert_allclose(got, np.exp(x) * v.reshape(shape), rtol=1e-5)


@pytest.mark.parametrize("condition", [
    "Greater(x, low)", "GreaterOrEqual(x, low)", "Less(x, low)", "LessOrEqual(x, low)", "Equal(x, low)",
    "And(above, below)", "Or(above, below)", "Not(above)",
])
def test_the_reference_compares_as_onnx_runtime_does(condition):
    model = model_of(f"""g (float[6] x) => (float[6] y) <float[1] low = {{0}}, float[1] high = {{1}}> {{
        above = Greater(x, low)  below = Less(x, high)  chosen = {condition}
        twice = Add(x, x)  y = Where(chosen, twice, x)
    }}""")
    x = np.array([-1, 0, 0.5, 1, 2, -3], np.float32)
    [y] = run(model, ["y"], {"x": x})
    np.testing.assert_array_equal(evaluate(model.graph, {
        "x": torch.from_numpy(x), **{item.name: torch.from_numpy(onnx.numpy_helper.to_array(item))
                                     for item in model.graph.initializer}}, "y", dtype=torch.float32), y)


@pytest.mark.parametrize("product", ["Mul(x, gate)", "Mul(gate, x)"])
def test_a_silu_takes_four_nodes(product):
    model = model_of(f"g (float[N, 4] x) => (float[N, 4] y) {{ gate = Sigmoid(x)  y = {product} }}")
    add_gradient(model, "y", "x")
    assert [node.op_type for node in model.graph.node][2:] == ["Sub", "Mul", "Add", "Mul", "Identity"]


@pytest.mark.parametrize(("nodes", "of"), [
    ("y = Mul(x, gate)", "y"),
    ("a = Mul(gate, x)  b = Exp(gate)  y = Mul(a, b)", "y"),                    # others read the gate
    ("a = Mul(gate, x)  b = Mul(x, gate)  c = Mul(gate, b)  y = Add(a, c)", "y"),   # of two SiLUs, and one more product
    ("y = Mul(x, gate)", "gate"),
])
def test_a_silus_gate_may_be_read_by_others(nodes, of, rng):
    text = f"g (double[N, 4] x) => (double[N, 4] y, double[N, 4] gate) {{ gate = Sigmoid(x)  {nodes} }}"
    model = model_of(text)
    add_gradient(model, of, "x")
    x, v = (rng.standard_normal((3, 4)) * size for size in (5, 1))
    [got] = run(model, ["vjp"], {"x": x, "v": v})
    expected = Reference(model_of(text), of, "x").vjp({"x": x}, v)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)   # doubles: in float32 shares cancel by chance


@pytest.mark.parametrize(("nodes", "chosen"), [
    ("e = Exp(x)  c = Greater(e, one)  b = Sin(x)  y = Where(c, b, x)", lambda x: x > 0),
    ("e = Ceil(x)  c = Greater(e, one)  b = Sin(x)  y = Where(c, b, x)", lambda x: x > 1),   # no rule is needed
    ("e = Exp(x)  s = Shape(e)  b = Sin(x)  y = Reshape(b, s)", lambda x: x == x),
])
def test_what_comparisons_and_shapes_alone_follow_from_has_no_share(nodes, chosen, rng):
    text = f"g (float[N, 4] x) => (float[N, 4] y) <float one = {{1}}> {{ {nodes} }}"
    model = model_of(text)
    add_gradient(model, "y", "x")
    x, v = (rng.standard_normal((3, 4), np.float32) for _ in range(2))
    [got] = run(model, ["vjp"], {"x": x, "v": v})
    np.testing.assert_allclose(got, v * np.where(chosen(x), np.cos(x), 1), rtol=1e-5, atol=1e-6)


def test_a_second_gradient_may_be_added_under_other_names(rng):
    text = "g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { a = Exp(x)  y = Mul(a, z) }"
    model = model_of(text)
    add_gradient(model, "y", "x")
    add_gradient(model, "y", "z", cotangent="w", result="vjp_z")
    x, z, v = (rng.standard_normal((2, 4), np.float32) for _ in range(3))
    of_x, of_z = run(model, ["vjp", "vjp_z"], {"x": x, "z": z, "v": v, "w": v})
    np.testing.assert_allclose(of_x, v * z * np.exp(x), rtol=1e-5)
    np.testing.assert_allclose(of_z, v * np.exp(x), rtol=1e-5)


def test_comparisons_are_constant_and_their_choice_is_not(rng):
    text = """g (float[N, 4] x) => (float[N, 4] y)
    <float zero = {0}> { above = Greater(x, zero)  b = Exp(x)  y = Where(above, b, x) }"""
    model = model_of(text)
    add_gradient(model, "y", "x")
    x, v = (rng.standard_normal((3, 4), np.float32) for _ in range(2))
    [got] = run(model, ["vjp"], {"x": x, "v": v})
    np.testing.assert_allclose(got, v * np.where(x > 0, np.exp(x), 1), rtol=1e-5)


def test_local_functions_are_opened(rng):
    model = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20, "ours" : 1]>
    g (float[N, 4] x) => (float[N, 4] y) { y = ours.Twice(x) }
    <opset_import: ["" : 20], domain: "ours"> Twice (a) => (b) { c = Mul(a, a)  b = Add(c, c) }""")
    add_gradient(model, "y", "x")
    x, v = (rng.standard_normal((3, 4), np.float32) for _ in range(2))
    np.testing.assert_allclose(run(model, ["vjp"], {"x": x, "v": v})[0], 4 * x * v, rtol=1e-5)


CAPTURED = """g (float[2] x, bool c) => (float[2] y) {
    a = If (c) <then_branch = t () => (float[2] b) { b = Mul(x, x) }, else_branch = e () => (float[2] b) { b = Exp(x) }>
    y = Add(x, a)
}"""
BRANCHES = """g (float[2] x, float[2] z, bool c) => (float[2] y) <float[2] w = {2, 3}> {
    a = If (c) <then_branch = t () => (float[2] b) { b = Mul(z, w) }, else_branch = e () => (float[2] b) { b = Exp(z) }>
    y = Mul(x, a)
}"""


def test_a_branch_that_does_not_depend_on_the_input_stays_as_it_is(rng):
    model = model_of(BRANCHES)
    add_gradient(model, "y", "x")
    x, z, v = (rng.standard_normal(2, np.float32) for _ in range(3))
    for chosen, factor in ((True, z * [2, 3]), (False, np.exp(z))):
        [got] = run(model, ["vjp"], {"x": x, "z": z, "v": v, "c": np.array(chosen)})
        np.testing.assert_allclose(got, v * factor, rtol=1e-5)


def test_an_output_that_is_left_out_is_no_value(rng):
    model = model_of("""g (float[N, 4] x) => (float[N, 4] y) <float three = {3}>
    { a, skipped = Dropout(x)  b = Clip(a, , three)  y = Mul(b, x) }""")
    model.graph.node[0].output[1] = ""
    add_gradient(model, "y", "x")
    x, v = (rng.standard_normal((2, 4), np.float32) for _ in range(2))
    np.testing.assert_allclose(run(model, ["vjp"], {"x": x, "v": v})[0], np.where(x < 3, 2 * x, 3) * v, rtol=1e-5)


@pytest.mark.parametrize("opset", [13, 17, 18, 20, 22])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_every_opset_and_type(opset, kind, rng):
    axes = ', axes: ints = [1]' if opset < 18 else ""
    named = "" if opset < 18 else ", one"
    name = {np.float32: "float", np.float64: "double", np.float16: "float16"}[kind]
    model = parser.parse_model(f"""<ir_version: 10, opset_import: ["" : {opset}]>
    g ({name}[N, 4] x) => ({name}[N, 4] y) <int64[1] one = {{1}}>
    {{ m = ReduceMean<keepdims: int = 1{axes}>(x{named})  c = Sub(x, m)  s = Softmax(c)  y = Mul(s, x) }}""")
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    add_gradient(model, "y", "x")
    x, v = (rng.standard_normal((3, 4)).astype(kind) for _ in range(2))
    [got] = run(model, ["vjp"], {"x": x, "v": v})
    assert got.dtype == kind
    expected = Reference(plain, "y", "x").vjp({"x": x}, v)
    assert np.linalg.norm(got - expected) <= (5e-3 if kind is np.float16 else 1e-6) * np.linalg.norm(expected)


def test_a_gemm_of_doubles(rng):
    model = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
    g (double[N, 4] x, double[4, 4] w) => (double[N, 4] y) { e = Exp(x)  y = Gemm<beta: float = 3.0>(x, w, e) }""")
    add_gradient(model, "y", "x")
    x, v = (rng.standard_normal((3, 4)) for _ in range(2))
    w = rng.standard_normal((4, 4))
    [got] = run(model, ["vjp"], {"x": x, "w": w, "v": v})
    np.testing.assert_allclose(got, v @ w.T + 3 * v * np.exp(x), rtol=1e-9)


SIMPLE = "g (float[N, 4] x, int64[N] k) => (float[N, 4] y, int64[N] n) { y = Exp(x)  n = Identity(k) }"
REFUSED = {
    "no such output": (SIMPLE, "score", "x", {}, "no output 'score', it has y, n"),
    "no such input": (SIMPLE, "y", "y", {}, "no input 'y', it has x, k"),
    "an integer output": (SIMPLE, "n", "x", {}, "output 'n' holds no float16, float32 or float64 numbers"),
    "an integer input": (SIMPLE, "y", "k", {}, "input 'k' holds no float16, float32 or float64 numbers"),
    "a name that is taken": (SIMPLE, "y", "x", {"cotangent": "k"}, "a value 'k' already: its gradient may be there; "
                             "if not, cotangent and result of add_gradient choose other names"),
    "no dependence": ("g (float[4] x, float[4] z) => (float[4] y, float[4] w) { y = Exp(x)  w = Sin(z) }", "y", "z", {},
                      "output 'y' does not depend on input 'z'"),
    "a path through integers": (
        "g (float[4] x) => (float[4] y) { n = Cast<to: int = 7>(x)  m = Cast<to: int = 1>(n)  y = Add(x, m) }",
        "y", "x", {}, "y depends on x through integers, at operator Cast"),
    "a shape that is not known": (
        """g (float[N, M] x, float[K, M] z) => (float[K, M] y)
        { s = Shape(z)  a = Reshape(x, s)  y = Concat<axis: int = 0>(a, z) }""",
        "y", "x", {}, "needs axes [0] to be fixed"),
    "an axis without places": (
        """g (float[N, 0] x) => (float[N] y) <int64[1] axes = {1}> { y = ReduceMean<keepdims: int = 0>(x, axes) }""",
        "y", "x", {}, "needs axes [1] to be fixed, and not 0"),
    "a shape that is not known after an operator without a rule": (
        """g (float[2, 4] x, float[4, 3] w) => (float[2, 3] y)
        { a = Celu(x)  b = com.microsoft.Own(a)  y = MatMul(b, w) }""",
        "y", "x", {}, "the shape of 'b' is not known: fix the sizes of the graph's inputs; and operator "
                      "com.microsoft::Own (node 'b') has no gradient rule"),
    "a branch that captures the input": (CAPTURED, "y", "x", {}, "operator If (node 'a') has no gradient rule"),
    "an initializer's name": ("g (float[4] x) => (float[4] y) <float[4] v = {1, 2, 3, 4}> { y = Mul(x, v) }",
                              "y", "x", {}, "a value 'v' already"),
    "two outputs of a norm": (
        """g (float[2, 4] x) => (float[2, 4] y) <float[4] w = {1, 2, 3, 4}>
        { a, m = LayerNormalization(x, w)  y = Add(a, m) }""",
        "y", "x", {}, "the rule is for the first output, not for m"),
    "places that are an input": (
        """g (float[4] x, int64[1] start) => (float[2] y) <int64[1] start = {0}, int64[1] end = {2}>
        { y = Slice(x, start, end) }""", "y", "x", {}, "'start' is no constant of the graph"),
    "an input that is read where it has no rule": (
        "g (float[4] x) => (float[4] y) { y = Pow(x, x) }", "y", "x", {}, "has no gradient rule for its input 'x'"),
    "a foreign operator": ("g (float[4] x) => (float[4] y) { y = com.microsoft.QuickGelu(x) }", "y", "x", {},
                           "operator com.microsoft::QuickGelu"),
}


@pytest.mark.parametrize(("text", "of", "at", "names", "message"), REFUSED.values(), ids=list(REFUSED))
def test_refused_by_a_line(text, of, at, names, message):
    model = model_of(text)
    before = model.SerializeToString()
    with pytest.raises(GradientError) as caught:
        add_gradient(model, of, at, **names)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert model.SerializeToString() == before


def test_an_old_opset_is_refused_by_a_line():
    model = parser.parse_model('<ir_version: 7, opset_import: ["" : 12]> g (float[4] x) => (float[4] y) { y = Exp(x) }')
    with pytest.raises(GradientError, match="opset 12, expected 13 or above"):
        add_gradient(model, "y", "x")


@pytest.fixture(scope="module")
def vision_models(torchvision_folder):
    """torchvision's networks, which are plain Python."""
    return importlib.import_module("torchvision.models")


NETWORKS = {
    "ResNet": lambda models: (models.resnet18(), 96),
    "vision transformer": lambda models: (models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128), 32),
}


@pytest.mark.slow
@pytest.mark.parametrize(("exporter", "name"), [("dynamo", "ResNet"), ("torchscript", "ResNet"),
                                                ("dynamo", "vision transformer")])
def test_the_gradient_of_a_logit_of_torchvisions_networks(vision_models, name, exporter):
    torch.manual_seed(0)
    network, size = NETWORKS[name](vision_models)
    for parameter in network.parameters():   # a new transformer's head is zero
        parameter.data += 0.02 * torch.randn_like(parameter)
    network.eval()
    free = ({"dynamic_shapes": ({0: torch.export.Dim("N")},)} if exporter == "dynamo"
            else {"dynamic_axes": {"x": {0: "N"}, "y": {0: "N"}}})
    file = io.BytesIO()
    torch.onnx.export(network, (torch.rand(2, 3, size, size),), file, dynamo=exporter == "dynamo", input_names=["x"],
                      output_names=["y"], opset_version=18, **free)
    model = onnx.load_from_string(file.getvalue())
    add_gradient(model, "y", "x")
    x = torch.rand(3, 3, size, size, requires_grad=True)
    v = torch.zeros(3, 1000)
    v[:, 7] = 1
    [got] = run(model, ["vjp"], {"x": x.detach().numpy(), "v": v.numpy()})
    expected, = torch.autograd.grad(network(x)[:, 7].sum(), x)
    assert np.linalg.norm(got - expected.numpy()) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.slow
def test_the_gradient_of_a_probability_of_scikit_learns_classifier():
    skl2onnx = pytest.importorskip("skl2onnx", reason="skl2onnx is not installed")
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    images, digits = load_digits(return_X_y=True)
    classifier = MLPClassifier((32, 16), max_iter=30, random_state=0).fit(images[:500] / 16, digits[:500])
    kind = skl2onnx.common.data_types.FloatTensorType([None, 64])
    model = skl2onnx.to_onnx(classifier, initial_types=[("x", kind)], options={"zipmap": False}, target_opset=18)
    add_gradient(model, "probabilities", "x")
    x = torch.tensor(images[500:504] / 16, dtype=torch.float32, requires_grad=True)
    v = torch.zeros(4, 10)
    v[:, 3] = 1
    [got] = run(model, ["vjp"], {"x": x.detach().numpy(), "v": v.numpy()})
    h = x
    for index, (weights, bias) in enumerate(zip(classifier.coefs_, classifier.intercepts_, strict=True)):
        h = h @ torch.tensor(weights, dtype=torch.float32) + torch.tensor(bias, dtype=torch.float32)
        h = h.relu() if index < 2 else h.softmax(1)
    expected, = torch.autograd.grad(h[:, 3].sum(), x)
    assert np.linalg.norm(got - expected.numpy()) <= 1e-5 * np.linalg.norm(expected)

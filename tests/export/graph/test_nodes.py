"""Helpers of graphs, against what ONNX Runtime computes."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from sde_onnx.export.graph.nodes import Nodes, attributes_of, inlined, readers_of, remove_opset, silu_of


def value(name, shape=("N", 4, 3)):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model_of(nodes, constants, inputs, outputs):
    graph = helper.make_graph(nodes, "graph", [value(name) for name in inputs], [value(name) for name in outputs],
                              constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, **feeds):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def test_a_norm_without_gain_is_written_out(rng):
    nodes = Nodes("norm")
    result = nodes.normalized("x", (1, 2), 1e-6)
    model = model_of(nodes.nodes, list(nodes.constants.values()), ["x"], [result])
    x = rng.normal(3, 2, (2, 4, 3)).astype(np.float32)
    [got] = run(model, x=x)
    centred = x - x.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(got, centred / np.sqrt(x.var(axis=(1, 2), keepdims=True) + 1e-6), atol=1e-5)


def test_equal_constants_are_one(rng):
    nodes = Nodes("n")
    assert nodes.constant(np.float32(2)) == nodes.constant(np.float32(2)) != nodes.constant(np.float64(2))
    assert len(nodes.constants) == 2


def test_a_graph_inlined_twice_computes_twice(rng):
    nodes = Nodes("f")
    nodes.add("Mul", nodes.add("Add", "x", nodes.constant(np.float32(1))), "x", output="y")
    inner = model_of(nodes.nodes, list(nodes.constants.values()), ["x"], ["y"]).graph
    first, constants = inlined(inner, "a/", {"x": "x", "y": "between"})
    second, others = inlined(inner, "b/", {"x": "between", "y": "z"})
    x = rng.standard_normal((2, 4, 3), np.float32)
    [z] = run(model_of([*first, *second], [*constants, *others], ["x"], ["z"]), x=x)
    once = (x + 1) * x
    np.testing.assert_allclose(z, (once + 1) * once, rtol=1e-5)
    names = [node.name for node in (*first, *second)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("spoiled", "found"), [(None, True), ("another reader", False), ("another factor", False)])
def test_a_silu_is_found_where_nothing_else_reads_its_value(spoiled, found):
    nodes = Nodes("s")
    x = nodes.add("Neg", "x")
    gate = nodes.add("Sigmoid", x)
    silu = nodes.add("Mul", "x" if spoiled == "another factor" else x, gate)
    if spoiled == "another reader":
        nodes.add("Exp", gate)
    graph = model_of(nodes.nodes, [], ["x"], [silu]).graph
    assert silu_of(x, readers_of(graph)) == ((gate, silu) if found else None)


def test_attributes_and_opsets_are_plain():
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[0, 1, 0, 1], auto_pad="VALID")
    assert attributes_of(node) == {"group": 2, "pads": [0, 1, 0, 1], "auto_pad": b"VALID"}
    model = model_of([], [], ["x"], ["x"])
    model.opset_import.append(helper.make_opsetid("ours", 1))
    remove_opset(model, "ours")
    assert [entry.domain for entry in model.opset_import] == [""]
    assert onnx.load_from_string(model.SerializeToString()) == model

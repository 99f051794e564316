"""The walk of reverse mode over an ONNX graph.

With ``y`` an output and ``x`` an input, the graph gains an input ``v`` of y's shape and an output

    vjp = J^T v,    J = dy / dx

Every value between has a cotangent, ``(dy / dvalue)^T v``. It is the sum of what the rules of its readers contribute,
so nodes are walked from the last to the first; those that do not depend on x, or that y does not depend on, are left
out. What follows from x by comparisons alone is constant almost everywhere and contributes nothing. The rule of a SiLU,
x sigmoid(x), gives x what passes through the sigmoid as well, and the sigmoid nothing.

Source: Griewank and Walther 2008, "Evaluating Derivatives", chapter 3.
"""

from __future__ import annotations

import collections
from itertools import zip_longest

import onnx
import onnx.inliner

from sde_onnx.errors import GradientError
from sde_onnx.export.gradient.rules import RULES, Rule
from sde_onnx.export.gradient.writer import Call, GradientWriter, Values
from sde_onnx.export.graph.nodes import attributes_of, needed_for, read_by, replace_nodes

__all__ = ["add_gradient"]

OLDEST_OPSET = 13   # since which sums and softmaxes are what they are today
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
SIZES = ("Shape", "Size")   # integers that say nothing of a value's numbers


def add_gradient(model: onnx.ModelProto, of: str, at: str, *, cotangent: str = "v", result: str = "vjp") -> None:
    """Adds the vector-Jacobian product of an output with respect to an input to a graph, in place.

    Args:
        model: any graph whose operators between the two have a rule in :data:`sde_onnx.export.gradient.rules.RULES`.
        of: the name of a floating-point output, of any shape.
        at: the name of a floating-point input.
        cotangent: of the new input, ``of``'s shape and type.
        result: of the new output, ``at``'s shape and type.

    Raises:
        GradientError: a name that is not there, is taken already or holds integers; an output that does not depend on
            the input; an operator without a rule, or with a shape that its rule cannot know; an opset below 13.
    """
    opened = onnx.inliner.inline_local_functions(model) if model.functions else model
    graph = opened.graph
    inputs, outputs = ({item.name: item for item in items} for items in (graph.input, graph.output))
    constants = (*graph.initializer, *(item.values for item in graph.sparse_initializer))
    taken = {*inputs, *outputs, *(item.name for item in constants)}.union(*(node.output for node in graph.node))
    for name, names, kind in ((of, outputs, "output"), (at, inputs, "input")):
        if name not in names:
            raise GradientError(f"the graph has no {kind} {name!r}, it has {', '.join(names)}")
        if names[name].type.tensor_type.elem_type not in FLOATS:
            raise GradientError(f"{kind} {name!r} holds no float16, float32 or float64 numbers: it has no gradient")
    for name in (cotangent, result):
        if name in taken:
            raise GradientError(f"the graph has a value {name!r} already: its gradient may be there; if not, cotangent "
                                "and result of add_gradient choose other names")
    values = Values(opened)
    if values.opset < OLDEST_OPSET:
        raise GradientError(f"the graph is of opset {values.opset}, expected {OLDEST_OPSET} or above: "
                            "onnx.version_converter converts it")
    prefix = result
    while any(name.startswith(f"{prefix}/") for name in taken):
        prefix += "_"
    between = _between(graph, of, at, values)
    writer = GradientWriter(prefix, values, between)
    unknown = [node for node in graph.node if _rule_of(node) is None and not between.isdisjoint(node.output)]
    parts: dict[str, list[str]] = collections.defaultdict(list, {of: [cotangent]})
    for node in reversed(graph.node):
        if between.isdisjoint(node.output):
            continue
        cotangents = [writer.total(parts[name], name) if parts[name] else None for name in node.output]
        if not any(cotangents):   # zero: read by comparisons or for its shape alone, or a SiLU's sigmoid
            continue
        for name, contribution in _contributions(writer, node, cotangents, of, between, unknown):
            parts[name].append(contribution)
    writer.add("Identity", writer.total(parts[at], at), output=result)
    for items, like, name in ((graph.input, outputs[of], cotangent), (graph.output, inputs[at], result)):
        items.add().CopyFrom(like)
        items[-1].name = name
    graph.initializer.extend(writer.constants.values())
    replace_nodes(graph, [*graph.node, *needed_for(writer.nodes, [result])])
    if opened is not model:
        model.CopyFrom(opened)


def _between(graph: onnx.GraphProto, of: str, at: str, values: Values) -> set[str]:
    """The values that depend on ``at`` and that ``of`` depends on."""
    leads = {of}.union(*map(read_by, needed_for(graph.node, [of])))
    depends = {at}
    for node in graph.node:
        if depends.isdisjoint(read_by(node)):
            continue
        for name in filter(None, node.output):   # an output may be left out
            kind = values.type_of(name)
            if kind in (0, *FLOATS):
                depends.add(name)
            elif kind != onnx.TensorProto.BOOL and node.op_type not in SIZES and name in leads:
                raise GradientError(f"{of} depends on {at} through integers, at {_told(node)}: it has no gradient")
    if of not in depends:
        raise GradientError(f"output {of!r} does not depend on input {at!r}")
    return leads & depends


def _contributions(
    writer: GradientWriter, node: onnx.NodeProto, cotangents: list[str | None], of: str, between: set[str],
    unknown: list[onnx.NodeProto],
) -> list[tuple[str, str]]:
    """What a node adds to the cotangents of its inputs, by their names; ``unknown`` nodes may be why a rule fails."""
    if (rule := _rule_of(node)) is None:
        raise GradientError(f"{_told(node)} has no gradient rule; it feeds output {of!r}")
    call = Call(node.op_type, list(node.input), list(node.output), attributes_of(node), cotangents)
    try:
        found = rule(writer, call)
    except GradientError as error:
        cause = f"; and {_told(unknown[-1])} has no gradient rule" if unknown else ""
        raise GradientError(f"{_told(node)}, which feeds output {of!r}: {error}{cause}") from None
    parts = [(name, part) for name, part in zip_longest(node.input, found) if name in between]
    for name, part in parts:
        if part is None:
            raise GradientError(f"{_told(node)} has no gradient rule for its input {name!r}; it feeds output {of!r}")
    return [(name, part) for name, part in parts if part]


def _rule_of(node: onnx.NodeProto) -> Rule | None:
    return RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None


def _told(node: onnx.NodeProto) -> str:
    return f"operator {node.domain + '::' if node.domain else ''}{node.op_type} (node {node.name or node.output[0]!r})"

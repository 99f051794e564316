"""A model file becomes a sampler: one ONNX file, seeds in, images out, with the solver's loop inside.

    sampler     seed int64 [N] -> image uint8 [N, H, W, C], sample float32 [N, C, H, W]; frames if asked for
    step        x, history..., index int64, seed -> x, history..., x_mean

Either may also have an input ``steps`` int64: how many, up to a maximum for which the file holds tables.

A step is traced from the same functions that the host's loop calls, with one node in place of the network; then the
network's nodes take that node's place, and the portable noise is written before it. The sampler is an ONNX ``Loop``
over that body. Whatever depends on the noise levels alone is a table.

The history are the denoised images that a multistep solver remembers. At index 0 a step makes the initial latent itself
and ignores what it is given.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from sde_onnx.errors import InputError
from sde_onnx.export.graph_noise import key_words, normals
from sde_onnx.export.nodes import Nodes
from sde_onnx.export.to_onnx import check_model_output
from sde_onnx.export.traced_steps import SCORE, SCORE_DOMAIN, TracedStep, trace_step, traced_step
from sde_onnx.export.update import remove_update
from sde_onnx.files import replacing, sha256
from sde_onnx.metadata import KEY, SAMPLER_FORMAT, SAMPLER_KEY, ModelMetadata
from sde_onnx.session import read_metadata
from sde_onnx.solvers import what_is_meant

__all__ = ["build_sampler", "embed"]

KINDS = ("sampler", "step")


def embed(
    model: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    solver: str | None = None,
    steps: int | None = None,
    max_steps: int | None = None,
    kind: str = "sampler",
    every: int | None = None,
    force: bool = False,
    **options: Any,
) -> None:
    """Writes a sampler file.

    Args:
        model: a model file.
        path: the ``.onnx`` file to write.
        solver: a key of :data:`sde_onnx.solvers.SOLVERS`, but those that choose their steps themselves.
        steps: noise levels; the solver's own number, or for ``"pc"`` the model's, if not given. Without solver and
            steps they and the options are those of the default quality, as for :func:`sde_onnx.sample`.
        max_steps: also an input ``steps``, int64 ``[1]``, up to this number, at least ``steps``: of a sampler optional,
            ``steps`` where it is not given. The file holds the tables of every number: some 20 bytes a step of each.
        kind: ``"sampler"``, the whole loop, or ``"step"``, one step of it for hosts with their own.
        every: also an output ``frames``, uint8 ``[steps / every, N, H, W, C]``: the denoised image of every so many
            steps, the last one among them. While it runs it holds those of all steps.
        force: whether an existing file may be replaced.
        options: of the solver.

    Raises:
        InputError: a solver that cannot be embedded, or an option out of its range.
        ModelFileError: the model file is missing, damaged, or not ours.
        OutputError: the file exists, cannot be written, or does not end in ``.onnx``.
    """
    path = Path(path)
    check_model_output(path, force=force)
    metadata = read_metadata(model)
    solver, steps, options = what_is_meant(None, solver, steps, options)
    step = traced_step(metadata, solver, steps, options, max_steps)
    graph = build_sampler(onnx.load(os.fspath(model)), metadata, step, kind=kind, every=every)
    about = {"format": SAMPLER_FORMAT, "kind": kind, "solver": solver, "steps": step.steps, "options": options,
             "model": sha256(Path(model)), "versions": {"sde_onnx": version("sde-onnx"), "torch": torch.__version__}}
    if step.first_rows:
        about |= {"min_steps": min(step.first_rows), "max_steps": max(step.first_rows)}
    helper.set_model_props(graph, {KEY: metadata.to_json(), SAMPLER_KEY: json.dumps(about)})
    with replacing(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())


def build_sampler(
    model: onnx.ModelProto, metadata: ModelMetadata, step: TracedStep, *, kind: str, every: int | None = None
) -> onnx.ModelProto:
    """Returns the graph of :func:`embed`, without metadata."""
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}, expected one of: {', '.join(KINDS)}")
    if kind == "step" and every is not None:
        raise InputError("every is for samplers: the host of a step sees every step")
    if every is not None and not 1 <= every <= step.steps:
        raise InputError(f"every is {every}, expected 1 to the number of steps, {step.steps}")
    remove_update(model.graph)
    nodes, initializers = _body(trace_step(step, metadata.image_shape), model.graph)
    if kind == "step":
        graph = _single_step(step, nodes, initializers, metadata)
    else:
        graph = _sampler(step, nodes, initializers, metadata, every)
    built = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version,
                              producer_name="sde-onnx")
    onnx.checker.check_model(built)
    return built


def _body(step: onnx.GraphProto, network: onnx.GraphProto) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The step's nodes with the network's in place of every score, and the constants of both."""
    nodes: list[onnx.NodeProto] = []
    for node in step.node:
        if (node.domain, node.op_type) == (SCORE_DOMAIN, SCORE):
            nodes.extend(_network_nodes(network, node, f"{node.name}/"))
        else:
            nodes.append(node)
    weights = [numpy_helper.from_array(numpy_helper.to_array(item), f"network/{item.name}")
               for item in network.initializer]
    return nodes, [*step.initializer, *weights]


def _network_nodes(network: onnx.GraphProto, score: onnx.NodeProto, prefix: str) -> list[onnx.NodeProto]:
    """The network's nodes with the values of one score: weights are shared, everything else has names of its own."""
    names = {"": ""} | {item.name: f"network/{item.name}" for item in network.initializer}
    names |= dict(zip((item.name for item in network.input), score.input, strict=True))
    names |= dict(zip((item.name for item in network.output), score.output, strict=True))
    nodes = []
    for node in network.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        for values in (copy.input, copy.output):
            values[:] = [names.setdefault(name, prefix + name) for name in values]
        nodes.append(copy)
    return nodes


def _sampler(
    step: TracedStep, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], metadata: ModelMetadata,
    every: int | None,
) -> onnx.GraphProto:
    """The loop over the body, and what stands before and after it."""
    shape = metadata.image_shape
    outside, inside = Nodes("sampler"), Nodes("step")
    keys = key_words(outside, "seed")
    latent = _latent(outside, keys, metadata)
    trips = "steps" if step.first_rows else outside.constant(np.array([step.steps]))
    first_row = _first_row(outside, step)
    states = ["x", *(f"history{place}" for place in range(step.history))]
    index = inside.reshape("iteration", 1)
    _draw(inside, step, keys, index, shape)
    inside.add("Add", index, first_row, output="row")
    images: list[str | int | None] = ["N", *shape]
    carried = [*(f"{name}_next" for name in states), "x_mean"]
    channels, height, width = shape
    pixels: list[str | int | None] = ["N", height, width, channels]
    after = Nodes("frame")   # of a step's result
    scanned = []
    if every is not None:
        _pixels(after, _clipped(after, "x_mean"), output="frame")
        scanned.append(helper.make_tensor_value_info("frame", TensorProto.UINT8, pixels))
    body = helper.make_graph(
        [*inside.nodes, *nodes, *after.nodes], "step",
        [helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
         helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
         *(_float(name, images) for name in (*states, "x_mean_before"))],
        [helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
         *(_float(name, images) for name in carried), *scanned],
        [*initializers, *inside.constants.values(), *after.constants.values()],
    )
    results = [f"last_{name}" for name in carried] + ["all_frames"] * len(scanned)
    loop = helper.make_node(
        "Loop", [trips, outside.constant(np.bool_(True)),
                 *[latent] * (len(states) + 1)], results, name="loop", body=body,
    )
    outside.nodes.append(loop)
    _pixels(outside, _clipped(outside, "last_x_mean", output="sample"), output="image")
    outputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, pixels),
               _float("sample", images)]
    if every is not None:
        zero, one, stride = (outside.constant(np.array([value])) for value in (0, 1, every))
        first = outside.add("Mod", outside.add("Sub", trips, one), stride)   # so that the last step is among them
        outside.add("Slice", "all_frames", first, trips, zero, stride, output="frames")
        outputs.append(helper.make_tensor_value_info("frames", TensorProto.UINT8, ["frames", *pixels]))
    inputs, constants = [helper.make_tensor_value_info("seed", TensorProto.INT64, ["N"])], outside.constants
    if step.first_rows:   # a constant that is also an input is its default
        inputs.append(helper.make_tensor_value_info("steps", TensorProto.INT64, [1]))
        constants |= {"steps": numpy_helper.from_array(np.array([step.steps]), "steps")}
    return helper.make_graph(outside.nodes, "sampler", inputs, outputs, list(constants.values()))


def _single_step(
    step: TracedStep, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], metadata: ModelMetadata
) -> onnx.GraphProto:
    """The body alone, which takes the latent's place at index 0."""
    before = Nodes("step")
    keys = key_words(before, "seed")
    _draw(before, step, keys, "index", metadata.image_shape)
    before.add("Add", "index", _first_row(before, step, "index"), output="row")
    first = before.add("Equal", "index", before.constant(np.array([0])))
    # The other steps do not draw the latent's noise.
    made = Nodes("latent")
    latent = _latent(made, keys, metadata)
    branches = {
        "then_branch": helper.make_graph(made.nodes, "make", [], [_float(latent, None)], list(made.constants.values())),
        "else_branch": helper.make_graph([helper.make_node("Identity", ["x"], ["given"])], "take", [],
                                         [_float("given", None)]),
    }
    before.add("If", first, output="x", **branches)
    images: list[str | int | None] = ["N", *metadata.image_shape]
    history = [f"history{place}" for place in range(step.history)]
    # Outside, what goes in and what comes out have the same names, in and out.
    renamed = {"x_given": "x", "x": "x_from"}
    graph = helper.make_graph(
        [*before.nodes, *nodes], "step",
        [_float(name, images) for name in ("x_given", *history)]
        + [helper.make_tensor_value_info("index", TensorProto.INT64, [1]),
           helper.make_tensor_value_info("seed", TensorProto.INT64, ["N"]),
           *([helper.make_tensor_value_info("steps", TensorProto.INT64, [1])] if step.first_rows else [])],
        [_float(name, images)
         for name in ("x_next", *(f"{name}_next" for name in history), "x_mean")],
        [*initializers, *before.constants.values()],
    )
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [renamed.get(name, name) for name in values]
    graph.input[0].name = "x"
    return graph


def _float(name: str, shape: list[str | int | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _clipped(nodes: Nodes, x: str, output: str | None = None) -> str:
    return nodes.add("Clip", x, nodes.constant(np.float32(0)), nodes.constant(np.float32(1)), output=output)


def _pixels(nodes: Nodes, sample: str, output: str) -> str:
    """See :func:`sde_onnx.images.to_uint8`."""
    levels = nodes.add("Round", nodes.add("Mul", sample, nodes.constant(np.float32(255))))
    return nodes.add("Cast", nodes.add("Transpose", levels, perm=[0, 2, 3, 1]), to=TensorProto.UINT8, output=output)


def _latent(nodes: Nodes, keys: tuple[str, str], metadata: ModelMetadata) -> str:
    draw = normals(nodes, keys, nodes.constant(np.int64(0)), 1, metadata.image_shape)
    z = nodes.add("Squeeze", draw, nodes.constant(np.array([0])))
    return nodes.add("Mul", z, nodes.constant(np.float32(metadata.schedule.sigma_max)))


def _first_row(nodes: Nodes, step: TracedStep, index: str | None = None) -> str:
    """Where the tables of the input ``steps`` begin, int64 ``[1]``; a number, or an index, out of range is an error."""
    if not step.first_rows:
        return nodes.constant(np.array([0]))
    least = nodes.constant(np.array([min(step.first_rows)]))
    known = nodes.add("GreaterOrEqual", "steps", least)
    if index is not None:
        known = nodes.add("And", known, nodes.add("Less", index, "steps"))
        known = nodes.add("And", known, nodes.add("GreaterOrEqual", index, nodes.constant(np.array([0]))))
    # Gather takes small negative places, counted from the end, but none as large as this one.
    place = nodes.add("Where", known, nodes.add("Sub", "steps", least), nodes.constant(np.array([2**62])))
    return nodes.add("Gather", nodes.constant(np.array(list(step.first_rows.values()))), place)


def _draw(nodes: Nodes, step: TracedStep, keys: tuple[str, str], index: str, shape: tuple[int, int, int]) -> None:
    """Writes the noise of a step as the value z."""
    if not step.draws:
        return
    before = nodes.add("Mul", index, nodes.constant(np.array([step.draws])))
    first = nodes.add("Add", before, nodes.constant(np.array([1])))   # the latent was number 0
    nodes.add("Identity", normals(nodes, keys, first, step.draws, shape), output="z")

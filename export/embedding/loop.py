"""A model file becomes a sampler: one ONNX file, seeds in, images out, with the solver's loop inside.

    sampler       seed int64 [N] -> image uint8 [N, H, W, C], sample float32 [N, C, H, W]; frames if asked for
    evaluation    x, memory..., index int64, seed -> x, memory..., x_mean, remaining int64

Of a model with labels either also has an input ``label`` int64 [N]. Either may have the inputs of a measurement: see
:mod:`sde_onnx.export.embedding.measurement`. Either may have an input ``steps`` int64: how many, up to a maximum for
which the file holds rows.

An evaluation is traced from the functions that the host's loop calls, with one node in place of the network; then the
network's nodes take that node's place, and the portable noise is written before it. The sampler is an ONNX ``Loop``
over an evaluation, which goes on while any remain. Whatever differs between evaluations is a row of a table: see
:mod:`sde_onnx.solvers.plan`.

The memory is what the solver remembers. At index 0 an evaluation makes the initial latent itself and ignores what it is
given.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.utils import Extractor

from sde_onnx.checks import checked_count
from sde_onnx.errors import InputError
from sde_onnx.export.embedding.measurement import OPERATORS, measured_inputs
from sde_onnx.export.embedding.noise import key_words, normals
from sde_onnx.export.embedding.update import (
    SCORE,
    SCORE_DOMAIN,
    Columns,
    folded,
    remembered,
    trace_evaluation,
)
from sde_onnx.export.graph.nodes import Nodes, inlined
from sde_onnx.export.graph.tracing import IR_VERSION
from sde_onnx.export.to_onnx import check_model_output
from sde_onnx.files import replacing, sha256
from sde_onnx.runtime.load import read_metadata
from sde_onnx.runtime.metadata import KEY, NOISE_KEY, SAMPLER_FORMATS, SAMPLER_KEY
from sde_onnx.solvers.catalogue import SOLVERS, Sampling
from sde_onnx.solvers.plan import COLUMNS, rows

__all__ = ["KINDS", "embed"]

KINDS = ("sampler", "evaluation")
MOST_ROW_STEPS = 2000   # a file holds rows for every number of steps: of the paper's sampler 80 MB
FLOAT, INT64, UINT8, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL
Sizes = Sequence[str | int | None]
LATENT, DRAWN = "latent", "drawn"   # what the names of nodes that draw noise begin with
NOWHERE = 2**62   # Gather takes small negative places, counted from the end, but none as large as this one


def embed(
    model: str | os.PathLike[str],
    path: str | os.PathLike[str],
    sampling: Sampling,
    *,
    max_steps: int | None = None,
    kind: str = "sampler",
    every: int | None = None,
    operator: str | None = None,
    force: bool = False,
) -> None:
    """Writes a sampler file.

    Args:
        model: a model file.
        path: the ``.onnx`` file to write.
        sampling: how to sample: :func:`sde_onnx.resolve` with the model's metadata.
        max_steps: also an input ``steps``, int64 ``[1]``, up to this number, ``sampling.steps`` to 2,000, which the
            metadata name. The file holds rows for every number: some 20 bytes an evaluation.
        kind: ``"sampler"``, the whole loop, or ``"evaluation"``, one turn of it for hosts with their own.
        every: also an output ``frames``, uint8 ``[steps / every, N, H, W, C]``: the image after every so many steps,
            the last one among them. While it runs it holds those of all evaluations.
        operator: ``"mask"`` for a file that restores images: two more inputs, ``mask`` and ``measurement``.
        force: whether an existing file may be replaced.

    Raises:
        InputError: a solver that cannot be embedded, or an argument out of its range.
        ModelFileError: the model file is missing, damaged, or not ours.
        OutputError: the file exists, cannot be written, or does not end in ``.onnx``.
    """
    path = Path(path)
    check_model_output(path, force=force)
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}, expected one of: {', '.join(KINDS)}")
    if kind == "evaluation" and every is not None:
        raise InputError("every is for samplers: the host of an evaluation sees every one")
    if operator is not None and operator not in OPERATORS:
        raise InputError(f"operator is {operator!r}, expected one of: {', '.join(OPERATORS)}; its values are inputs of "
                         "the file")
    metadata = read_metadata(model)
    sampling.check_model(metadata)
    held = _rows(sampling, max_steps, every)
    inputs = ["x", "sigma", *(["label"] if metadata.labels else [])]
    network = Extractor(onnx.load(os.fspath(model))).extract_model(inputs, ["score"])   # no loop for a device
    labels = range(-1 if metadata.label_optional else 0, metadata.labels)
    graph = _evaluation(held, metadata.image_shape, network.graph, max_steps is not None, labels, operator)
    if kind == "sampler":
        graph = _sampler(graph, held, metadata.image_shape, frames=every is not None)
    built = helper.make_model(graph, opset_imports=network.opset_import, ir_version=IR_VERSION,
                              producer_name="sde-onnx")
    onnx.checker.check_model(built)
    about: dict[str, Any] = {
        "format": SAMPLER_FORMATS[operator is not None], "kind": kind, **sampling.to_json(),
        "evaluations": sampling.evaluations,
        "model": sha256(Path(model)), "versions": {"sde_onnx": version("sde-onnx"), "torch": torch.__version__},
    }
    if operator is not None:
        about |= {"operator": operator}
    if max_steps is not None:
        about |= {"min_steps": held.counts[0], "max_steps": max_steps}
    helper.set_model_props(built, {KEY: replace(metadata, gradient=False).to_json(), SAMPLER_KEY: json.dumps(about),
                                   NOISE_KEY: "\n".join(_noise_nodes(graph))})
    with replacing(path) as temporary:
        temporary.write_bytes(built.SerializeToString())


@dataclass(frozen=True)
class _Rows:
    """The plans that a file holds as numbers: one for each number of steps that may be asked for, one after another."""

    counts: range                # the numbers of steps
    table: NDArray[np.float32]   # this and columns: see folded
    columns: Columns
    limits: NDArray[np.int64]    # where in the table each plan begins, and where the last one ends
    starts: NDArray[np.float32]  # of each plan, the deviations of its initial noise arrays, [plans, draws]
    draws: NDArray[np.int32]     # of each row, the number of the noise array that it draws, or -1
    shown: NDArray[np.bool_]     # of each row, whether its image is one of the frames


def _rows(sampling: Sampling, max_steps: int | None, every: int | None) -> _Rows:
    if sampling.steps is None or sampling.wrappers or sampling.depends_on_batch:
        able = [name for name, solver in SOLVERS.items() if solver.steps is not None]
        with_options = "" if sampling.steps is None else " with these options"
        raise InputError(f"{sampling.solver}{with_options} cannot be embedded; what can is {', '.join(able)}, without "
                         "langevin_norm 'batch' and measure_noise")
    if every is not None and not 1 <= every <= sampling.steps:
        raise InputError(f"every is {every}, expected 1 to the number of steps, {sampling.steps}")
    if max_steps is not None:
        checked_count("max_steps", max_steps, least=sampling.steps, most=max(MOST_ROW_STEPS, sampling.steps),
                      hint=", which is at least the steps")
    least = sampling.steps if max_steps is None else sampling.least_steps
    counts = range(least, (max_steps or sampling.steps) + 1)
    plans = [plan for count in counts if (plan := replace(sampling, steps=count).plan) is not None]
    entries = [rows(plan) for plan in plans]
    stacked = np.concatenate(entries)
    draw = COLUMNS.index("draw")
    draws = stacked[:, draw].astype(np.int32)
    stacked[:, draw] = 0   # they have a table of their own, of whole numbers
    # A step's image is shown if the last step, which is, is some times `every` steps after it.
    shown = [item.ends is not None and (len(plan.levels) - 1 - item.ends) % (every or 1) == 0
             for plan in plans for item in plan.evaluations]
    return _Rows(counts, *folded(stacked), np.cumsum([0, *map(len, entries)]),
                 np.array([plan.start for plan in plans], np.float32), draws, np.array(shown))


def _evaluation(
    held: _Rows, shape: tuple[int, int, int], network: onnx.GraphProto, asks: bool, labels: range,
    operator: str | None,
) -> onnx.GraphProto:
    """An evaluation as a graph, of images ``shape`` = ``(C, H, W)``; ``steps`` is an input of one that ``asks``.

    Labels that are not among ``labels`` are refused by the graph, as other numbers of steps are.
    """
    before = Nodes("evaluation")
    keys = key_words(before, "seed")
    place, first_row, count = _plan(before, held, asks)
    zero, one = (before.constant(np.array([value])) for value in (0, 1))
    known = before.add("And", before.add("GreaterOrEqual", "index", zero), before.add("Less", "index", count))
    nowhere = before.constant(np.array([NOWHERE]))
    before.add("Where", known, before.add("Add", "index", first_row), nowhere, output="row")
    before.add("Sub", before.add("Sub", count, one), "index", output="remaining")
    _noise(before, held, keys, shape)
    if labels:
        least = before.constant(np.int64(labels[0]))
        label = before.add("Where", before.add("GreaterOrEqual", "label", least), before.add("Sub", "label", least),
                           before.constant(np.int64(NOWHERE)))
        before.add("Gather", before.constant(np.array(labels)), label, output="known_label")
    made = Nodes(LATENT)   # which later evaluations do not draw
    latent = _latent(made, held, keys, place, shape)
    before.add("If", before.add("Equal", "index", zero), output="x_from",
               then_branch=_branch("make", made, latent), else_branch=_branch("take", Nodes("taken"), "x"))
    traced = trace_evaluation(held.table, held.columns, shape, operator)
    nodes, constants = [], list(traced.initializer)
    for node in traced.node:   # outside, what goes in and what comes out have the same names, in and out
        node.input[:] = ["x_from" if name == "x" else name for name in node.input]
        if (node.domain, node.op_type) != (SCORE_DOMAIN, SCORE):
            nodes.append(node)
            continue
        names = {"x": node.input[0], "sigma": node.input[1], "label": "known_label", "score": node.output[0]}
        within, weights = inlined(network, "network/", names)
        nodes += within
        constants += weights
    images: Sizes = ["N", *shape]
    states = ["x", *(f"memory{place}" for place in range(remembered(held.columns)))]
    return helper.make_graph(
        [*before.nodes, *nodes], "evaluation",
        [*(_value(FLOAT, name, images) for name in states), _value(INT64, "index", [1]), _value(INT64, "seed", ["N"]),
         *([_value(INT64, "label", ["N"])] if labels else []),
         *(_value(FLOAT, name, sizes) for name, sizes in measured_inputs(operator, shape).items()),
         *([_value(INT64, "steps", [1])] if asks else [])],
        [*(_value(FLOAT, name, images) for name in (*(f"{name}_next" for name in states), "x_mean")),
         _value(INT64, "remaining", [1])],
        [*constants, *before.constants.values()],
    )


def _sampler(evaluation: onnx.GraphProto, held: _Rows, shape: tuple[int, int, int], frames: bool) -> onnx.GraphProto:
    """The loop over an evaluation, which goes on while any remain."""
    outside, inside, after = Nodes("sampler"), Nodes("turn"), Nodes("frame")
    channels, height, width = shape
    images: Sizes = ["N", *shape]
    pixels: Sizes = ["N", height, width, channels]
    carried = [item.name for item in evaluation.output if item.name != "remaining"]
    states = [item for item in evaluation.input if f"{item.name}_next" in carried]
    others = [item for item in evaluation.input if item not in states and item.name != "index"]
    inside.add("Reshape", "iteration", inside.constant(np.array([1])), output="index")
    more = after.add("Greater", "remaining", after.constant(np.array([0])))
    after.add("Reshape", more, after.constant(np.array([], np.int64)), output="goes_on")
    scanned = []
    if frames:
        _pixels(after, _clipped(after, "x_mean"), output="frame")
        after.add("Gather", after.constant(held.shown), "row", output="is_shown")
        scanned = [_value(UINT8, "frame", pixels), _value(BOOL, "is_shown", [1])]
    body = helper.make_graph(
        [*inside.nodes, *evaluation.node, *after.nodes], "turn",
        [_value(INT64, "iteration", []), _value(BOOL, "went_on", []), *states, _value(FLOAT, "x_mean_before", images)],
        [_value(BOOL, "goes_on", []), *(_value(FLOAT, name, images) for name in carried), *scanned],
        [*evaluation.initializer, *inside.constants.values(), *after.constants.values()],
    )
    sizes = outside.add("Concat", outside.add("Shape", "seed"), outside.constant(np.array(shape)), axis=0)
    nothing = outside.add("ConstantOfShape", sizes)   # the first evaluation makes its own
    results = [*(f"last_{name}" for name in carried), *["all_frames", "all_shown"][: len(scanned)]]
    asked = outside.add("Greater", outside.add("Size", "seed"), outside.constant(np.int64(0)))   # any images
    outside.nodes.append(helper.make_node("Loop", ["", asked, *[nothing] * len(carried)], results, name="loop",
                                          body=body))
    _pixels(outside, _clipped(outside, "last_x_mean", output="sample"), output="image")
    outputs = [_value(UINT8, "image", pixels), _value(FLOAT, "sample", images)]
    if frames:
        outside.add("Compress", "all_frames", outside.reshape("all_shown", -1), axis=0, output="frames")
        outputs.append(_value(UINT8, "frames", ["frames", *pixels]))
    return helper.make_graph(outside.nodes, "sampler", others, outputs, list(outside.constants.values()))


def _plan(nodes: Nodes, held: _Rows, asks: bool) -> tuple[str, str, str]:
    """The plan that is meant, its first row and its number of evaluations, int64 ``[1]`` each.

    A number of steps that the file does not hold is an error of the graph: a Gather out of bounds.
    """
    if not asks:
        zero = nodes.constant(np.array([0]))
        return zero, zero, nodes.constant(held.limits[-1:])
    least = nodes.constant(np.array([held.counts[0]]))
    known = nodes.add("GreaterOrEqual", "steps", least)
    place = nodes.add("Where", known, nodes.add("Sub", "steps", least), nodes.constant(np.array([NOWHERE])))
    first, end = (nodes.add("Gather", nodes.constant(limits), place)
                  for limits in (held.limits[:-1], held.limits[1:]))
    return place, first, nodes.add("Sub", end, first)


def _latent(nodes: Nodes, held: _Rows, keys: tuple[str, str], place: str, shape: tuple[int, int, int]) -> str:
    """The plan's initial x."""
    parts = []
    for draw, deviations in enumerate(held.starts.T):
        z = normals(nodes, keys, nodes.constant(np.int64(draw)), shape)
        parts.append(nodes.add("Mul", z, nodes.add("Gather", nodes.constant(deviations), place)))
    return nodes.add("Sum", *parts)


def _noise(nodes: Nodes, held: _Rows, keys: tuple[str, str], shape: tuple[int, int, int]) -> None:
    """Writes an evaluation's noise as the value z, zeros where it draws none."""
    draw = nodes.add("Gather", nodes.constant(held.draws), "row")
    drawn, nothing = Nodes(DRAWN), Nodes("nothing")
    z = normals(drawn, keys, draw, shape)
    zeros = nothing.add("ConstantOfShape", nothing.add("Shape", "x"))
    nodes.add("If", nodes.add("GreaterOrEqual", draw, nodes.constant(np.array([0], np.int32))), output="z",
              then_branch=_branch("draw", drawn, z), else_branch=_branch("rest", nothing, zeros))


def _noise_nodes(graph: onnx.GraphProto) -> Iterator[str]:
    """The names of the nodes that draw noise, which lie in the branches of an If, and that in a Loop or not."""
    for node in graph.node:
        if node.name.startswith((f"{LATENT}/", f"{DRAWN}/")):
            yield node.name
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _noise_nodes(attribute.g)


def _branch(name: str, nodes: Nodes, result: str) -> onnx.GraphProto:
    """A branch of an If, whose result gets a name of its own."""
    output = nodes.add("Identity", result)
    return helper.make_graph(nodes.nodes, name, [], [_value(FLOAT, output, None)], list(nodes.constants.values()))


def _value(kind: int, name: str, shape: Sizes | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _clipped(nodes: Nodes, x: str, output: str | None = None) -> str:
    return nodes.add("Clip", x, nodes.constant(np.float32(0)), nodes.constant(np.float32(1)), output=output)


def _pixels(nodes: Nodes, sample: str, output: str) -> str:
    """See :func:`sde_onnx.images.to_uint8`."""
    levels = nodes.add("Round", nodes.add("Mul", sample, nodes.constant(np.float32(255))))
    return nodes.add("Cast", nodes.add("Transpose", levels, perm=[0, 2, 3, 1]), to=UINT8, output=output)

"""A model file becomes a sampler: one ONNX file, seeds in, images out, with the solver's loop inside.

    sampler       seed int64 [N] -> image uint8 [N, H, W, C], sample float32 [N, C, H, W]; frames if asked for
    evaluation    x, memory..., index int64, seed -> x, memory..., x_mean, remaining int64

Either may also have an input ``steps`` int64: how many, up to a maximum for which the file holds rows.

An evaluation is traced from the functions that the host's loop calls, with one node in place of the network; then the
network's nodes take that node's place, and the portable noise is written before it. The sampler is an ONNX ``Loop``
over that body. Whatever differs between evaluations is a row of a table: see :mod:`sde_onnx.solvers.plan`.

The memory is what the solver remembers. At index 0 an evaluation makes the initial latent itself and ignores what it is
given.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sde_onnx.errors import InputError
from sde_onnx.export.embedding.noise import key_words, normals
from sde_onnx.export.embedding.update import (
    SCORE,
    SCORE_DOMAIN,
    Columns,
    folded,
    remembered,
    remove_update,
    trace_evaluation,
)
from sde_onnx.export.graph.nodes import Nodes, inlined
from sde_onnx.export.to_onnx import check_model_output
from sde_onnx.files import replacing, sha256
from sde_onnx.runtime.metadata import KEY, SAMPLER_FORMAT, SAMPLER_KEY, ModelMetadata
from sde_onnx.runtime.score_model import read_metadata
from sde_onnx.solvers.catalogue import SOLVERS, Sampling
from sde_onnx.solvers.plan import COLUMNS, Plan, rows

__all__ = ["KINDS", "build_sampler", "embed"]

KINDS = ("sampler", "evaluation")
NOWHERE = 2**62   # Gather takes small negative places, counted from the end, but none as large as this one


def embed(
    model: str | os.PathLike[str],
    path: str | os.PathLike[str],
    sampling: Sampling,
    *,
    max_steps: int | None = None,
    kind: str = "sampler",
    every: int | None = None,
    force: bool = False,
) -> None:
    """Writes a sampler file.

    Args:
        model: a model file.
        path: the ``.onnx`` file to write.
        sampling: how to sample: :func:`sde_onnx.resolve` with the model's metadata.
        max_steps: also an input ``steps``, int64 ``[1]``, up to this number, at least ``sampling.steps``: of a sampler
            optional, those where it is not given. The file holds rows for every number: some 20 bytes an evaluation.
        kind: ``"sampler"``, the whole loop, or ``"evaluation"``, one turn of it for hosts with their own.
        every: also an output ``frames``, uint8 ``[steps / every, N, H, W, C]``: the image after every so many steps,
            the last one among them. While it runs it holds those of all evaluations.
        force: whether an existing file may be replaced.

    Raises:
        InputError: a solver that cannot be embedded, or an argument out of its range.
        ModelFileError: the model file is missing, damaged, or not ours.
        OutputError: the file exists, cannot be written, or does not end in ``.onnx``.
    """
    path = Path(path)
    check_model_output(path, force=force)
    metadata = read_metadata(model)
    evaluations = _evaluations(sampling, max_steps, every)
    graph = build_sampler(onnx.load(os.fspath(model)), metadata, evaluations, kind=kind)
    about: dict[str, Any] = {
        "format": SAMPLER_FORMAT, "kind": kind, **sampling.to_json(), "evaluations": sampling.evaluations,
        "model": sha256(Path(model)), "versions": {"sde_onnx": version("sde-onnx"), "torch": torch.__version__},
    }
    if max_steps is not None:
        about |= {"min_steps": evaluations.least, "max_steps": max_steps}
    helper.set_model_props(graph, {KEY: metadata.to_json(), SAMPLER_KEY: json.dumps(about)})
    with replacing(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())


@dataclass(frozen=True)
class _Evaluations:
    """The plans that a file holds, one for each number of steps that may be asked for, as numbers.

    Attributes:
        steps: if nobody says otherwise.
        least: the smallest number of steps.
        asks: whether ``steps`` is an input.
        table, columns: of :func:`sde_onnx.export.embedding.update.folded`, all plans one after another.
        limits: where in the table each plan begins, and where the last one ends.
        starts: of each plan, the deviations of its initial noise arrays, ``[plans, draws]``.
        draws: of each row, the number of the noise array that it draws, or -1; int64.
        shows: of each row, whether its image is one of the frames; ``None`` if there are none.
    """

    steps: int
    least: int
    asks: bool
    table: NDArray[np.float32]
    columns: Columns
    limits: NDArray[np.int64]
    starts: NDArray[np.float32]
    draws: NDArray[np.int64]
    shows: NDArray[np.bool_] | None

    @property
    def memory(self) -> int:
        """Arrays that are remembered."""
        return remembered(self.columns)


def _evaluations(sampling: Sampling, max_steps: int | None, every: int | None) -> _Evaluations:
    if sampling.steps is None or sampling.wrappers or sampling.depends_on_batch:
        able = [name for name, solver in SOLVERS.items() if solver.steps is not None]
        raise InputError(f"{sampling.solver} with these options cannot be embedded; what can is {', '.join(able)}, "
                         "without langevin_norm 'batch' and measure_noise")
    if every is not None and not 1 <= every <= sampling.steps:
        raise InputError(f"every is {every}, expected 1 to the number of steps, {sampling.steps}")
    if max_steps is not None and max_steps < sampling.steps:
        raise InputError(f"max_steps is {max_steps}, expected at least the number of steps, {sampling.steps}")
    least = sampling.steps if max_steps is None else SOLVERS[sampling.solver].least
    counts = range(least, (max_steps or sampling.steps) + 1)
    plans = [plan for count in counts if (plan := sampling.with_steps(count).plan) is not None]
    entries = [rows(plan) for plan in plans]
    stacked = np.concatenate(entries)
    draw = COLUMNS.index("draw")
    draws = stacked[:, draw].astype(np.int64)
    stacked[:, draw] = 0   # a table of its own, of whole numbers
    table, columns = folded(stacked)
    return _Evaluations(
        steps=sampling.steps, least=least, asks=max_steps is not None, table=table, columns=columns, draws=draws,
        limits=np.cumsum([0, *map(len, entries)]), starts=np.array([plan.start for plan in plans], np.float32),
        shows=None if every is None else np.concatenate([_shown(plan, every) for plan in plans]),
    )


def _shown(plan: Plan, every: int) -> NDArray[np.bool_]:
    """Which evaluations end every so many steps, the last step among them."""
    last = len(plan.levels) - 1
    return np.array([item.ends is not None and (last - item.ends) % every == 0 for item in plan.evaluations])


def build_sampler(
    model: onnx.ModelProto, metadata: ModelMetadata, evaluations: _Evaluations, *, kind: str
) -> onnx.ModelProto:
    """Returns the graph of :func:`embed`, without metadata."""
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}, expected one of: {', '.join(KINDS)}")
    if kind == "evaluation" and evaluations.shows is not None:
        raise InputError("every is for samplers: the host of an evaluation sees every one")
    remove_update(model.graph)
    traced = trace_evaluation(evaluations.table, evaluations.columns, metadata.image_shape)
    nodes, initializers = _body(traced, model.graph)
    writer = _Writer(evaluations, metadata)
    graph = writer.sampler(nodes, initializers) if kind == "sampler" else writer.evaluation(nodes, initializers)
    built = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version,
                              producer_name="sde-onnx")
    onnx.checker.check_model(built)
    return built


def _body(traced: onnx.GraphProto, network: onnx.GraphProto) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The evaluation's nodes with the network's in place of the score, and the constants of both."""
    nodes: list[onnx.NodeProto] = []
    constants = list(traced.initializer)
    for node in traced.node:
        if (node.domain, node.op_type) != (SCORE_DOMAIN, SCORE):
            nodes.append(node)
            continue
        inputs, outputs = (([item.name for item in items]) for items in (network.input, network.output))
        names = dict(zip(inputs, node.input, strict=True)) | dict(zip(outputs, node.output, strict=True))
        within, weights = inlined(network, "network/", names)
        nodes += within
        constants += weights
    return nodes, constants


class _Writer:
    """Writes what stands around an evaluation."""

    def __init__(self, evaluations: _Evaluations, metadata: ModelMetadata) -> None:
        self.held = evaluations
        self.shape = metadata.image_shape
        channels, height, width = metadata.image_shape
        self.images: list[str | int | None] = ["N", channels, height, width]
        self.pixels: list[str | int | None] = ["N", height, width, channels]
        self.states = ["x", *(f"memory{place}" for place in range(evaluations.memory))]
        self.carried = [*(f"{name}_next" for name in self.states), "x_mean"]

    def sampler(self, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> onnx.GraphProto:
        """The loop over the body, and what stands before and after it."""
        outside, inside, after = Nodes("sampler"), Nodes("evaluation"), Nodes("frame")
        keys = key_words(outside, "seed")
        place, first_row, count = self._plan(outside)
        latent = self._latent(outside, keys, place)
        index = inside.reshape("iteration", 1)
        inside.add("Add", index, first_row, output="row")
        self._draw(inside, keys, index)
        scanned = []
        if self.held.shows is not None:
            _pixels(after, _clipped(after, "x_mean"), output="frame")
            after.add("Gather", after.constant(self.held.shows), "row", output="shown")
            scanned = [helper.make_tensor_value_info("frame", TensorProto.UINT8, self.pixels),
                       helper.make_tensor_value_info("shown", TensorProto.BOOL, [1])]
        body = helper.make_graph(
            [*inside.nodes, *nodes, *after.nodes], "evaluation",
            [helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
             helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
             *(_float(name, self.images) for name in (*self.states, "x_mean_before"))],
            [helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
             *(_float(name, self.images) for name in self.carried), *scanned],
            [*initializers, *inside.constants.values(), *after.constants.values()],
        )
        results = [f"last_{name}" for name in self.carried] + ["all_frames", "all_shown"][: len(scanned)]
        loop = helper.make_node("Loop", [count, outside.constant(np.bool_(True)), *[latent] * (len(self.states) + 1)],
                                results, name="loop", body=body)
        outside.nodes.append(loop)
        _pixels(outside, _clipped(outside, "last_x_mean", output="sample"), output="image")
        outputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, self.pixels),
                   _float("sample", self.images)]
        if scanned:
            outside.add("Compress", "all_frames", outside.reshape("all_shown", -1), axis=0, output="frames")
            outputs.append(helper.make_tensor_value_info("frames", TensorProto.UINT8, ["frames", *self.pixels]))
        inputs, constants = [helper.make_tensor_value_info("seed", TensorProto.INT64, ["N"])], outside.constants
        if self.held.asks:   # a constant that is also an input is its default
            inputs.append(helper.make_tensor_value_info("steps", TensorProto.INT64, [1]))
            constants |= {"steps": numpy_helper.from_array(np.array([self.held.steps]), "steps")}
        return helper.make_graph(outside.nodes, "sampler", inputs, outputs, list(constants.values()))

    def evaluation(self, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> onnx.GraphProto:
        """The body alone, which takes the latent's place at index 0."""
        before = Nodes("evaluation")
        keys = key_words(before, "seed")
        place, first_row, count = self._plan(before)
        zero, one = (before.constant(np.array([value])) for value in (0, 1))
        known = before.add("And", before.add("GreaterOrEqual", "index", zero), before.add("Less", "index", count))
        nowhere = before.constant(np.array([NOWHERE]))
        before.add("Where", known, before.add("Add", "index", first_row), nowhere, output="row")
        before.add("Sub", before.add("Sub", count, one), "index", output="remaining")
        self._draw(before, keys, "index")
        # Later evaluations do not draw the latent's noise.
        made = Nodes("latent")
        latent = self._latent(made, keys, place)
        make = helper.make_graph(made.nodes, "make", [], [_float(latent, None)], list(made.constants.values()))
        take = helper.make_graph([helper.make_node("Identity", ["x"], ["given"])], "take", [], [_float("given", None)])
        before.add("If", before.add("Equal", "index", zero), output="x_from", then_branch=make, else_branch=take)
        for node in nodes:   # outside, what goes in and what comes out have the same names, in and out
            node.input[:] = ["x_from" if name == "x" else name for name in node.input]
        whole = {name: helper.make_tensor_value_info(name, TensorProto.INT64, ["N" if name == "seed" else 1])
                 for name in ("index", "seed", "steps", "remaining")}
        return helper.make_graph(
            [*before.nodes, *nodes], "evaluation",
            [*(_float(name, self.images) for name in self.states), whole["index"], whole["seed"],
             *([whole["steps"]] if self.held.asks else [])],
            [*(_float(name, self.images) for name in self.carried), whole["remaining"]],
            [*initializers, *before.constants.values()],
        )

    def _plan(self, nodes: Nodes) -> tuple[str, str, str]:
        """The plan that is meant, its first row and its number of evaluations, int64 ``[1]`` each.

        A number of steps that the file does not hold is an error of the graph: a Gather out of bounds.
        """
        zero = nodes.constant(np.array([0]))
        if not self.held.asks:
            return zero, zero, nodes.constant(np.array([len(self.held.draws)]))
        least = nodes.constant(np.array([self.held.least]))
        known = nodes.add("GreaterOrEqual", "steps", least)
        place = nodes.add("Where", known, nodes.add("Sub", "steps", least), nodes.constant(np.array([NOWHERE])))
        first, end = (nodes.add("Gather", nodes.constant(limits), place)
                      for limits in (self.held.limits[:-1], self.held.limits[1:]))
        return place, first, nodes.add("Sub", end, first)

    def _latent(self, nodes: Nodes, keys: tuple[str, str], place: str) -> str:
        """The plan's initial x."""
        total = ""
        for draw, deviations in enumerate(self.held.starts.T):
            if (deviations == deviations[0]).all():
                deviation = nodes.constant(deviations[0])
            else:
                deviation = nodes.add("Gather", nodes.constant(deviations), place)
            z = normals(nodes, keys, nodes.constant(np.int64(draw)), self.shape)
            part = nodes.add("Mul", z, deviation)
            total = nodes.add("Add", total, part) if total else part
        return total

    def _draw(self, nodes: Nodes, keys: tuple[str, str], index: str) -> None:
        """Writes the noise of an evaluation as the value z; x itself where none is drawn, which has no weight there."""
        draws = self.held.draws
        counted = np.concatenate([np.arange(end - first) for first, end in zip(self.held.limits[:-1],
                                                                               self.held.limits[1:], strict=True)])
        if (draws < 0).all():
            return
        if (draws == counted + draws[0]).all():   # each one draws
            draw = nodes.add("Add", index, nodes.constant(draws[:1]))
            nodes.add("Identity", normals(nodes, keys, draw, self.shape), output="z")
            return
        draw = nodes.add("Gather", nodes.constant(draws), "row")
        drawn = Nodes("drawn")
        z = normals(drawn, keys, draw, self.shape)
        like = nodes.add("Shape", "x")
        branches = {
            "then_branch": helper.make_graph(drawn.nodes, "draw", [], [_float(z, None)],
                                             list(drawn.constants.values())),
            "else_branch": helper.make_graph([helper.make_node("ConstantOfShape", [like], ["nothing"])], "rest", [],
                                             [_float("nothing", None)]),
        }
        nodes.add("If", nodes.add("GreaterOrEqual", draw, nodes.constant(np.array([0]))), output="z", **branches)


def _float(name: str, shape: list[str | int | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _clipped(nodes: Nodes, x: str, output: str | None = None) -> str:
    return nodes.add("Clip", x, nodes.constant(np.float32(0)), nodes.constant(np.float32(1)), output=output)


def _pixels(nodes: Nodes, sample: str, output: str) -> str:
    """See :func:`sde_onnx.images.to_uint8`."""
    levels = nodes.add("Round", nodes.add("Mul", sample, nodes.constant(np.float32(255))))
    return nodes.add("Cast", nodes.add("Transpose", levels, perm=[0, 2, 3, 1]), to=TensorProto.UINT8, output=output)

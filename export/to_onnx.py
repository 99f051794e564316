"""A network becomes one self-describing ONNX file: rewrite, trace, annotate, verify, write."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from sde_onnx.errors import ConfigError, OutputError, ParityError, first_line
from sde_onnx.export.checkpoints import Checkpoint
from sde_onnx.export.checkpoints.module import from_module
from sde_onnx.export.embedding.update import add_update
from sde_onnx.export.graph.tracing import OPSET, trace
from sde_onnx.export.network.score_network import ConvertedNetwork, ScoreNetwork
from sde_onnx.export.rewrites.attention import keep_columns
from sde_onnx.export.rewrites.concatenations import split_concatenations
from sde_onnx.export.rewrites.emulation import emulated
from sde_onnx.export.rewrites.exact_phases import keep_phases_exact
from sde_onnx.export.rewrites.fold import fold_constants
from sde_onnx.export.rewrites.for_cuda import PRECISIONS as CUDA_PRECISIONS
from sde_onnx.export.rewrites.for_cuda import write_for_cuda
from sde_onnx.export.rewrites.half_weights import store_in_half
from sde_onnx.export.rewrites.norms import mark_norms, write_norms
from sde_onnx.export.rewrites.winograd import use_winograd
from sde_onnx.files import check_writable, replacing
from sde_onnx.runtime.endings import ending
from sde_onnx.runtime.metadata import KEY, ROWS_KEY, ModelMetadata
from sde_onnx.solvers.plan import ROWS_FORMAT
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["REVISION", "TARGETS", "TOLERANCES", "build_model", "check_model_output", "cpu_session", "export",
           "measure_parity", "parity_cases", "relative_error", "without_target"]

# Counted up when the same checkpoint becomes another graph: files cached before are then made again.
REVISION = 6
# Largest relative error |graph - network| / |network| at export, by precision. Rounding alone stays well below.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2, "mixed": 5e-3}
TARGETS = {"any": ("fp32",), "cpu": ("fp32",), "cuda": CUDA_PRECISIONS}   # and the precisions of each
WEIGHTS = ("fp32", "fp16")
# What torch's exporter raises; the cause of the last one says what it was.
TRACING_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, KeyError)

Float32Array = NDArray[np.float32]
ScoreFunction = Callable[..., Float32Array]   # of x, sigma and perhaps label, by name


def export(
    source: Checkpoint | nn.Module, path: str | os.PathLike[str], *, target: str = "any", precision: str = "fp32",
    weights: str = "fp32", force: bool = False, **about: Any,
) -> ModelMetadata:
    """Writes a checkpoint or a torch module as a model file, after checking it against the network.

    Args:
        source: a trained model.
        path: the ``.onnx`` file.
        target: the execution provider that the graph is written for: ``"any"``; ``"cpu"``, with convolutions for
            processors without AVX-512; or ``"cuda"``, which no other runs.
        precision: of the inside, ``"fp32"``, or for cuda ``"fp16"`` or ``"mixed"`` (the image's own
            resolution in float32, the others in float16); inputs and outputs are float32 always.
        weights: how they are stored: ``"fp32"``, or ``"fp16"`` for a file of half the size that computes in float32;
            not of target ``"cuda"``.
        force: whether an existing file may be replaced.
        about: of a torch module, at least ``schedule`` and ``image_shape``: see
            :func:`sde_onnx.export.checkpoints.module.from_module`.

    Returns:
        The file's metadata, the parity measured among it (of a graph for CUDA, that of an emulation on the CPU).

    Raises:
        ConfigError: a target or precision that there is not, or a network that has no form for it; a module that
            cannot be exported; ``about`` of a checkpoint, which says all this itself.
        OutputError: the file exists, cannot be written, or does not end in ``.onnx``.
        ParityError: the graph's scores differ by more than TOLERANCES; nothing is written.
    """
    path = Path(path)
    check_model_output(path, force=force)
    if about and not isinstance(source, nn.Module):
        raise ConfigError(f"a checkpoint says {', '.join(about)} itself: change it where the checkpoint is read")
    checkpoint = from_module(source, **about) if isinstance(source, nn.Module) else source
    network = checkpoint.network
    if network.labels and target == "cuda":
        raise ConfigError("a network with labels has no loop on a device yet: export it without --target cuda")
    model = build_model(network, target=target, precision=precision, weights=weights)
    runnable = emulated(model) if target == "cuda" else model
    session = cpu_session(runnable)
    with _widest_layer(network) as widest, ending() as options:
        parity = measure_parity(lambda **inputs: session.run(["score"], inputs, options)[0], network,
                                checkpoint.schedule)
    worst = max(parity, key=lambda case: parity[case] if math.isfinite(parity[case]) else math.inf)
    tolerance = max(TOLERANCES[precision], TOLERANCES[weights])
    if not parity[worst] <= tolerance:
        raise ParityError(
            f"the exported graph differs from the network by {parity[worst]:.2e} relative at {worst}, above "
            f"{tolerance:.0e}; {path} was not written{without_target(target)}"
        )
    metadata = ModelMetadata(
        schedule=checkpoint.schedule,
        snr=checkpoint.snr,
        n_corrector=checkpoint.n_corrector,
        image_shape=network.image_shape,
        data_range=checkpoint.data_range,
        labels=network.labels,
        label_optional=network.label_optional,
        architecture=network.summary() | {
            "parameters": sum(p.numel() for p in network.parameters()), "widest": max(widest, default=0),
        },
        precision=precision,
        weights=weights,
        target=target,
        source={"name": checkpoint.name, "sha256": checkpoint.sha256},
        parity=parity,
        versions={"sde_onnx": version("sde-onnx"), "torch": torch.__version__, "opset": str(OPSET)},
    )
    loop = {ROWS_KEY: str(ROWS_FORMAT)} if target == "cuda" else {}
    onnx.helper.set_model_props(model, {KEY: metadata.to_json(), **loop})
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return metadata


def without_target(target: str) -> str:
    """What to add where a graph differs too much: one for the CPU provider rounds more than one for any."""
    return ": export it without --target" if target == "cpu" else ""


def check_model_output(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuses an output before the work for it begins: see :func:`sde_onnx.files.check_writable`."""
    if path.suffix != ".onnx":
        raise OutputError(f"{path} does not end in .onnx, by which a model file is known")
    check_writable(path, force=force, inputs=inputs)


@contextmanager
def _widest_layer(network: nn.Module) -> Iterator[set[int]]:
    """Collects how many values the results of the network's convolutions have for one image, by which memory goes."""
    found: set[int] = set()
    hooks = [module.register_forward_hook(lambda module, inputs, result: found.add(result[0].numel()))
             for module in network.modules() if isinstance(module, nn.Conv2d)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def build_model(
    network: ScoreNetwork, *, target: str = "any", precision: str = "fp32", weights: str = "fp32"
) -> onnx.ModelProto:
    """Rewrites the network for inference and traces it into an ONNX model with a dynamic batch.

    Raises:
        ConfigError: the weights do not fit into one protobuf of 2 GB, it cannot be traced, or see :func:`export`.
    """
    if target not in TARGETS or precision not in TARGETS[target]:
        told = "; ".join(f"{name}: {', '.join(able)}" for name, able in TARGETS.items())
        raise ConfigError(f"target {target!r} in precision {precision!r} is unknown, expected one of {told}")
    if weights not in WEIGHTS:
        raise ConfigError(f"weights are {weights!r}, expected one of: {', '.join(WEIGHTS)}")
    if weights == "fp16" and target == "cuda":
        raise ConfigError("weights in fp16 are not for target cuda: its graph stores them in its precision")
    if sum(p.numel() * p.element_size() for p in network.parameters()) >= 2**31:
        raise ConfigError("the network's weights pass 2 GB, more than one ONNX file holds")
    network = fold_constants(network)
    mark_norms(network)
    keep_columns(network)
    # Two images and not one: a batch of one would be taken for a constant.
    arguments = {"x": torch.rand(2, *network.image_shape), "sigma": torch.tensor([0.1, 1.0])}
    if network.labels:
        arguments["label"] = torch.tensor([0, network.labels - 1])
    batch = torch.export.Dim("N")
    try:
        model = trace(network, tuple(arguments.values()), inputs=list(arguments), outputs=["score"],
                      dynamic_shapes={name: {0: batch} for name in arguments})
    except TRACING_ERRORS as error:
        raise ConfigError(f"{_class_of(network)} cannot be traced ({_reason(error)}): its forward must not branch on "
                          "values, nor take the batch for a constant") from error
    if target == "cuda":
        write_for_cuda(model, precision)
        add_update(model, network.image_shape)
    else:
        write_norms(model)
        split_concatenations(model)
        keep_phases_exact(model)
        if weights == "fp16":
            store_in_half(model)
        if target == "cpu":
            use_winograd(model)
    onnx.checker.check_model(model)
    return model


def _class_of(network: ScoreNetwork) -> str:
    return type(network.module if isinstance(network, ConvertedNetwork) else network).__name__


def _reason(error: BaseException) -> str:
    """The line of torch's message that says what failed, which stands below its advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return first_line(cause)


def measure_parity(score: ScoreFunction, network: ScoreNetwork, schedule: VeSchedule) -> dict[str, float]:
    """Compares a score function with the network where sampling will use it.

    Args:
        score: what to judge, arrays in and out.
        network: the oracle.
        schedule: gives the smallest, the middle (in log) and the largest sigma.

    Returns:
        The relative error by case, for each sigma at batch 1 and 3, on images of smooth colours plus sigma times noise;
        of the denoised images, where a network gives those.
    """
    parity = {}
    for case, inputs in parity_cases(network.image_shape, schedule, network.labels):
        with torch.no_grad():
            expected = network(*map(torch.from_numpy, inputs.values())).numpy()
        got = score(**inputs)
        if network.gives_images:   # and the score is their small difference from x, which rounding dominates
            got, expected = (inputs["x"] + inputs["sigma"][0]**2 * value for value in (got, expected))
        parity[case] = relative_error(got, expected)
    return parity


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """``|got - expected| / |expected|``, and 0 where both are zeros: NCSN++ starts with a last convolution of zeros."""
    difference, size = float(np.linalg.norm(got - expected)), float(np.linalg.norm(expected))
    if size == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / size


def parity_cases(
    image_shape: tuple[int, ...], schedule: VeSchedule, labels: int, *, batches: Sequence[int] = (1, 3)
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields a name and the inputs of a network where sampling will use it.

    Args:
        image_shape: C, H, W.
        schedule: gives the smallest, the middle (in log) and the largest sigma.
        labels: how many the network has; without any there is no such input.
        batches: images at a time.
    """
    generator = torch.Generator().manual_seed(0)
    for sigma in (schedule.sigma_min, math.sqrt(schedule.sigma_min * schedule.sigma_max), schedule.sigma_max):
        for batch in batches:
            coarse = torch.rand(batch, image_shape[0], 4, 4, generator=generator)
            images = F.interpolate(coarse, size=image_shape[1:], mode="bilinear")
            x = images + sigma * torch.randn(images.shape, generator=generator)
            inputs = {"x": x.numpy(), "sigma": np.full(batch, sigma, np.float32)}
            if labels:
                inputs["label"] = np.arange(batch) % labels
            yield f"sigma {sigma:.4g} batch {batch}", inputs


def cpu_session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session of a model in memory, for its check."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

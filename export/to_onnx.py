"""A network becomes one self-describing ONNX file: rewrite, trace, annotate, verify, write."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sde_onnx.errors import ConfigError, OutputError, ParityError
from sde_onnx.export.checkpoints import Checkpoint
from sde_onnx.export.embedding.update import add_update
from sde_onnx.export.graph.tracing import OPSET, trace
from sde_onnx.export.network.ncsnpp import NCSNpp
from sde_onnx.export.rewrites.concatenations import split_concatenations
from sde_onnx.export.rewrites.emulation import emulated
from sde_onnx.export.rewrites.exact_phases import keep_phases_exact
from sde_onnx.export.rewrites.fold import fold_constants
from sde_onnx.export.rewrites.for_cuda import PRECISIONS as CUDA_PRECISIONS
from sde_onnx.export.rewrites.for_cuda import write_for_cuda
from sde_onnx.export.rewrites.norms import mark_norms, write_norms
from sde_onnx.files import check_writable, replacing
from sde_onnx.runtime.metadata import KEY, ROWS_KEY, ModelMetadata
from sde_onnx.solvers.plan import ROWS_FORMAT
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["REVISION", "TARGETS", "TOLERANCES", "build_model", "check_model_output", "export", "measure_parity"]

# Counted up when the same checkpoint becomes another graph: files cached before are then made again.
REVISION = 3
# Largest relative error |graph - network| / |network| at export, by precision. Rounding alone stays well below.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2}
TARGETS = ("any", "cuda")

Float32Array = NDArray[np.float32]
ScoreFunction = Callable[[Float32Array, Float32Array], Float32Array]


def export(
    checkpoint: Checkpoint, path: str | os.PathLike[str], *, target: str = "any", precision: str = "fp32",
    force: bool = False,
) -> ModelMetadata:
    """Writes a checkpoint as a model file, after checking it against the network.

    Args:
        checkpoint: a trained model.
        path: the ``.onnx`` file.
        target: the execution provider that the graph is written for: ``"any"``, or ``"cuda"``, which no other runs.
        precision: of the inside, ``"fp32"``, or for cuda ``"fp16"``; inputs and outputs are float32 always.
        force: whether an existing file may be replaced.

    Returns:
        The file's metadata, the parity measured among it (of a graph for CUDA, that of an emulation on the CPU).

    Raises:
        ConfigError: a target or precision that there is not, or a network that has no form for it.
        OutputError: the file exists, cannot be written, or does not end in ``.onnx``.
        ParityError: the graph's scores differ by more than TOLERANCES; nothing is written.
    """
    path = Path(path)
    check_model_output(path, force=force)
    config = checkpoint.network.config
    model = build_model(checkpoint.network, target=target, precision=precision)
    shape = (config.image_channels, config.image_size, config.image_size)
    runnable = emulated(model) if target == "cuda" else model
    parity = measure_parity(_run_on_cpu(runnable), checkpoint.network, checkpoint.schedule, shape)
    worst = max(parity, key=lambda case: parity[case] if math.isfinite(parity[case]) else math.inf)
    if not parity[worst] <= TOLERANCES[precision]:
        raise ParityError(
            f"the exported graph differs from the network by {parity[worst]:.2e} relative at {worst}, above "
            f"{TOLERANCES[precision]:.0e}; {path} was not written"
        )
    metadata = ModelMetadata(
        schedule=checkpoint.schedule,
        snr=checkpoint.snr,
        n_corrector=checkpoint.n_corrector,
        image_shape=shape,
        data_range=(0.0, 1.0),
        architecture=config.to_json() | {
            "parameters": sum(p.numel() for p in checkpoint.network.parameters()),
            "discrete": config.noise_levels is not None,   # any other sigma is taken for the nearest that was trained
        },
        precision=precision,
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


def check_model_output(path: Path, *, force: bool) -> None:
    """Refuses an output before the work for it begins: see :func:`sde_onnx.files.check_writable`."""
    if path.suffix != ".onnx":
        raise OutputError(f"{path} does not end in .onnx, by which a model file is known")
    check_writable(path, force=force)


def build_model(network: NCSNpp, *, target: str = "any", precision: str = "fp32") -> onnx.ModelProto:
    """Rewrites the network for inference and traces it into an ONNX model with a dynamic batch.

    Raises:
        ConfigError: the weights do not fit into one protobuf of 2 GB, or see :func:`export`.
    """
    config = network.config
    able = {"any": ("fp32",), "cuda": CUDA_PRECISIONS}
    if target not in TARGETS or precision not in able[target]:
        told = "; ".join(f"{name}: {', '.join(able[name])}" for name in TARGETS)
        raise ConfigError(f"target {target!r} in precision {precision!r} is unknown, expected one of {told}")
    if sum(p.numel() * p.element_size() for p in network.parameters()) >= 2**31:
        raise ConfigError("the network's weights pass 2 GB, more than one ONNX file holds")
    network = fold_constants(network)
    mark_norms(network)
    # Two images and not one: a batch of one would be taken for a constant.
    x = torch.rand(2, config.image_channels, config.image_size, config.image_size)
    sigma = torch.tensor([0.1, 1.0])
    batch = torch.export.Dim("N")
    model = trace(network, (x, sigma), inputs=["x", "sigma"], outputs=["score"],
                  dynamic_shapes={"x": {0: batch}, "sigma": {0: batch}})
    if target == "cuda":
        write_for_cuda(model, precision)
        add_update(model, (config.image_channels, config.image_size, config.image_size))
    else:
        write_norms(model)
        split_concatenations(model)
        keep_phases_exact(model)
    onnx.checker.check_model(model)
    return model


def measure_parity(
    score: ScoreFunction, network: NCSNpp, schedule: VeSchedule, shape: tuple[int, int, int]
) -> dict[str, float]:
    """Compares a score function with the network where sampling will use it.

    Args:
        score: what to judge, arrays in and out.
        network: the oracle.
        schedule: gives the smallest, the middle (in log) and the largest sigma.
        shape: ``(C, H, W)``.

    Returns:
        ``|a - b| / |b|`` by case, for each sigma at batch 1 and 3, on images of smooth colours plus sigma times noise.
    """
    generator = torch.Generator().manual_seed(0)
    middle = math.sqrt(schedule.sigma_min * schedule.sigma_max)
    parity = {}
    for sigma in (schedule.sigma_min, middle, schedule.sigma_max):
        for batch in (1, 3):
            coarse = torch.rand(batch, shape[0], 4, 4, generator=generator)
            images = F.interpolate(coarse, size=shape[1:], mode="bilinear")
            x = images + sigma * torch.randn(images.shape, generator=generator)
            sigmas = torch.full((batch,), sigma)
            with torch.no_grad():
                expected = network(x, sigmas).numpy()
            error = np.linalg.norm(score(x.numpy(), sigmas.numpy()) - expected) / np.linalg.norm(expected)
            parity[f"sigma {sigma:.4g} batch {batch}"] = float(error)
    return parity


def _run_on_cpu(model: onnx.ModelProto) -> ScoreFunction:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x, sigma: session.run(["score"], {"x": x, "sigma": sigma})[0]

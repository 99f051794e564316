"""Golden values of a sampler file, and whether a runtime reproduces them.

A golden file (``.npz``) holds what the host's loop gives for a few seeds:

    format      int64
    seed        int64 [N], in two's complement
    label       int64 [N], of a model with labels
    mask, measurement    float32 [1, 1, H, W] and [1, C, H, W], of a file with an operator
    latent      float32 [N, C, H, W], the start
    x_first, x_last    x after the first and after the last evaluation
    sample      float32 [N, C, H, W] in [0, 1];  image  uint8 [N, H, W, C]
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sde_onnx.checks import checked_number
from sde_onnx.errors import InputError, ModelFileError, OutputError, ProviderError, first_line
from sde_onnx.files import UNREADABLE, arrays_of, replacing
from sde_onnx.generate.sample import choose_batch_size
from sde_onnx.guidance.measurement import Measurement
from sde_onnx.guidance.null_space import null_space
from sde_onnx.images import to_uint8
from sde_onnx.operators import box, mask
from sde_onnx.runtime.endings import ending
from sde_onnx.runtime.metadata import NOISE_KEY, SAMPLER_FORMATS, SAMPLER_KEY, telling_damage
from sde_onnx.runtime.providers import ORT_ERRORS, choose_provider, open_session
from sde_onnx.runtime.score_model import ScoreModel
from sde_onnx.solvers.catalogue import Sampling
from sde_onnx.solvers.noise import PortableNoise
from sde_onnx.solvers.plan import latent, run_evaluations
from sde_onnx.solvers.protocols import Score

__all__ = ["Comparison", "verify", "write_golden"]

GOLDEN_FORMATS = (2, 3)   # without and with a measurement: older versions read what they can
GOLDEN_SEEDS = (0, 1, 12345678901234567890, 2**64 - 1)   # with bits in both words, and beyond int64
SAME_SHARE = {"cpu": 0.999, "openvino": 0.999}           # of 8-bit values that are equal, at least
SAME_ON_GPUS = 0.99                                      # whose float32 rounds otherwise, and whose exponentials
MOST_LEVELS = 1                                          # the largest difference of any value
HELD = ("seed", "latent", "x_first", "x_last", "image")  # of every format
OTHER_INPUTS = ("label", "mask", "measurement")          # of a sampler file, beside seed and steps
KINDS = ("sampler", "evaluation")                        # of files
MOST_EVALUATIONS_A_STEP = 1000                           # a file that asks for more does not end
MOST_ERROR = 1e-3                                        # of states, relative: rounding, carried through every step


@dataclass(frozen=True)
class Comparison:
    """How a sampler's images differ from the golden ones."""

    same: float          # share of equal 8-bit values
    largest: int         # difference of any, in levels of 255
    x_error: float | None   # |a - b| / |b| of x after the first or the last evaluation, the worse; None if not seen
    least: float = SAME_SHARE["cpu"]   # share that rounding leaves equal

    @property
    def passed(self) -> bool:
        """Whether rounding explains the difference."""
        return self.same >= self.least and self.largest <= MOST_LEVELS and (self.x_error or 0) < MOST_ERROR


def write_golden(model: ScoreModel, path: Path, sampling: Sampling, *, operator: str | None = None) -> None:
    """Writes what the host's loop gives for GOLDEN_SEEDS.

    Args:
        model: the model that the sampler file is made of.
        path: the ``.npz`` file; it is replaced if it exists.
        sampling: what the sampler file holds.
        operator: that the file was made for, if any.
    """
    assert sampling.plan is not None   # no file holds a solver without one
    labels = np.arange(len(GOLDEN_SEEDS)) % model.metadata.labels if model.metadata.labels else None
    measured = {} if operator is None else _measured(model.metadata.image_shape)
    parts = []
    size = choose_batch_size(model, len(GOLDEN_SEEDS), None)
    for first in range(0, len(GOLDEN_SEEDS), size):
        noise = PortableNoise(GOLDEN_SEEDS[first : first + size], model.metadata.image_shape)
        score: Score = model if labels is None else partial(model, label=labels[first : first + size])
        if measured:
            score = null_space(score, Measurement(measured["measurement"], mask(measured["mask"][0, 0]), noise=0.0),
                               damping=1.0)   # of no effect without noise
        states = [(x, x_mean) for _, x, x_mean in run_evaluations(sampling.plan, score, noise)]
        parts.append((states[0][0], *states[-1]))
    x_first, x_last, x_mean = (np.concatenate(states) for states in zip(*parts, strict=True))
    noise = PortableNoise(GOLDEN_SEEDS, model.metadata.image_shape)
    values: dict[str, Any] = {} if labels is None else {"label": labels}
    values |= {**measured, "format": np.int64(GOLDEN_FORMATS[operator is not None]),
               "seed": np.array(GOLDEN_SEEDS, np.uint64).view(np.int64),
               "latent": latent(sampling.plan, noise), "x_first": x_first, "x_last": x_last,
               "sample": np.clip(x_mean, 0, 1), "image": to_uint8(x_mean)}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **values)


def verify(
    sampler: str | os.PathLike[str], golden: str | os.PathLike[str], provider: str = "cpu", *, timeout: float = 86400.0
) -> Comparison:
    """Runs a sampler or evaluation file for the seeds of a golden file.

    Args:
        sampler: a file that `sde-onnx embed` made.
        golden: what it wrote for ``--golden``.
        provider: as for :func:`sde_onnx.load`.
        timeout: seconds that its runs may take, > 0.

    Raises:
        InputError: the two are of different image sizes or inputs, an unknown provider, or no such timeout.
        ModelFileError: a file that is damaged, not what it should be, or not done in time.
        OutputError: the golden file cannot be read.
        ProviderError: the provider cannot run here, or failed while running.
    """
    if not checked_number("timeout", timeout) > 0:
        raise InputError(f"timeout is {timeout}, expected seconds above 0")
    try:
        held = arrays_of(Path(golden))
        number = int(held.get("format", 1))
    except UNREADABLE as error:
        raise OutputError(f"{golden} cannot be read as golden values: {first_line(error)}") from None
    if number not in GOLDEN_FORMATS:
        mend = "upgrade sde-onnx" if number > GOLDEN_FORMATS[-1] else "write it again with `sde-onnx embed --golden`"
        raise OutputError(f"{golden} has golden format {number}, this sde-onnx reads {GOLDEN_FORMATS[0]} to "
                          f"{GOLDEN_FORMATS[-1]}: {mend}")
    if missing := [name for name in HELD if name not in held]:
        raise OutputError(f"{golden} cannot be read as golden values: it holds no array `{missing[0]}`")
    expected = {name: held[name] for name in HELD}
    inputs = {name: held[name] for name in ("seed", *OTHER_INPUTS) if name in held}
    count = len(expected["seed"]) if expected["seed"].ndim == 1 else 0
    shape = expected["latent"].shape[1:]
    held_as: dict[str, tuple[Any, tuple[int, ...]]] = {
        "seed": (np.int64, (count,)), "image": (np.uint8, (count, *shape[1:], *shape[:1])),
        **dict.fromkeys(("latent", "x_first", "x_last"), (np.float32, (count, *shape)))}
    for name, (dtype, sizes) in held_as.items():
        if count == 0 or len(shape) != 3 or (expected[name].dtype, expected[name].shape) != (dtype, sizes):
            raise OutputError(f"{golden} holds {name} {expected[name].dtype} {list(expected[name].shape)}, which are "
                              "no golden values: write it again with `sde-onnx embed --golden`")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    chosen = choose_provider(provider)
    try:
        session = open_session(os.fspath(sampler), "cpu" if chosen == "webgpu" else chosen, options)
        if chosen == "webgpu":   # which wants to know before it opens a file what the file says
            on_cpu = session.get_modelmeta().custom_metadata_map.get(NOISE_KEY, "").splitlines()
            session = open_session(os.fspath(sampler), chosen, options, on_cpu=on_cpu)
    except ORT_ERRORS as error:
        raise ModelFileError(f"{sampler} cannot be loaded: {first_line(error)}") from None
    about = _about(session, str(sampler))
    made = next((item.shape[1:] for item in session.get_outputs() if item.name in ("x_mean", "sample")), None)
    if made is None:
        raise ModelFileError(f"{sampler} has no output of images: make it again with `sde-onnx embed`")
    if tuple(made) != shape:
        raise InputError(f"{sampler} makes images {made}, {golden} holds {list(shape)}")
    asked = {item.name for item in session.get_inputs()}
    for name in OTHER_INPUTS:
        if (name in asked) != (name in inputs):
            raise InputError(f"{sampler} has {'an' if name in asked else 'no'} input {name}, {golden} holds "
                             f"{'one' if name in inputs else 'none'}: it is of another sampler")
    if "steps" in asked:
        inputs["steps"] = np.array([about["steps"]])
    with ending(timeout) as options:
        try:
            if about["kind"] == "evaluation":
                image, x_error = _drive(session, expected, inputs, about["steps"], options)
            else:
                image, x_error = session.run(["image"], inputs, options)[0], None
        except ORT_ERRORS as error:
            if options.terminate:
                raise ModelFileError(f"{sampler} did not end in {timeout:g} s: raise --timeout (timeout=), unless "
                                     "its loop has no end") from None
            raise ProviderError(f"{chosen} failed on {sampler}: {first_line(error)}") from error
    difference = np.abs(image.astype(int) - expected["image"])
    return Comparison(float((difference == 0).mean()), int(difference.max()), x_error,
                      SAME_SHARE.get(chosen, SAME_ON_GPUS))


def _measured(image_shape: tuple[int, int, int]) -> dict[str, NDArray[np.float32]]:
    """A mask whose middle is missing, and a ramp, which a port must not read there."""
    _, height, width = image_shape
    known = box(width // 4, height // 4, (width + 1) // 2, (height + 1) // 2).known(image_shape)
    ramp = np.linspace(0, 1, width, dtype=np.float32)
    return {"mask": known[None, None].astype(np.float32), "measurement": np.tile(ramp, (1, *image_shape[:2], 1))}


def _about(session: ort.InferenceSession, name: str) -> dict[str, Any]:
    """What the file says of itself."""
    with telling_damage(name):
        text = session.get_modelmeta().custom_metadata_map.get(SAMPLER_KEY)
    if text is None:
        raise ModelFileError(f"{name} is no sampler: make one with `sde-onnx embed MODEL -o FILE`")
    try:
        about = json.loads(text)
        number, kind, steps = int(about["format"]), about["kind"], about["steps"]
    except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError):
        raise ModelFileError(f"{name}: its metadata is damaged; make it again with `sde-onnx embed`") from None
    if number not in SAMPLER_FORMATS:
        mend = "upgrade sde-onnx" if number > SAMPLER_FORMATS[-1] else "make it again with `sde-onnx embed`"
        raise ModelFileError(f"{name} has sampler format {number}, this sde-onnx reads {SAMPLER_FORMATS[0]} to "
                             f"{SAMPLER_FORMATS[-1]}: {mend}")
    if kind not in KINDS or type(steps) is not int or steps < 1:
        raise ModelFileError(f"{name} says that it is {steps!r} steps of kind {kind!r}, expected {' or '.join(KINDS)}: "
                             "make it again with `sde-onnx embed`")
    return about   # type: ignore[no-any-return]  # it has keys


def _drive(
    session: ort.InferenceSession, expected: dict[str, NDArray[Any]], inputs: dict[str, NDArray[Any]], steps: int,
    options: ort.RunOptions,
) -> tuple[Any, float]:
    """Drives an evaluation file as a host would; returns the image and the worst error of the golden states."""
    outputs = [item.name for item in session.get_outputs()]
    states = [name.removesuffix("_next") for name in outputs if name.endswith("_next")]
    feeds = dict.fromkeys(states, np.zeros_like(expected["latent"])) | inputs
    errors, index, remaining = [], 0, 1
    while remaining > 0:
        if index == MOST_EVALUATIONS_A_STEP * steps:
            raise ModelFileError(f"after {index} evaluations the file still asks for {remaining} more of its {steps} "
                                 "steps: make it again with `sde-onnx embed`")
        values = session.run(outputs, feeds | {"index": np.array([index])}, options)
        results = dict(zip(outputs, values, strict=True))
        feeds |= {name: results[f"{name}_next"] for name in states}
        remaining = int(results["remaining"][0])
        if (known := "x_first" if index == 0 else "x_last" if remaining == 0 else None) is not None:
            errors.append(float(np.linalg.norm(feeds["x"] - expected[known]) / np.linalg.norm(expected[known])))
        index += 1
    return to_uint8(results["x_mean"]), max(errors)

"""Golden values of a sampler file, and whether a runtime reproduces them.

A golden file (``.npz``) holds what the host's loop gives for a few seeds:

    seed        int64 [N], in two's complement
    latent      float32 [N, C, H, W], the start
    x_first, x_last    x after the first and after the last step
    sample      float32 [N, C, H, W] in [0, 1];  image  uint8 [N, H, W, C]
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sde_onnx.errors import InputError, ModelFileError, OutputError, ProviderError
from sde_onnx.files import replacing
from sde_onnx.generation import sample_batches
from sde_onnx.images import to_uint8
from sde_onnx.metadata import SAMPLER_FORMAT, SAMPLER_KEY
from sde_onnx.noise import PortableNoise
from sde_onnx.providers import ORT_ERRORS, choose_provider, open_session
from sde_onnx.session import ScoreModel

__all__ = ["Comparison", "verify", "write_golden"]

GOLDEN_SEEDS = (0, 1, 12345678901234567890, 2**64 - 1)   # with bits in both words, and beyond int64
SAME_SHARE, MOST_LEVELS = 0.999, 1                       # of 8-bit values equal; largest difference of any


@dataclass(frozen=True)
class Comparison:
    """How a sampler's images differ from the golden ones."""

    same: float          # share of equal 8-bit values
    largest: int         # difference of any, in levels of 255
    x_error: float | None   # |a - b| / |b| of x after the first or the last step, the worse; None if not seen

    @property
    def passed(self) -> bool:
        """Whether rounding explains the difference."""
        return self.same >= SAME_SHARE and self.largest <= MOST_LEVELS and (self.x_error is None or self.x_error < 1e-3)


def write_golden(model: ScoreModel, path: Path, *, solver: str, steps: int | None, **options: Any) -> None:
    """Writes what the host's loop gives for GOLDEN_SEEDS.

    Args:
        model: the model that the sampler file is made of.
        path: the ``.npz`` file; it is replaced if it exists.
        solver, steps, options: as for :func:`sde_onnx.sample`.
    """
    parts = []
    for batch in sample_batches(model, GOLDEN_SEEDS, steps, solver=solver, **options):
        last = next(batch.steps)
        x_first = last.x
        for last in batch.steps:   # noqa: B007  # the last one is the result
            pass
        parts.append((x_first, last.x, last.x_mean))
    x_first, x_last, x_mean = (np.concatenate(states) for states in zip(*parts, strict=True))
    latent = PortableNoise(GOLDEN_SEEDS, model.metadata.image_shape)() * np.float32(model.metadata.schedule.sigma_max)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, seed=np.array(GOLDEN_SEEDS, np.uint64).view(np.int64), latent=latent, x_first=x_first,
                 x_last=x_last, sample=np.clip(x_mean, 0, 1), image=to_uint8(x_mean))


def verify(sampler: str | os.PathLike[str], golden: str | os.PathLike[str], provider: str = "cpu") -> Comparison:
    """Runs a sampler or step file for the seeds of a golden file.

    Args:
        sampler: a file that `sde-onnx embed` made.
        golden: what it wrote for ``--golden``.
        provider: as for :func:`sde_onnx.load`.

    Raises:
        InputError: the two are of different image sizes, or an unknown provider.
        ModelFileError: a file that is damaged, or not what it should be.
        OutputError: the golden file cannot be read.
        ProviderError: the provider cannot run here, or failed while running.
    """
    try:
        with np.load(golden) as held:
            expected = {name: held[name] for name in ("seed", "latent", "x_first", "x_last", "image")}
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
        raise OutputError(f"{golden} cannot be read as golden values: {error}") from None
    options = ort.SessionOptions()
    options.log_severity_level = 3
    chosen = choose_provider(provider)
    try:
        session = open_session(os.fspath(sampler), chosen, options)
    except ORT_ERRORS as error:
        raise ModelFileError(f"{sampler} cannot be loaded: {str(error).splitlines()[0][:200]}") from None
    kind, steps = _kind_and_steps(session, str(sampler))
    shape = expected["latent"].shape[1:]
    output = {item.name: item.shape for item in session.get_outputs()}["x_mean" if kind == "step" else "sample"]
    if tuple(output[1:]) != shape:
        raise InputError(f"{sampler} makes images {output[1:]}, {golden} holds {list(shape)}")
    try:
        if kind == "step":
            image, x_error = _run_steps(session, steps, expected)
        else:
            image, x_error = session.run(["image"], {"seed": expected["seed"]})[0], None
    except ORT_ERRORS as error:
        raise ProviderError(f"{chosen} failed on {sampler}: {str(error).splitlines()[0][:200]}") from error
    difference = np.abs(image.astype(int) - expected["image"])
    return Comparison(float((difference == 0).mean()), int(difference.max()), x_error)


def _kind_and_steps(session: ort.InferenceSession, name: str) -> tuple[str, int]:
    """What the file is, ``"sampler"`` or ``"step"``, and how many steps there are."""
    text = session.get_modelmeta().custom_metadata_map.get(SAMPLER_KEY)
    if text is None:
        raise ModelFileError(f"{name} is no sampler: make one with `sde-onnx embed MODEL -o FILE`")
    try:
        about = json.loads(text)
        kind, steps, number = about["kind"], about["steps"], about["format"]
    except (KeyError, TypeError, ValueError):
        raise ModelFileError(f"{name}: its metadata is damaged; make it again with `sde-onnx embed`") from None
    if number > SAMPLER_FORMAT:
        raise ModelFileError(f"{name} has sampler format {number}, this sde-onnx reads up to {SAMPLER_FORMAT}: "
                             "upgrade sde-onnx")
    return kind, steps


def _run_steps(session: ort.InferenceSession, steps: int, expected: dict[str, NDArray[Any]]) -> tuple[Any, float]:
    """Drives a step file as a host would; returns the image and the worst error of the states that are golden."""
    inputs = {item.name for item in session.get_inputs()}
    states = [item.name for item in session.get_inputs() if item.name not in ("index", "seed", "steps")]
    fixed = {"seed": expected["seed"]} | ({"steps": np.array([steps])} if "steps" in inputs else {})
    values = {name: np.zeros_like(expected["latent"]) for name in states}
    errors = []
    for index in range(steps):
        *following, x_mean = session.run(None, values | fixed | {"index": np.array([index])})
        values = dict(zip(states, following, strict=True))
        if (known := {0: "x_first", steps - 1: "x_last"}.get(index)) is not None:
            reference = expected[known]
            errors.append(float(np.linalg.norm(values["x"] - reference) / np.linalg.norm(reference)))
    return to_uint8(x_mean), max(errors)

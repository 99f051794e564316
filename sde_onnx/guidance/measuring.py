"""Measurements: made of clean images, or as a caller gives them, checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sde_onnx.checks import checked_each, checked_number
from sde_onnx.errors import InputError
from sde_onnx.guidance.measurement import Measurement
from sde_onnx.image_files import Images, in_data_units, is_array
from sde_onnx.operators.operator import Operator
from sde_onnx.solvers.noise import check_seeds, portable_normals
from sde_onnx.solvers.protocols import Array

__all__ = ["ROUNDING", "degrade", "hidden_by", "measurement_of"]

Float32Array = NDArray[np.float32]
ROUNDING = 1 / 255 / 12**0.5   # the standard deviation of what 8 bits round away
FIRST_DRAW = 1 << 30           # of the portable noise: far from those that a sampled image of the same seed is made of


def degrade(images: Float32Array, operator: Operator, seeds: Sequence[int], *, noise: float = 0.0) -> Float32Array:
    """Measurements of clean images, ``A x + noise n``. The seed's n has nothing in common with the seed's sample.

    Args:
        images: ``[N, C, H, W]`` float32 in data units.
        operator: of :func:`sde_onnx.operators.given.operator_for`.
        seeds: one for each image.
        noise: sigma_y, >= 0.

    Raises:
        InputError: not a seed for each image, or a noise below 0.
    """
    _check_noise(noise)
    checked_each(seeds, "seed", len(images))
    clean = operator.A(images)
    n = portable_normals(check_seeds(seeds), FIRST_DRAW, int(np.prod(clean.shape[1:]))).reshape(clean.shape)
    return np.where(hidden_by(operator, images.shape[1:]), clean, clean + np.float32(noise) * n).astype(np.float32)


def measurement_of(
    measurement: Images, operator: Operator, noise: float, image_shape: tuple[int, int, int], images: int
) -> Measurement:
    """The measurement of each image, checked.

    Args:
        measurement: what the operator makes of an image, of one for all or of each: see :func:`sde_onnx.restore`. The
            rounding of uint8 counts as noise.
        operator: of :func:`sde_onnx.operators.given.operator_for`.
        noise: sigma_y, data units, >= 0.
        image_shape: the model's ``(C, H, W)``.
        images: N.

    Raises:
        InputError: another type or shape, numbers that are not finite, or a noise below 0.
    """
    _check_noise(noise)
    hidden = hidden_by(operator, image_shape)
    shape = hidden.shape
    if not is_array(measurement) or measurement.dtype not in (np.uint8, np.float32):
        kind = measurement.dtype if is_array(measurement) else type(measurement).__name__
        raise InputError(f"the measurement is {kind}, expected a numpy array, uint8 or float32")
    if measurement.shape not in (shape, (images, *shape)):
        raise InputError(f"the measurement has shape {list(measurement.shape)}, the operator gives {list(shape)} of "
                         f"images {list(image_shape)}")
    y: Array = in_data_units(measurement)
    if measurement.dtype == np.uint8:
        noise = float(np.hypot(noise, ROUNDING))
    y = np.where(hidden, np.float32(0), y)
    if not np.isfinite(y).all():
        raise InputError("the measurement holds NaN or infinity")
    return Measurement(np.broadcast_to(y, (images, *shape)), operator, float(noise))


def hidden_by(operator: Operator, image_shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where a measurement is 0 whatever the image is, as where a mask hides it: in the shape of one measurement."""
    generic = np.random.default_rng(0).uniform(1, 2, (1, *image_shape)).astype(np.float32)
    hidden: NDArray[np.bool_] = operator.A(generic)[0] == 0
    return hidden


def _check_noise(noise: float) -> None:
    checked_number("noise", noise, "a standard deviation of 0 or more, in data units", least=0)

"""Measurements: made of clean images, and checked."""

import numpy as np
import pytest

from sde_onnx.errors import InputError
from sde_onnx.guidance.measuring import ROUNDING, degrade, hidden_by, measurement_of
from sde_onnx.operators.given import operator_for
from sde_onnx.solvers.noise import PortableNoise

SHAPE = (3, 16, 16)
GOOD = np.full((3, 8, 8), 0.25, np.float32)


def test_a_measurement_has_the_noise_that_was_asked_for():
    images = np.full((64, *SHAPE), 0.5, np.float32)
    operator = operator_for("random:0.5", SHAPE)
    y = degrade(images, operator, range(64), noise=0.2)
    known = operator.A(images) > 0
    assert (y[~known] == 0).all()
    assert (y[known] - 0.5).std() == pytest.approx(0.2, rel=0.02)
    np.testing.assert_array_equal(y[3:4], degrade(images[:1], operator, [3], noise=0.2))


def test_noise_of_a_measurement_is_not_that_of_a_sample():
    """Else a restoration could know the noise by its seed."""
    noise = degrade(np.zeros((1, *SHAPE), np.float32), operator_for("box:0,0,1,1", SHAPE), [3], noise=1.0)
    draw = PortableNoise([3], SHAPE)
    correlations = [(draw() * noise).mean() for _ in range(8)]
    assert np.abs(correlations).max() < 4 / noise.size**0.5


def test_a_seed_for_each_image():
    with pytest.raises(InputError, match="2 seeds for 1 image: give one for each image"):
        degrade(np.zeros((1, *SHAPE), np.float32), operator_for("gray", SHAPE), [0, 1])


def test_what_a_mask_hides_is_known_whatever_the_image_is():
    hidden = hidden_by(operator_for("box:2,3,4,5", SHAPE), SHAPE)
    expected = np.zeros(SHAPE, bool)
    expected[:, 3:8, 2:6] = True
    np.testing.assert_array_equal(hidden, expected)
    assert not hidden_by(operator_for("gray", SHAPE), SHAPE).any()


def test_a_measurement_serves_one_image_or_all():
    operator = operator_for("down:2", SHAPE)
    found = measurement_of(GOOD, operator, 0.5, SHAPE, 3)
    assert (found.y.shape, found.noise) == ((3, *GOOD.shape), 0.5)
    each = np.stack([GOOD, GOOD / 2, GOOD / 4])
    np.testing.assert_array_equal(measurement_of(each, operator, 0, SHAPE, 3).y, each)


def test_8_bits_are_data_units_and_their_rounding_is_noise():
    found = measurement_of(np.full((3, 8, 8), 51, np.uint8), operator_for("down:2", SHAPE), 0.01, SHAPE, 1)
    np.testing.assert_allclose(found.y, 0.2, rtol=1e-6)
    assert found.noise == pytest.approx((0.01**2 + ROUNDING**2) ** 0.5)


@pytest.mark.parametrize(("changed", "said"), [
    ({"noise": -0.1}, "noise is -0.1"),
    ({"noise": float("nan")}, "noise is nan"),
    ({"noise": None}, "noise is None"),
    ({"measurement": np.zeros((5, 3, 8, 8), np.float32)}, "the measurement has shape [5, 3, 8, 8]"),
    ({"measurement": np.zeros((3, 8, 8))}, "the measurement is float64"),
    ({"measurement": [[0.5]]}, "the measurement is list"),
    ({"measurement": np.full((3, 8, 8), np.nan, np.float32)}, "the measurement holds NaN"),
])
def test_bad_measurements_are_refused(changed, said):
    given = {"measurement": GOOD, "noise": 0.0} | changed
    with pytest.raises(InputError) as error:
        measurement_of(given["measurement"], operator_for("down:2", SHAPE), given["noise"], SHAPE, 2)
    assert said in str(error.value) and "\n" not in str(error.value)

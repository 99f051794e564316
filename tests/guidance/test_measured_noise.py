import numpy as np
import pytest

import sde_onnx
from sde_onnx.generate.sample import steps_of
from sde_onnx.guidance.measured_noise import measured_noise, tell_measured_noise
from sde_onnx.solvers.noise import PortableNoise

from closed_forms import gaussian_score, last


def smooth_images(rng, count, size):
    ramps = np.linspace(0, 1, size)
    corners = rng.random((count, 3, 2))
    return corners[:, :, :1, None] * ramps[:, None] + corners[:, :, 1:, None] * ramps


# The estimate from n differences has a relative deviation of 1.17 / sqrt(n): images are large enough for all tolerances
# here to be ten times that.

@pytest.mark.parametrize("size", [256, 257])
def test_the_noise_of_smooth_images_is_measured(size, rng):
    sigma = np.array([0.02, 0.3, 5.0, 50.0])
    x = smooth_images(rng, 4, size) + sigma[:, None, None, None] * rng.standard_normal((4, 3, size, size))
    np.testing.assert_allclose(measured_noise(x), sigma, rtol=0.06)


def test_edges_are_not_noise(rng):
    x = np.zeros((1, 1, 256, 256))
    x[:, :, :133, 27:203] = 1
    x += 0.01 * rng.standard_normal(x.shape)
    assert measured_noise(x) == pytest.approx(0.01, rel=0.1)


def test_the_network_is_told_more_only_where_there_is_more(rng):
    asked = []

    def score(x, sigma):
        asked.append(sigma)
        return gaussian_score(x, sigma)

    x = np.float32([0.5, 2.0])[:, None, None, None] * rng.standard_normal((2, 1, 256, 256), np.float32)
    sigma = np.float32([0.5, 1.0])
    result = tell_measured_noise(score)(x, sigma)
    np.testing.assert_allclose(asked[0], [0.5, 2.0], rtol=0.1)
    assert asked[0][0] == sigma[0]
    denoised = x + (asked[0] ** 2)[:, None, None, None] * gaussian_score(x, asked[0])
    np.testing.assert_allclose(x + (sigma**2)[:, None, None, None] * result, denoised, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("solver", ["dpmpp-2m", "heun"])
def test_it_leaves_less_noise_on_digits(solver, digits):
    left = []
    for measure in (False, True):
        sampling = sde_onnx.resolve(digits.metadata, solver=solver, steps=12, options={"measure_noise": measure})
        noise = PortableNoise(range(32), digits.metadata.image_shape)
        left.append(np.median(measured_noise(last(steps_of(digits, noise, 32, sampling)).x_mean)))
    assert left[1] < 0.7 * left[0]

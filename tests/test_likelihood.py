"""Likelihoods, against the closed forms of Gaussian data and the original's recorded run."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import sde_onnx
from sde_onnx.checks import MOST_STEPS
from sde_onnx.errors import InputError
from sde_onnx.export import export, from_diffusers
from sde_onnx.export.gradient.model_file import export_gradient
from sde_onnx.likelihood import FIRST_DRAW, MOST_DRAWS, lowest_bits_per_dim
from sde_onnx.models import bundled_gradient
from sde_onnx.solvers.noise import portable_uniforms
from sde_onnx.solvers.schedule import VeSchedule

from networks import noisy_images

SCHEDULE = VeSchedule(0.01, 50.0)


class GaussianScore(nn.Module):
    """The exact score of data ``N(mean, Q diag(variances) Q^T)``."""

    def __init__(self, mean: float, variances: np.ndarray, basis: np.ndarray) -> None:
        super().__init__()
        self.mean = mean
        self.register_buffer("variances", torch.tensor(variances, dtype=torch.float32))
        self.register_buffer("basis", torch.tensor(basis, dtype=torch.float32))

    def forward(self, x, sigma):
        along = (x - self.mean).flatten(1) @ self.basis / (self.variances + sigma[:, None] ** 2)
        return -(along @ self.basis.T).reshape(x.shape)


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    """Returns a loaded gradient file of Gaussian data, by its name."""
    folder = tmp_path_factory.mktemp("gaussian")

    def made(name: str, mean: float, variances: np.ndarray, basis: np.ndarray, shape: tuple[int, int, int],
             schedule: VeSchedule = SCHEDULE):
        if not (folder / f"{name}-gradient.onnx").exists():
            export(GaussianScore(mean, variances, basis), folder / f"{name}.onnx", schedule=schedule, image_shape=shape,
                   predicts="score", data_range=(0, 1))
            export_gradient(folder / f"{name}.onnx", folder / f"{name}-gradient.onnx")
        return sde_onnx.load(folder / f"{name}-gradient.onnx", provider="cpu")

    return made


SHAPE = (1, 4, 6)
BASIS = np.linalg.qr(np.random.default_rng(5).standard_normal((24, 24)))[0]
VARIANCES = np.linspace(0.05, 0.4, 24) ** 2


def exact_bits(images: np.ndarray) -> np.ndarray:
    """Bits per dimension under ``N(0.4, Q diag(VARIANCES) Q^T + sigma_min^2)``."""
    variances = VARIANCES + SCHEDULE.sigma_min**2
    along = (images.reshape(len(images), -1).astype(np.float64) - 0.4) @ BASIS
    nats = -0.5 * (along**2 / variances + np.log(2 * np.pi * variances)).sum(1)
    return 8 - nats / math.log(2) / 24


@pytest.mark.parametrize("how", [{}, {"rtol": 1e-5}])
def test_the_closed_form_of_correlated_data_and_what_its_error_says(gaussian, how):
    model = gaussian("correlated", 0.4, VARIANCES, BASIS, SHAPE)
    rng = np.random.default_rng(7)
    spread = rng.standard_normal((20, 24)) * np.sqrt(VARIANCES + SCHEDULE.sigma_min**2)
    images = (0.4 + spread @ BASIS.T).reshape(20, *SHAPE).astype(np.float32)
    result = sde_onnx.log_likelihood(model, images, probes=32, **how)
    off = result.bits_per_dim - exact_bits(images)
    assert (np.abs(off) <= 2 * result.standard_error).sum() >= 18
    assert (result.standard_error > 0.01).all()   # the probes' doing, so the error is worth something
    assert abs(off.mean()) <= 2.5 * np.sqrt((result.standard_error**2).sum()) / 20
    np.testing.assert_allclose(result.log_density, (8 - result.bits_per_dim) * 24 * math.log(2))


@pytest.mark.parametrize("how", [{}, {"rtol": 1e-5}])
def test_data_that_signs_measure_without_chance(gaussian, how):
    # At sigma_max 50 the mean of 0.4, of which N(0, sigma_max^2) knows nothing, is worth up to 6e-3 bits/dim.
    model = gaussian("even", 0.4, np.full(24, 0.09), np.eye(24), SHAPE, VeSchedule(0.01, 1000.0))
    images = np.random.default_rng(3).normal(0.4, 0.3, (20, *SHAPE)).astype(np.float32)
    result = sde_onnx.log_likelihood(model, images, probes=2, **how)
    variance = 0.09 + SCHEDULE.sigma_min**2
    squares = ((images.astype(np.float64) - 0.4) ** 2).reshape(20, -1).mean(1)
    exact = 8 + 0.5 * (squares / variance + math.log(2 * math.pi * variance)) / math.log(2)
    np.testing.assert_allclose(result.bits_per_dim, exact, atol=1e-3)
    assert (result.standard_error < 1e-3).all()


def test_the_originals_recorded_run(gaussian, golden):
    recorded = np.load(golden / "score_sde" / "church_ncsnpp_continuous" / "samplers" / "analytic_gaussian.npz")
    deviation, shape = float(recorded["sd"]), recorded["data"].shape[1:]
    size = math.prod(shape)
    model = gaussian("recorded", float(recorded["mu"]), np.full(size, deviation**2), np.eye(size), shape)
    result = sde_onnx.log_likelihood(model, recorded["data"].astype(np.float32), probes=1)
    # The original's offset of 8 is right for data in [0, 1], as these are taken here.
    np.testing.assert_allclose(result.bits_per_dim, recorded["bpd_as_reported"], atol=1e-3)
    np.testing.assert_allclose(result.latents, recorded["latent"], atol=1e-3 * SCHEDULE.sigma_max)


@pytest.fixture(scope="module")
def digits_gradient() -> sde_onnx.ScoreModel:
    return sde_onnx.load(bundled_gradient(), provider="cpu")


@pytest.fixture(scope="module")
def pictures(digits) -> np.ndarray:
    return (sde_onnx.sample(digits, range(8), quality="fast") * 255).round().astype(np.uint8)


@pytest.mark.thorough
def test_all_unit_probes_together_are_the_trace(digits_gradient, digits_checkpoint, rng):
    network = from_diffusers(str(digits_checkpoint)).network
    x, sigma = noisy_images(rng, [0.3], (3, 16, 16))
    units = np.eye(768, dtype=np.float32).reshape(768, 3, 16, 16)
    products = np.concatenate([
        digits_gradient.vjp(np.repeat(x, 64, 0), np.repeat(sigma, 64), units[first : first + 64])[1]
        for first in range(0, 768, 64)])
    trace = np.trace(products.reshape(768, 768).astype(np.float64))
    sigmas = torch.from_numpy(sigma)
    jacobian = torch.autograd.functional.jacobian(lambda image: network(image, sigmas), torch.from_numpy(x))
    exact = np.trace(jacobian.reshape(768, 768).double().numpy())
    assert trace == pytest.approx(exact, rel=1e-5)


@pytest.mark.thorough
def test_an_image_has_one_likelihood_in_every_batch(digits_gradient, pictures):
    results = [sde_onnx.log_likelihood(digits_gradient, pictures, probes=1, steps=8, batch_size=size)
               for size in (1, 3, 8)]
    for result in results[1:]:
        np.testing.assert_allclose(result.bits_per_dim, results[0].bits_per_dim, atol=1e-4)
    again = sde_onnx.log_likelihood(digits_gradient, pictures[5:6], seeds=[5], probes=1, steps=8)
    np.testing.assert_allclose(again.bits_per_dim, results[0].bits_per_dim[5:6], atol=1e-4)


def test_what_dequantizations_and_probes_give(digits_gradient, pictures):
    with warnings.catch_warnings():
        warnings.simplefilter("error")   # numpy's, of a deviation of one number
        one = sde_onnx.log_likelihood(digits_gradient, pictures[:2], probes=1, steps=2)
    assert np.isnan(one.standard_error).all()
    assert one.latents.shape == (2, 3, 16, 16) and one.latents.dtype == np.float32
    assert one.evaluations.tolist() == [12, 12]
    several = sde_onnx.log_likelihood(digits_gradient, pictures[:2], probes=2, dequantizations=3, steps=2)
    assert (several.standard_error > 0).all() and several.evaluations.tolist() == [72, 72]
    # The first dequantization by hand, with its own probe: floats are taken as they are.
    within = portable_uniforms(np.arange(2, dtype=np.uint64), FIRST_DRAW, 768).reshape(2, 3, 16, 16)
    by_hand = ((pictures[:2] + within) / 256).astype(np.float32)
    fixed = sde_onnx.log_likelihood(digits_gradient, by_hand, probes=1, steps=2)
    np.testing.assert_allclose(fixed.bits_per_dim, one.bits_per_dim, atol=1e-4)


def test_floors():
    peak, noise = lowest_bits_per_dim(0.01)
    assert (round(peak, 2), round(noise, 2)) == (2.68, 3.40)
    assert noise - peak == pytest.approx(0.5 * math.log2(math.e))   # half a nat


REFUSED = {
    "a type": ({"images": np.zeros((1, 3, 16, 16))}, r"images is float64 \[1, 3, 16, 16\], expected uint8 or float32"),
    "a size": ({"images": np.zeros((1, 3, 8, 8), np.uint8)}, r"expected uint8 or float32 \[N, 3, 16, 16\]"),
    "no images": ({"images": np.zeros((0, 3, 16, 16), np.uint8)}, "no images: at least one"),
    "a list": ({"images": [[1]]}, "images is list, expected a numpy array"),
    "values of 8 bits as floats": ({"images": np.full((1, 3, 16, 16), 255, np.float32)},
                                   "images holds 255 to 255, expected values about"),
    "seeds": ({"seeds": [1, 2]}, "2 seeds for 1 image: give one for each image"),
    "probes": ({"probes": 0}, "probes is 0, expected a whole number of 1 to 10000"),
    "more probes than time": ({"probes": 10**10}, "probes is 10000000000, expected a whole number of 1 to 10000"),
    "more dequantizations": ({"dequantizations": 10**10}, "dequantizations is 10000000000, expected"),
    "a kind": ({"kind": "uniform"}, "kind 'uniform' is unknown, expected one of: rademacher, gaussian"),
    "dequantizations of floats": ({"images": np.zeros((1, 3, 16, 16), np.float32), "dequantizations": 2},
                                  "dequantizations are of 8-bit images"),
    "steps": ({"steps": 0}, "steps is 0, expected a whole number of 1 to 20000"),
    "steps and tolerances": ({"steps": 3, "rtol": 1e-3}, "steps and tolerances exclude each other"),
    "a tolerance": ({"rtol": 0.0}, "rtol is 0"),
    "labels": ({"labels": 3}, "has no labels: leave the label out"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=list(REFUSED))
def test_refused_by_a_line(digits_gradient, changes, message):
    given = {"images": np.zeros((1, 3, 16, 16), np.uint8)} | changes
    with pytest.raises(InputError, match=message) as caught:
        sde_onnx.log_likelihood(digits_gradient, **given)
    assert "\n" not in str(caught.value)


def test_a_file_without_gradient_is_refused(digits):
    with pytest.raises(InputError, match=r"digits.onnx has no gradient: `sde-onnx gradient .*digits.onnx -o FILE`"):
        sde_onnx.log_likelihood(digits, np.zeros((1, 3, 16, 16), np.uint8))


def test_its_noise_is_none_that_a_sampled_image_was_made_of():
    """An image of the same seed would be measured with the very noise that it came of."""
    draws_of_a_run = MOST_STEPS * (1 + 100)   # and 100 corrections a step, the most that may be asked for
    assert draws_of_a_run < FIRST_DRAW
    assert FIRST_DRAW + MOST_DRAWS * (1 + MOST_DRAWS) < 2**32   # the counter's word

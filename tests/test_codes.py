"""Codes: the closed form of Gaussian data, the order of round trips, arcs, and edits against the flow they run."""

from pathlib import Path

import numpy as np
import pytest

import sde_onnx
from sde_onnx.codes import decode, edit, encode, interpolate, spherical
from sde_onnx.errors import InputError, NonFiniteError
from sde_onnx.export import export, from_edm
from sde_onnx.solvers.noise import PortableNoise

from closed_forms import MEAN, STD, gaussian_score, mixture_score

SHAPE = (3, 16, 16)
# ONNX Runtime blocks its sums by the batch: float32 rounding, carried through the flow.
BATCH_ROUNDING = 1e-3


class ClosedForm:
    """A score that is known, as a model file."""

    loop_for, provider, path = None, "cpu", Path("closed form")

    def __init__(self, score, metadata):
        self.score, self.metadata = score, metadata

    def __call__(self, x, sigma):
        return self.score(x, sigma).astype(np.float32)

    def labels_for(self, label, images):
        return {}


@pytest.fixture
def gaussian(digits):
    return ClosedForm(gaussian_score, digits.metadata)


@pytest.fixture
def mixture(digits):
    return ClosedForm(mixture_score, digits.metadata)


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (3, *SHAPE), np.uint8)


def test_codes_of_gaussian_data_are_the_closed_form(gaussian, pictures):
    schedule = gaussian.metadata.schedule
    x = pictures.astype(np.float64) / 255
    wider = ((STD**2 + schedule.sigma_max**2) / (STD**2 + schedule.sigma_min**2)) ** 0.5
    latents = encode(gaussian, pictures, rtol=1e-7, atol=1e-7)
    assert (latents.dtype, latents.shape) == (np.float32, pictures.shape)
    np.testing.assert_allclose(latents, MEAN + (x - MEAN) * wider, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(encode(gaussian, x.astype(np.float32), steps=60), latents, rtol=1e-4, atol=1e-4)
    image = decode(gaussian, latents, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(image, x, atol=1e-5)
    weight = STD**2 / (STD**2 + schedule.sigma_min**2)
    np.testing.assert_allclose(decode(gaussian, latents, rtol=1e-7, atol=1e-7, denoise=True),
                               weight * image + (1 - weight) * MEAN, atol=1e-6)


def test_a_round_trip_returns_by_the_order_of_the_formula(mixture, rng):
    x = rng.random((2, *SHAPE), np.float32)

    def error(**how):
        return np.linalg.norm(decode(mixture, encode(mixture, x, **how), **how) - x) / x.size**0.5

    steps = (16, 20, 24, 28)   # more reach the rounding of float32
    order = -np.polyfit(np.log(steps), np.log([error(steps=count) for count in steps]), 1)[0]
    assert 4.7 < order < 6
    tolerances = (1e-2, 1e-3, 1e-4, 1e-5)
    errors = [error(rtol=tolerance, atol=tolerance) for tolerance in tolerances]
    # A step's error is as its tolerance, and its length as that to the power 1/5: together 4/5 to 1.
    assert 0.7 < np.polyfit(np.log(tolerances), np.log(errors), 1)[0] < 1.4, errors


@pytest.mark.thorough
def test_digits_return(digits):
    images = sde_onnx.images.to_uint8(sde_onnx.sample(digits, [1, 2])).transpose(0, 3, 1, 2)
    latents = {tolerance: encode(digits, images, rtol=tolerance, atol=tolerance) for tolerance in (1e-2, 1e-4)}
    errors = [np.sqrt(np.square(decode(digits, latent, rtol=tolerance, atol=tolerance) - images / 255).mean())
              for tolerance, latent in latents.items()]
    assert errors[1] < min(0.01, errors[0] / 4)
    assert latents[1e-4].std() == pytest.approx(digits.metadata.schedule.sigma_max, rel=0.1)
    alone = encode(digits, images[1:], rtol=1e-4, atol=1e-4)   # other batch, the same steps
    np.testing.assert_allclose(alone[0], latents[1e-4][1], atol=BATCH_ROUNDING * digits.metadata.schedule.sigma_max)


def test_batches_do_not_matter(mixture, pictures):
    together = encode(mixture, pictures)
    np.testing.assert_array_equal(encode(mixture, pictures, batch_size=2), together)
    np.testing.assert_array_equal(decode(mixture, together, batch_size=1), decode(mixture, together))


def test_an_arc_keeps_the_length_and_its_ends(rng):
    first, second = rng.standard_normal((2, *SHAPE), np.float32)
    arc = spherical(first, second, np.linspace(0, 1, 5))
    np.testing.assert_allclose(arc[[0, 4]], [first, second], atol=1e-5)
    other = second * np.float32(np.linalg.norm(first) / np.linalg.norm(second))   # then steps are even
    even = spherical(first, other, np.linspace(0, 1, 5))
    np.testing.assert_allclose(np.linalg.norm(even.reshape(5, -1), axis=1), np.linalg.norm(first), rtol=1e-5)
    angles = [np.vdot(even[index], even[index + 1]) for index in range(4)]
    np.testing.assert_allclose(angles, angles[0], rtol=1e-4)
    np.testing.assert_array_equal(spherical(first, first, np.array([0.3]))[0], first)
    for latent in rng.standard_normal((50, 3, 8, 8), np.float32):   # the cosine of some comes out beyond 1, or below -1
        np.testing.assert_allclose(spherical(latent, latent, np.array([0.5]))[0], latent, atol=1e-6)
        assert np.isfinite(spherical(latent, -latent, np.array([0.5]))).all()


def test_interpolation_goes_from_an_image_to_a_seed(gaussian, pictures):
    frames = interpolate(gaussian, pictures[0], 7, 4, rtol=1e-7, atol=1e-7)
    assert frames.shape == (4, *SHAPE)
    np.testing.assert_allclose(frames[0], pictures[0] / 255, atol=1e-5)
    latent = PortableNoise([7], SHAPE)() * np.float32(gaussian.metadata.schedule.sigma_max)
    np.testing.assert_allclose(frames[3], decode(gaussian, latent, rtol=1e-7, atol=1e-7)[0], atol=1e-5)
    ends = interpolate(gaussian, 7, 7, 2, rtol=1e-7, atol=1e-7)
    np.testing.assert_array_equal(ends[0], ends[1])


SHARE = STD**2 / (STD**2 + 0.5**2)   # of the variance at sigma 0.5


@pytest.mark.parametrize(("solver", "kept"), [
    ("ancestral", SHARE), ("adaptive-sde", SHARE), ("heun", SHARE**0.5), ("dpmpp-2m", SHARE**0.5), ("rk45", SHARE**0.5),
])
def test_an_edit_of_gaussian_data_keeps_what_the_closed_form_says(solver, kept, gaussian, pictures):
    """The mean over seeds: the posterior's under the reverse diffusion, the flow's under solvers without noise."""
    edited = edit(gaussian, pictures[:1].repeat(64, axis=0), range(64), sigma=0.5, solver=solver)
    assert (edited.dtype, edited.shape) == (np.float32, (64, *SHAPE))
    slope, _ = np.polyfit(pictures[0].ravel() / 255 - MEAN, edited.mean(axis=0).ravel(), 1)
    assert slope == pytest.approx(kept, rel=0.2)   # clipping takes some 12%


def test_a_small_sigma_changes_little_and_the_largest_is_sampling(digits):
    images = sde_onnx.sample(digits, [5, 6])
    little = edit(digits, images, [1, 2], 5, sigma=0.05)
    assert np.abs(little - images).mean() < 0.03
    much = edit(digits, images, [1, 2], 5, sigma=2.0)
    assert np.abs(much - images).mean() > 2 * np.abs(little - images).mean()
    sigma_max = digits.metadata.schedule.sigma_max
    anew = edit(digits, np.zeros_like(images), [1, 2], 5, sigma=sigma_max)
    np.testing.assert_allclose(anew, sde_onnx.sample(digits, [1, 2], 5), atol=BATCH_ROUNDING)


@pytest.mark.thorough
def test_labels_reach_the_network(golden, shared):
    path = shared("cifar10_cond_ve.onnx",
                  lambda path: export(from_edm(golden / "edm" / "cifar10_cond_ve" / "network.pkl"), path))
    model = sde_onnx.load(path, "cpu")
    images = np.full((2, *model.metadata.image_shape), 128, np.uint8)
    latents = {labels: encode(model, images, labels=labels, steps=3) for labels in (None, 2, (2, 7))}
    np.testing.assert_array_equal(latents[2, 7][0], latents[2][0])
    assert not np.allclose(latents[2, 7][1], latents[2][1], atol=1e-3)
    assert not np.allclose(latents[None], latents[2], atol=1e-3)
    for labels, message in (((1, 2, 3), "expected whole numbers"), (10, "out of range")):
        with pytest.raises(InputError, match=message):
            encode(model, images, labels=labels, steps=3)
    edited = [edit(model, images[:1], [3], 3, sigma=1.0, labels=label)[0] for label in (2, 7)]
    assert not np.allclose(*edited, atol=1e-3)


@pytest.mark.parametrize(("call", "message"), [
    (lambda model, x: encode(model, x[0]), r"uint8 \[3, 16, 16\], expected uint8 or float32 \[N, 3, 16, 16\]"),
    (lambda model, x: encode(model, x[:, :, :8]), "expected uint8 or float32"),
    (lambda model, x: encode(model, x / 255), "images is float64"),
    (lambda model, x: encode(model, x[:0]), "no images"),
    (lambda model, x: encode(model, x * np.float32(np.nan)), "images holds nan"),
    (lambda model, x: encode(model, x, steps=0), "steps is 0"),
    (lambda model, x: encode(model, x, rtol=0.0), "rtol is 0.0"),
    (lambda model, x: encode(model, x, batch_size=0), "batch_size is 0"),
    (lambda model, x: decode(model, x), r"latents is uint8 \[.*, expected float32"),
    (lambda model, x: interpolate(model, 0, 1, 1), "frames is 1"),
    (lambda model, x: interpolate(model, 0, 1, 10**10), "frames is 10000000000, expected a whole number of 2 to 10000"),
    (lambda model, x: interpolate(model, -1, 1, 2), "seed -1 does not fit"),
    (lambda model, x: edit(model, x, [1], sigma=1.0), "1 seed for 3 images"),
    (lambda model, x: edit(model, x, [1, 2, 3], sigma=1e4), "sigma is 10000, expected more than 0.01 and at most"),
    (lambda model, x: edit(model, x, [1, 2, 3], sigma=0.001), "sigma is 0.001, expected more than"),
    (lambda model, x: edit(model, x, [1, 2, 3], sigma=float("nan")), "sigma is nan"),
    (lambda model, x: edit(model, x, [1, 2, 3], sigma=1.0, churn=3.0), "option churn belongs to"),
])
def test_bad_arguments_are_refused(call, message, gaussian, pictures):
    with pytest.raises(InputError, match=message):
        call(gaussian, pictures)


def test_what_is_not_finite_is_told(digits, pictures):
    broken = ClosedForm(lambda x, sigma: x * np.float32(np.nan), digits.metadata)
    with pytest.raises(NonFiniteError, match="NaN or infinity at sigma 0.01"):
        encode(broken, pictures)

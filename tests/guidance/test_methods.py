"""Methods of restoration, against the closed forms of Gaussian data and recorded runs of the original."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sde_onnx import operators
from sde_onnx.errors import InputError
from sde_onnx.guidance.daps import conditioned, daps
from sde_onnx.guidance.dps import dps, drawn
from sde_onnx.guidance.measurement import Measurement
from sde_onnx.guidance.methods import METHODS, options_of
from sde_onnx.guidance.null_space import null_space
from sde_onnx.guidance.posterior import posterior
from sde_onnx.guidance.replacement import replacement, replacing
from sde_onnx.solvers.catalogue import resolve
from sde_onnx.solvers.noise import NumpyNoise
from sde_onnx.solvers.plan import run
from sde_onnx.solvers.predictor_corrector import plan as predictor_corrector_plan
from sde_onnx.solvers.schedule import VeSchedule

from closed_forms import last
from networks import score_sde_network, worst_relative_error

CORRELATION = 0.9
KNOWN = 1.2   # the value of the first coordinate, in standard deviations


@dataclass
class Gaussian:
    """Data ``N(mean, covariance)`` of images of a shape, with the exact score and its vector-Jacobian product."""

    mean: np.ndarray
    covariance: np.ndarray
    shape: tuple[int, int, int]

    schedule = VeSchedule(0.01, 20.0)

    @property
    def solver_options(self):
        return {"snr": 0.16, "n_corrector": 1}

    def _precision(self, sigma):
        return np.linalg.inv(self.covariance + sigma[0] ** 2 * np.eye(len(self.mean)))

    def __call__(self, x, sigma):
        return ((self.mean - x.reshape(len(x), -1)) @ self._precision(sigma)).reshape(x.shape)

    def vjp(self, x, sigma, v):
        return self(x, sigma), -(v.reshape(len(v), -1) @ self._precision(sigma)).reshape(v.shape)

    def posterior(self, operator, y, noise):
        """The exact mean and covariance of an image given its measurement ``[1, ...]``."""
        matrix = operator.A(np.eye(len(self.mean)).reshape(-1, *self.shape)).reshape(len(self.mean), -1).T
        seen = np.abs(matrix).sum(axis=1) > 0
        matrix, y = matrix[seen], y.ravel()[seen]
        gain = self.covariance @ matrix.T @ np.linalg.inv(matrix @ self.covariance @ matrix.T
                                                          + noise**2 * np.eye(len(matrix)))
        return self.mean + gain @ (y - matrix @ self.mean), self.covariance - gain @ matrix @ self.covariance


@pytest.fixture(scope="module")
def pair():
    """Two numbers, the first of them known."""
    return Gaussian(np.zeros(2), np.array([[1, CORRELATION], [CORRELATION, 1]]), (1, 1, 2))


def of_pair(count, noise=0.0):
    y = np.broadcast_to(np.array([KNOWN, 0.0]).reshape(1, 1, 1, 2), (count, 1, 1, 2))
    return Measurement(y, operators.mask([[1, 0]]), noise)


def moments_beside_the_exact(samples):
    """Bias and standard deviation of the unknown coordinate, in the exact posterior's standard deviation."""
    deviation = (1 - CORRELATION**2) ** 0.5
    return (samples.mean() - CORRELATION * KNOWN) / deviation, samples.std() / deviation


COUNT = 4000   # of centred noise: the bias has no sampling error, the ratio one of about 0.01


class CentredNoise(NumpyNoise):
    """Noise whose mean over the batch is 0 and whose deviation is 1: samples of a linear method have their own mean."""

    def __call__(self):
        z = super().__call__()
        return (z - z.mean(axis=0)) / z.std(axis=0)


@pytest.mark.thorough
def test_posterior_samples_gaussian_data_exactly(pair, rng):
    sampling = resolve(pair, solver="ancestral", steps=1000)
    score = posterior(pair, of_pair(COUNT), vjp=pair.vjp, iterations=1)
    samples = last(sampling.run(score, CentredNoise(rng, (COUNT, 1, 1, 2)))).x_mean
    np.testing.assert_allclose(samples[..., 0], KNOWN, atol=1e-3)
    bias, ratio = moments_beside_the_exact(samples[..., 1])
    print(f"posterior: bias {bias:.3f}, ratio {ratio:.3f}")
    assert abs(bias) < 0.02 and abs(ratio - 1) < 0.05


def test_null_space_is_the_approximation_that_it_is(pair, rng):
    """The design's figures, of a right implementation too: it does not know that what is missing goes with y."""
    sampling = resolve(pair, solver="ancestral", steps=1000)
    score, noise = null_space(pair, of_pair(COUNT), damping=1.0), CentredNoise(rng, (COUNT, 1, 1, 2))
    samples = last(sampling.run(score, noise)).x_mean
    bias, ratio = moments_beside_the_exact(samples[..., 1])
    print(f"null-space: bias {bias:.3f}, ratio {ratio:.3f}")
    assert bias == pytest.approx(-0.76, abs=0.05) and ratio == pytest.approx(1.36, abs=0.05)


def test_replacement_is_the_approximation_that_it_is(pair, rng):
    sampling = resolve(pair, solver="ancestral", steps=1000)
    noise = CentredNoise(rng, (COUNT, 1, 1, 2))
    samples = last(replacement(pair, noise, of_pair(COUNT), sampling=sampling)).x_mean
    np.testing.assert_allclose(samples[..., 0], KNOWN, atol=1e-6)
    bias, ratio = moments_beside_the_exact(samples[..., 1])
    print(f"replacement: bias {bias:.3f}, ratio {ratio:.3f}")
    assert bias == pytest.approx(-0.76, abs=0.05) and ratio == pytest.approx(1.27, abs=0.05)


@pytest.mark.parametrize("method", ["null-space", "posterior", "dps", "daps", "replacement"])
def test_every_method_agrees_with_an_exact_measurement(method, pair, rng):
    sampling = resolve(pair, steps=100)
    noise, measurement = NumpyNoise(rng, (500, 1, 1, 2)), of_pair(500)
    steps = {
        "null-space": lambda: sampling.run(null_space(pair, measurement, damping=1.0), noise),
        "posterior": lambda: sampling.run(posterior(pair, measurement, vjp=pair.vjp, iterations=2), noise),
        "dps": lambda: dps(pair, noise, measurement, sampling=sampling, vjp=pair.vjp, zeta=0.1),
        "daps": lambda: daps(pair, noise, measurement, sampling=sampling, ode_steps=4, spread=1.0),
        "replacement": lambda: replacement(pair, noise, measurement, sampling=sampling),
    }[method]()
    x_mean = last(steps).x_mean
    off = np.abs(x_mean[..., 0] - KNOWN)
    # dps is drawn to the measurement and never set to it. Without any, the mean would be above 1.
    assert off.mean() < 0.4 if method == "dps" else off.max() < 1e-3
    assert x_mean[..., 1].mean() > 0.3   # and the measurement tells of the rest


def small_field():
    """16 numbers, of which the means of four are measured, and a noise level."""
    data = field(4, 1.0)
    return data, operators.down(2), 0.7


def flat(x):
    return x.reshape(len(x), -1)


def test_null_space_damps_as_the_proximal_step_does(rng):
    data, operator, sigma = small_field()
    x, y, noise = rng.standard_normal((3, *data.shape)), rng.standard_normal((3, 1, 2, 2)), 0.3
    score = null_space(data, Measurement(y, operator, noise), damping=2.0)(x, np.full(3, sigma))
    denoised = x + sigma**2 * data(x, np.full(3, sigma))
    matrix = flat(operator.A(np.eye(16).reshape(16, *data.shape))).T
    rest = flat(y) - flat(denoised) @ matrix.T
    expected = flat(denoised) + rest @ np.linalg.solve(matrix @ matrix.T + 2 * noise**2 / sigma**2 * np.eye(4), matrix)
    np.testing.assert_allclose(flat(x + sigma**2 * score), expected, atol=1e-10)


def test_dps_goes_down_the_gradient_of_the_distance(rng):
    data, operator, sigma = small_field()
    x, y, zeta = rng.standard_normal((3, *data.shape)), rng.standard_normal((3, 1, 2, 2)), 0.4
    measurement = Measurement(y, operator, 0.0)

    def distance(x):
        return np.linalg.norm(flat(measurement.residual(x + sigma**2 * data(x, np.full(3, sigma)))), axis=1)

    gradient = np.zeros_like(x)
    for place in np.ndindex(data.shape):
        step = np.zeros(data.shape)
        step[place] = 1e-5
        gradient[(slice(None), *place)] = (distance(x + step) - distance(x - step)) / 2e-5
    moved, x_mean, _ = drawn(x, data(x, np.full(3, sigma)), None, (), sigma=sigma, measurement=measurement,
                             vjp=data.vjp, zeta=zeta, update=lambda x, score, z, memory: (x, x, memory))
    np.testing.assert_allclose(moved, x - zeta * gradient, atol=1e-7)
    np.testing.assert_array_equal(x_mean, x)


@pytest.mark.parametrize(("solver", "options"), [("pc", {}), ("pc", {"corrector": "ald", "n_corrector": 2}),
                                                 ("heun", {}), ("sde-dpmpp-2m", {})], ids=str)
def test_dps_moves_x_once_a_step(solver, options, pair, rng):
    """Not for a correction, and not for the guess of a step."""
    asked = []

    def vjp(x, sigma, v):
        asked.append(float(sigma[0]))
        return pair.vjp(x, sigma, v)

    sampling = resolve(pair, solver=solver, steps=6, options=options)
    steps = list(dps(pair, NumpyNoise(rng, (5, 1, 1, 2)), of_pair(5), sampling=sampling, vjp=vjp, zeta=0.1))
    assert len(steps) == len(asked) == 6


def test_dps_has_no_step_where_there_are_corrections_alone(pair, rng):
    """Their score is scaled, and not the one that the distance from y follows from."""
    sampling = resolve(pair, solver="pc", steps=3, options={"predictor": "none"})
    with pytest.raises(InputError, match="has corrections alone"):
        list(dps(pair, NumpyNoise(rng, (5, 1, 1, 2)), of_pair(5), sampling=sampling, vjp=pair.vjp, zeta=0.5))


def test_the_draw_of_daps_has_the_exact_mean_and_covariance(rng):
    data, operator, _ = small_field()
    count, deviation, noise = 20_000, 0.5, 0.2
    mean, y = rng.standard_normal((1, *data.shape)), rng.standard_normal((1, 1, 2, 2))
    measurement = Measurement(np.broadcast_to(y, (count, 1, 2, 2)), operator, noise)
    before = np.broadcast_to(mean, (count, *data.shape))
    found, samples = conditioned(before, deviation, measurement, NumpyNoise(rng, (count, *data.shape)))
    prior = Gaussian(mean.ravel(), deviation**2 * np.eye(16), data.shape)
    expected, covariance = prior.posterior(operator, y, noise)
    np.testing.assert_allclose(flat(found)[0], expected, atol=1e-10)
    np.testing.assert_allclose(flat(samples).mean(axis=0), expected, atol=5 * deviation / count**0.5)
    np.testing.assert_allclose(np.cov(flat(samples).T), covariance, atol=5 * deviation**2 * (2 / count) ** 0.5)


def field(size, reach):
    """A stationary Gaussian field of one channel around 0.5."""
    place = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2)
    squares = ((place[:, None] - place) ** 2).sum(-1)
    return Gaussian(np.full(size**2, 0.5), 0.09 * np.exp(-squares / (2 * reach**2)) + 1e-4 * np.eye(size**2),
                    (1, size, size))


@pytest.mark.parametrize("iterations", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_posterior_samples_a_field(iterations, rng):
    """16x16 with 70% of the pixels missing. One iteration is an approximation; its error is printed."""
    data, count, noise = field(16, 2.0), 200, 0.05
    operator = operators.random(0.7)
    truth = rng.multivariate_normal(data.mean, data.covariance).reshape(1, *data.shape)
    y = operator.A(truth + noise * rng.standard_normal(truth.shape))
    mean, covariance = data.posterior(operator, operator.A(y), noise)
    deviation = np.sqrt(np.diag(covariance))
    sampling = resolve(data, solver="sde-dpmpp-2m", steps=100, options={"eta": 1.0})
    measurement = Measurement(np.broadcast_to(y, (count, *data.shape)), operator, noise)
    score = posterior(data, measurement, vjp=data.vjp, iterations=iterations)
    samples = last(sampling.run(score, NumpyNoise(rng, (count, *data.shape)))).x_mean.reshape(count, -1)
    off = np.abs(samples.mean(axis=0) - mean) / (deviation / count**0.5)
    ratio = np.sqrt((samples.var(axis=0) / deviation**2).mean())
    print(f"{iterations} iterations: {np.mean(off < 3):.1%} of the means within 3 standard errors, the furthest "
          f"{off.max():.1f}; spread {ratio:.3f} of the exact")
    if iterations > 1:
        assert np.mean(off < 3) >= 0.99
        assert ratio == pytest.approx(1, abs=0.1)
    else:
        assert off.max() < 30 and ratio == pytest.approx(1, abs=0.5)


def original(golden, name):
    folder = golden / "score_sde" / "church_ncsnpp_continuous"
    network = score_sde_network(folder)

    def score(x, sigma):
        with torch.no_grad():
            return network(torch.tensor(x), torch.tensor(sigma)).numpy()

    recorded = np.load(folder / "samplers" / f"{name}.npz")
    ve = VeSchedule(0.01, 380.0, sampling_eps=float(recorded["eps"]))
    plan = predictor_corrector_plan(ve, int(recorded["N"]), snr=float(recorded["snr"]), n_corrector=1,
                                    langevin_norm="batch")
    return score, recorded, plan


def test_replacement_reproduces_the_originals_inpainting(golden):
    score, recorded, plan = original(golden, "inpaint")
    mask, data, noise = recorded["mask"], recorded["data"], recorded["noise"]
    known = Measurement(mask * data, operators.mask(mask[0]), 0.0)
    assert (mask == mask[0]).all()
    start = known.y + noise[0] * np.float32(plan.start[0]) * (1 - mask)
    drawn = iter([start / np.float32(plan.start[0]), *noise[1:]])
    told = [evaluation.sigma for evaluation in plan.evaluations]   # the fault: the level before
    step = last(run(replacing(plan, told, known, drawn.__next__), score, drawn.__next__))
    assert next(drawn, None) is None
    assert worst_relative_error(step.x, recorded["x_without_final_denoise"]) < 1e-4


def test_replacement_reproduces_the_originals_colorization(golden):
    score, recorded, plan = original(golden, "colorize")
    gray, noise = recorded["gray"], recorded["noise"]
    operator = operators.gray()
    known = Measurement(operator.A(gray), operator, 0.0)
    # The original draws in a rotated colour space, whose first axis is gray: the mean of the channels times sqrt(3).
    of_gray = [np.broadcast_to(z[:, :1] / np.float32(3**0.5), z.shape) for z in noise]
    colours = np.array([0, 1, 1], np.float32).reshape(1, 3, 1, 1)
    start = operator.pinv(known.y) + noise[0] * np.float32(plan.start[0]) * colours
    own, measured = iter([start / np.float32(plan.start[0]), *noise[1::2]]), iter(of_gray[2::2])
    told = [evaluation.sigma for evaluation in plan.evaluations]
    step = last(run(replacing(plan, told, known, measured.__next__), score, own.__next__))
    assert next(own, None) is None and next(measured, None) is None
    assert worst_relative_error(step.x, recorded["x_without_final_denoise"]) < 1e-4


def test_options_are_the_methods_own():
    assert options_of("posterior", {"rho": 5.0}) == ({"iterations": 2}, {"rho": 5.0})
    for method, options, said in (
        ("median", {}, "method 'median' is unknown, expected one of: null-space"),
        ("null-space", {"iterations": 3}, "option iterations belongs to posterior; method null-space has damping"),
        ("posterior", {"iterations": 0}, "iterations is 0, expected a whole number of at least 1"),
        ("dps", {"zeta": 0.0}, "zeta is 0.0, expected a number above 0"),
    ):
        with pytest.raises(InputError) as error:
            options_of(method, options)
        assert said in str(error.value)


def test_every_option_belongs_to_a_method():
    from sde_onnx.guidance.methods import METHOD_OPTIONS

    assert {name for method in METHODS.values() for name in method.options} == set(METHOD_OPTIONS)

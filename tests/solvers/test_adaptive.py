import numpy as np
import pytest
import torch

from sde_onnx.errors import NonFiniteError
from sde_onnx.solvers.adaptive import adaptive_sde, rk45
from sde_onnx.solvers.noise import NumpyNoise, PortableNoise
from sde_onnx.solvers.schedule import VeSchedule

from closed_forms import MEAN, STD, gaussian_score, last, mixture_score
from networks import score_sde_network, worst_relative_error

SCHEDULE = VeSchedule(0.05, 20.0)


@pytest.mark.thorough
def test_rk45_equals_score_sde(golden):
    """A recorded run of the original: its network, its latent, scipy's solver."""
    folder = golden / "score_sde" / "church_ncsnpp_continuous"
    recorded = np.load(folder / "samplers" / "ode_rk45.npz")
    network = score_sde_network(folder)

    def score(x, sigma):
        with torch.no_grad():
            return network(torch.tensor(x), torch.tensor(sigma)).numpy()

    schedule = VeSchedule(0.01, 380.0, sampling_eps=float(recorded["eps"]))
    latent = recorded["z"] / np.float32(schedule.sigma_max)
    step = last(rk45(score, iter([latent]).__next__, schedule, rtol=float(recorded["rtol"]),
                     atol=float(recorded["atol"])))
    assert worst_relative_error(step.x, recorded["result"]) < 1e-4
    assert step.nfe == recorded["nfe"] + 1   # the denoised image


def test_rk45_reaches_the_closed_form(rng):
    z = rng.standard_normal((2, 1, 4, 4))
    steps = list(rk45(gaussian_score, iter([z.astype(np.float32)]).__next__, SCHEDULE, rtol=1e-6, atol=1e-6))
    end = SCHEDULE.sigma_at(SCHEDULE.sampling_eps)
    expected = MEAN + (z * 20.0 - MEAN) * ((STD**2 + end**2) / (STD**2 + 400.0)) ** 0.5
    np.testing.assert_allclose(steps[-1].x, expected, atol=1e-4)
    np.testing.assert_allclose(steps[-1].x_mean, (expected * STD**2 + MEAN * end**2) / (STD**2 + end**2), atol=1e-4)
    assert [step.sigma for step in steps] == sorted((step.sigma for step in steps), reverse=True)


def algorithm_1(score, noise, schedule, rtol, atol):
    """Jolicoeur-Martineau et al. 2021, algorithm 1, for one image and as it is printed there."""
    n = noise[0].size
    # numpy's powers of an array and of a number differ in the last bit of float32, by 1e-5 at the end.
    sigma = lambda t: schedule.sigma_at(np.array([t]))   # noqa: E731
    g2 = lambda t: 2 * np.log(schedule.sigma_max / schedule.sigma_min) * sigma(t).astype(np.float64) ** 2   # noqa: E731
    s = lambda x, t: score(x[None], sigma(t))[0]   # noqa: E731
    x = x_prev = noise[0] * schedule.sigma_max
    t, h, draw = 1.0, 0.01, 0
    while t > schedule.sampling_eps + 1e-7:
        draw += 1
        z = noise[draw]
        x1 = x + h * g2(t) * s(x, t) + np.sqrt(h * g2(t)) * z
        x2 = x + h * g2(t - h) * s(x1, t - h) + np.sqrt(h * g2(t - h)) * z
        x2 = (x1 + x2) / 2
        delta = np.maximum(atol, rtol * np.maximum(abs(x1), abs(x_prev)))
        error = np.linalg.norm((x1 - x2) / delta) / np.sqrt(n)
        if error <= 1:
            x, x_prev, t = x2, x1, t - h
        h = min(t - schedule.sampling_eps, 0.9 * h * error**-0.9)
    end = schedule.sampling_eps
    return x + sigma(end) ** 2 * s(x, end), 2 * draw + 1


@pytest.mark.parametrize(("rtol", "atol"), [(0.02, 1 / 256), (0.1, 0.05)])
def test_adaptive_sde_is_the_papers_algorithm(rtol, atol, rng):
    noise = [*rng.standard_normal((400, 1, 8, 8))]
    expected, nfe = algorithm_1(mixture_score, noise, SCHEDULE, rtol, atol)
    draws = iter(noise)
    step = last(adaptive_sde(mixture_score, lambda: next(draws)[None], SCHEDULE, rtol=rtol, atol=atol))
    assert step.nfe == nfe
    np.testing.assert_allclose(step.x_mean[0], expected, rtol=0, atol=1e-7)


def test_adaptive_sde_takes_fewer_steps_if_more_error_is_allowed(rng):
    counts = [last(adaptive_sde(mixture_score, NumpyNoise(rng, (4, 1, 16, 16)), SCHEDULE, rtol=rtol)).nfe
              for rtol in (0.01, 0.05, 0.5)]
    assert counts[0] > 1.5 * counts[1] > 2 * counts[2]


def test_adaptive_sde_gives_gaussian_data_their_mean_and_variance(rng):
    step = last(adaptive_sde(gaussian_score, NumpyNoise(rng, (64, 1, 64, 64)), SCHEDULE))
    assert step.x_mean.dtype == np.float32
    std = STD**2 / (STD**2 + SCHEDULE.sigma_min**2) ** 0.5   # the data's, less what sigma_min blurs
    assert step.x_mean.mean() == pytest.approx(MEAN, abs=0.002)
    assert step.x_mean.std() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("kind", ["mixture", "digits"])
def test_adaptive_sde_takes_each_image_for_itself(kind, digits):
    """Beside other images, which take other steps and end at other times."""
    score = digits if kind == "digits" else mixture_score

    def run(seeds):
        return last(adaptive_sde(score, PortableNoise(seeds, (3, 16, 16)), SCHEDULE, rtol=0.1, atol=0.02)).x_mean

    together = run([1, 2, 3])
    for index, seed in enumerate([1, 2, 3]):
        np.testing.assert_allclose(run([seed])[0], together[index], atol=1e-3)


def test_adaptive_sde_stops_where_no_step_is_short_enough(rng):
    """A score that jumps at every place, so that no step is like the one before."""
    def noisy_score(x, sigma):
        return gaussian_score(x, sigma) + 1e4 * rng.standard_normal(x.shape)

    with pytest.raises(NonFiniteError, match="found no step at sigma"):
        last(adaptive_sde(noisy_score, NumpyNoise(rng, (1, 1, 4, 4)), SCHEDULE))
    with pytest.raises(NonFiniteError, match=r"NaN or infinity at step 1 of 1 \(sigma 20\)"):
        last(adaptive_sde(lambda x, sigma: x * np.nan, NumpyNoise(rng, (1, 1, 4, 4)), SCHEDULE))


@pytest.mark.parametrize("solver", [rk45, adaptive_sde])
@pytest.mark.parametrize("bad", [np.nan, 1e38])
def test_scores_without_bound_end_the_run(solver, bad, rng):
    with pytest.raises(NonFiniteError):
        last(solver(lambda x, sigma: x * np.float32(bad), NumpyNoise(rng, (1, 1, 4, 4)), SCHEDULE))


def test_tolerances_that_no_step_keeps_end_the_run(rng):
    with pytest.raises(NonFiniteError, match="found no step"):
        last(adaptive_sde(mixture_score, NumpyNoise(rng, (1, 1, 4, 4)), SCHEDULE, rtol=1e-30, atol=1e-30))

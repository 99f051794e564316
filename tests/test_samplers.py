import numpy as np
import pytest
import torch
from diffusers import ScoreSdeVeScheduler
from diffusers.utils.torch_utils import randn_tensor
from networks import relative_error, score_sde_network

from sde_onnx.errors import InputError, NonFiniteError
from sde_onnx.noise import NumpyNoise, PortableNoise, TorchNoise
from sde_onnx.samplers import predictor_corrector
from sde_onnx.schedule import VeSchedule

SCHEDULE = VeSchedule(0.01, 20.0)
MEAN, STD = 0.4, 0.2


def gaussian_score(x, sigma):
    """The exact score of data ``N(MEAN, STD^2)``: ``(MEAN - x) / (STD^2 + sigma^2)``."""
    return (MEAN - x) / (STD**2 + sigma[:, None, None, None] ** 2)


def last(steps):
    *_, step = steps
    return step


@pytest.mark.parametrize("n_corrector", [0, 1])
def test_gaussian_data_have_the_right_mean_and_variance(n_corrector, rng):
    images, size = 64, 256
    noise = NumpyNoise(rng, (images, 1, 16, 16))
    steps = predictor_corrector(gaussian_score, noise, SCHEDULE, 1000, snr=0.16, n_corrector=n_corrector)
    x = last(steps).x_mean
    count = images * size
    # The initial latent has no MEAN in it (it is N(0, sigma_max^2)), which costs MEAN (STD / sigma_max)^2 at most;
    # the discretization's own error at 1000 steps is of first order: 1% of the standard deviation.
    assert x.mean() == pytest.approx(MEAN, abs=5 * STD / count**0.5 + 1e-3)
    assert x.std() == pytest.approx(STD, abs=5 * STD / (2 * count) ** 0.5 + 0.01 * STD)


def test_the_loop_equals_diffusers_on_a_closed_form_score(rng):
    """diffusers' scheduler driven as its pipeline drives it, with the same generator, on the same score."""
    shape, n = (3, 3, 8, 8), 50
    scheduler = ScoreSdeVeScheduler(snr=0.16, sigma_min=0.01, sigma_max=20.0, correct_steps=2)
    scheduler.set_timesteps(n)
    scheduler.set_sigmas(n)
    generator = torch.Generator().manual_seed(11)
    x = randn_tensor(shape, generator=generator) * scheduler.init_noise_sigma
    trajectory = []
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=True):
        told = sigma * torch.ones(shape[0])
        for _ in range(2):
            x = scheduler.step_correct(gaussian_score(x, told), x, generator=generator).prev_sample
        output = scheduler.step_pred(gaussian_score(x, told), t, x, generator=generator)
        x = output.prev_sample
        trajectory.append((x, output.prev_sample_mean))

    noise = TorchNoise([torch.Generator().manual_seed(11)], shape)
    steps = list(predictor_corrector(gaussian_score, noise, SCHEDULE, n, snr=0.16, n_corrector=2,
                                     langevin_norm="batch"))
    assert [step.nfe for step in steps] == [3 * (index + 1) for index in range(n)]
    for step, (expected, expected_mean) in zip(steps, trajectory, strict=True):
        tolerance = 1e-5 * step.sigma + 1e-5
        np.testing.assert_allclose(step.x, expected, atol=tolerance)
        np.testing.assert_allclose(step.x_mean, expected_mean, atol=tolerance)


def test_the_loop_equals_score_sde(golden):
    """A recorded run of the original: its network, its noise, ten steps."""
    folder = golden / "score_sde" / "church_ncsnpp_continuous"
    recorded = np.load(folder / "samplers" / "pc_reverse_diffusion_langevin.npz")
    network = score_sde_network(folder)

    def score(x, sigma):
        with torch.no_grad():
            return network(torch.tensor(x), torch.tensor(sigma)).numpy()

    schedule = VeSchedule(0.01, 380.0, sampling_eps=float(recorded["eps"]))
    steps = list(predictor_corrector(score, iter(recorded["noise"]).__next__, schedule, int(recorded["N"]),
                                     snr=float(recorded["snr"]), langevin_norm="batch"))
    after_predictor = recorded["x_after_each_update"][1::2]
    for step, expected in zip(steps, after_predictor, strict=True):
        assert relative_error(step.x, expected) < 1e-5   # ten steps' worth of rounding
    assert relative_error(steps[-1].x_mean, recorded["result"]) < 1e-5


def test_the_loop_runs_on_torch_tensors_too():
    source = PortableNoise([1, 2], (3, 8, 8))
    expected = last(predictor_corrector(gaussian_score, source, SCHEDULE, 20, snr=0.16)).x_mean
    source = PortableNoise([1, 2], (3, 8, 8))
    steps = predictor_corrector(gaussian_score, lambda: torch.tensor(source()), SCHEDULE, 20, snr=0.16)
    np.testing.assert_allclose(last(steps).x_mean, expected, atol=1e-5)


def test_a_step_is_computed_only_when_it_is_asked_for():
    asked = []

    def score(x, sigma):
        asked.append(float(sigma[0]))
        return gaussian_score(x, sigma)

    steps = predictor_corrector(score, PortableNoise([0], (1, 4, 4)), SCHEDULE, 1000, snr=0.16)
    next(steps)
    assert asked == [pytest.approx(20.0)] * 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_values_stop_the_run_where_they_appear(value):
    def score(x, sigma):
        result = gaussian_score(x, sigma)
        if sigma[0] < 1:
            result[0, 0, 0, 0] = value
        return result

    steps = predictor_corrector(score, PortableNoise([0, 1], (1, 4, 4)), SCHEDULE, 10, snr=0.16)
    with pytest.raises(NonFiniteError, match=r"at step 5 of 10 \(sigma 0.6822\)"):
        list(steps)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"steps": 0}, "steps is 0"),
    ({"snr": 0.0}, "snr is 0.0"),
    ({"snr": float("nan")}, "snr is nan"),
    ({"n_corrector": -1}, "n_corrector is -1"),
    ({"langevin_norm": "none"}, "langevin_norm is 'none'"),
])
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(InputError, match=message):
        predictor_corrector(gaussian_score, PortableNoise([0], (1, 4, 4)), SCHEDULE,
                            **{"steps": 10, "snr": 0.16, **arguments})

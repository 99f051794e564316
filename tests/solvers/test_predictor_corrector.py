import numpy as np
import pytest
import torch
from diffusers import ScoreSdeVeScheduler
from diffusers.utils.torch_utils import randn_tensor

from sde_onnx.errors import InputError, NonFiniteError
from sde_onnx.solvers import predictor_corrector as pc
from sde_onnx.solvers.noise import NumpyNoise, PortableNoise, TorchNoise
from sde_onnx.solvers.plan import langevin_step_size, run
from sde_onnx.solvers.schedule import VeSchedule

from closed_forms import MEAN, STD, gaussian_score, last
from networks import score_sde_network, worst_relative_error

SCHEDULE = VeSchedule(0.01, 20.0)
ROUNDING = 1e-5   # of single float32 values after a handful of operations


def predictor_corrector(score, noise, schedule, steps, **options):
    return run(pc.plan(schedule, steps, **options), score, noise)


def gaussian_moments(steps, snr, n_corrector):
    """Mean and standard deviation of ``x_mean`` in closed form: for a Gaussian every step is affine in x.

    A Langevin step of size eps turns a variance V into ``V (1 - eps / v)^2 + 2 eps`` where the score is that of
    variance v; |z| / |g| is taken at its mean, which many pixels come close to.
    """
    mean, variance = 0.0, SCHEDULE.sigma_max**2
    for level in SCHEDULE.levels(steps):
        told = STD**2 + float(level.sigma_cond) ** 2
        for _ in range(n_corrector):
            step_size = 2 * (snr * told) ** 2 / (variance + (mean - MEAN) ** 2)
            mean += step_size * (MEAN - mean) / told
            variance = variance * (1 - step_size / told) ** 2 + 2 * step_size
        drop = float(level.sigma) ** 2 - float(level.sigma_next) ** 2
        mean += drop * (MEAN - mean) / told
        denoised = variance * (1 - drop / told) ** 2
        variance = denoised + drop
    return mean, denoised**0.5


@pytest.mark.thorough
@pytest.mark.parametrize("n_corrector", [0, 1, pytest.param(2, marks=pytest.mark.thorough)])
def test_gaussian_data_have_the_right_mean_and_variance(n_corrector, rng):
    steps, snr, shape = 400, 0.16, (64, 1, 64, 64)
    noise = NumpyNoise(rng, shape)
    x = last(predictor_corrector(gaussian_score, noise, SCHEDULE, steps, snr=snr, n_corrector=n_corrector)).x_mean
    mean, std = gaussian_moments(steps, snr, n_corrector)
    count = np.prod(shape)
    # Within five standard errors of what the steps give in closed form ...
    assert x.mean() == pytest.approx(mean, abs=5 * std / count**0.5)
    assert x.std() == pytest.approx(std, abs=5 * std / (2 * count) ** 0.5)
    # ... which is that of the data but for the corrector's own bias, 1 + snr^2 in the variance, and the first order
    # error of the predictor.
    assert mean == pytest.approx(MEAN, abs=1e-3)
    assert std == pytest.approx(STD * (1 + snr**2 * (n_corrector > 0)) ** 0.5, rel=0.012)


def test_the_loop_equals_diffusers_on_a_closed_form_score(rng):
    """diffusers' scheduler driven as its pipeline drives it, with the same generator, on the same score."""
    seed = int(rng.integers(2**31))
    shape, n = (3, 3, 8, 8), 50
    scheduler = ScoreSdeVeScheduler(snr=0.16, sigma_min=0.01, sigma_max=20.0, correct_steps=2)
    scheduler.set_timesteps(n)
    scheduler.set_sigmas(n)
    generator = torch.Generator().manual_seed(seed)
    x = randn_tensor(shape, generator=generator) * scheduler.init_noise_sigma
    trajectory = []
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=True):
        told = sigma * torch.ones(shape[0])
        for _ in range(2):
            x = scheduler.step_correct(gaussian_score(x, told), x, generator=generator).prev_sample
        output = scheduler.step_pred(gaussian_score(x, told), t, x, generator=generator)
        x = output.prev_sample
        trajectory.append((x, output.prev_sample_mean))

    noise = TorchNoise([torch.Generator().manual_seed(seed)], shape)
    steps = list(predictor_corrector(gaussian_score, noise, SCHEDULE, n, snr=0.16, n_corrector=2,
                                     langevin_norm="batch"))
    assert [step.nfe for step in steps] == [3 * (index + 1) for index in range(n)]
    for step, (expected, expected_mean) in zip(steps, trajectory, strict=True):
        tolerance = 1e-5 * step.sigma + 1e-5
        np.testing.assert_allclose(step.x, expected, atol=tolerance)
        np.testing.assert_allclose(step.x_mean, expected_mean, atol=tolerance)


@pytest.mark.parametrize(("predictor", "corrector"), [
    ("reverse_diffusion", "langevin"), ("reverse_diffusion", "ald"), ("ancestral", "none"), ("euler_maruyama", "none"),
    ("none", "langevin"),
])
def test_the_loop_equals_score_sde(predictor, corrector, golden):
    """Recorded runs of the original: its network, its noise, ten steps."""
    folder = golden / "score_sde" / "church_ncsnpp_continuous"
    name = "ancestral_sampling" if predictor == "ancestral" else predictor
    recorded = np.load(folder / "samplers" / f"pc_{name}_{corrector}.npz")
    network = score_sde_network(folder)

    def score(x, sigma):
        with torch.no_grad():
            return network(torch.tensor(x), torch.tensor(sigma)).numpy()

    drawn = iter(recorded["noise"])
    schedule = VeSchedule(0.01, 380.0, sampling_eps=float(recorded["eps"]))
    steps = list(predictor_corrector(score, drawn.__next__, schedule, int(recorded["N"]), snr=float(recorded["snr"]),
                                     predictor=predictor, corrector=corrector, langevin_norm="batch"))
    assert next(drawn, None) is None   # all the noise, and in its order
    after_predictor = recorded["x_after_each_update"][1::2]
    for step, expected in zip(steps, after_predictor, strict=True):
        assert worst_relative_error(step.x, expected) < 1e-5   # ten steps' worth of rounding
    assert worst_relative_error(steps[-1].x_mean, recorded["result"]) < 1e-5
    assert steps[-1].nfe == 10 * ((predictor != "none") + (corrector != "none"))


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "euler_maruyama", "ancestral"])
def test_probability_flow_carries_a_latent_to_its_place_in_the_data(predictor, rng):
    """For Gaussian data the ODE's solution is known: x - mean shrinks with the standard deviation of x."""
    z = rng.standard_normal((4, 1, 8, 8), np.float32)
    draws = iter([z])   # no other noise is drawn
    start = (SCHEDULE.sigma_max**2 + STD**2) ** 0.5
    step = last(predictor_corrector(gaussian_score, draws.__next__, SCHEDULE, 2000, snr=0.16, predictor=predictor,
                                    corrector="none", probability_flow=True))
    expected = MEAN + (z * SCHEDULE.sigma_max - MEAN) * STD / start
    np.testing.assert_allclose(step.x, expected, atol=0.04 * STD)   # first order, at 4 deviations
    np.testing.assert_array_equal(step.x, step.x_mean)


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


def test_with_neither_a_predictor_nor_a_corrector_nothing_happens():
    for options in ({"corrector": "none"}, {"n_corrector": 0}):
        with pytest.raises(InputError, match="neither a predictor nor a corrector"):
            pc.plan(SCHEDULE, 10, snr=0.16, predictor="none", **options)


def langevin(x, score, noise, **options):
    step_size = langevin_step_size(score, noise, **options)
    return pc.annealed_correction(x, score, noise, (), step_size=step_size)[0]


def reverse_diffusion(x, score, noise, *, sigma, sigma_next):
    variance = sigma**2 - sigma_next**2
    return pc.prediction(x, score, noise, (), variance=variance, std=variance**0.5)[:2]


@pytest.fixture
def scheduler():
    scheduler = ScoreSdeVeScheduler(snr=0.15, sigma_min=0.01, sigma_max=50.0)
    scheduler.set_timesteps(20)
    scheduler.set_sigmas(20)
    return scheduler


def drawn(seed, shape):
    """The noise that a diffusers scheduler draws from a generator with this seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()


@pytest.mark.parametrize("batch", [1, 4])
def test_langevin_step_equals_diffusers(batch, scheduler, rng):
    x, score = rng.standard_normal((2, batch, 3, 8, 8), np.float32)
    expected = scheduler.step_correct(
        torch.tensor(score), torch.tensor(x), generator=torch.Generator().manual_seed(3)
    ).prev_sample
    for norm in ["batch"] if batch > 1 else ["batch", "image"]:
        got = langevin(x, score, drawn(3, x.shape), snr=0.15, norm=norm)
        np.testing.assert_allclose(got, expected, rtol=ROUNDING, atol=ROUNDING)


def test_langevin_step_of_an_image_ignores_its_batch_mates(rng):
    x, score, noise = rng.standard_normal((3, 4, 3, 8, 8), np.float32)
    score *= np.array([1, 10, 0.1, 3], np.float32)[:, None, None, None]
    together = langevin(x, score, noise, snr=0.2)
    for index in range(4):
        one = slice(index, index + 1)
        np.testing.assert_array_equal(langevin(x[one], score[one], noise[one], snr=0.2), together[one])
    assert not np.allclose(langevin(x, score, noise, snr=0.2, norm="batch"), together)


@pytest.mark.parametrize("index", [0, 7, 19])
def test_reverse_diffusion_step_equals_diffusers(index, scheduler, rng):
    x, score = rng.standard_normal((2, 4, 3, 8, 8), np.float32)
    expected = scheduler.step_pred(
        torch.tensor(score), scheduler.timesteps[index], torch.tensor(x), generator=torch.Generator().manual_seed(3)
    )
    level = list(VeSchedule(0.01, 50.0).levels(20))[index]
    got, got_mean = reverse_diffusion(
        x, score, drawn(3, x.shape), sigma=level.sigma, sigma_next=level.sigma_next
    )
    np.testing.assert_allclose(got, expected.prev_sample, rtol=ROUNDING, atol=ROUNDING * 50)
    np.testing.assert_allclose(got_mean, expected.prev_sample_mean, rtol=ROUNDING, atol=ROUNDING * 50)


@pytest.mark.parametrize("norm", ["image", "batch"])
def test_updates_run_on_torch_tensors_too(norm, rng):
    x, score, noise = arrays = rng.standard_normal((3, 2, 3, 8, 8), np.float32)
    tensors = [torch.tensor(array) for array in arrays]
    np.testing.assert_allclose(
        langevin(*tensors, snr=0.2, norm=norm), langevin(x, score, noise, snr=0.2, norm=norm),
        rtol=ROUNDING, atol=ROUNDING,
    )
    for got, expected in zip(reverse_diffusion(*tensors, sigma=0.5, sigma_next=0.25),
                             reverse_diffusion(x, score, noise, sigma=0.5, sigma_next=0.25), strict=True):
        assert isinstance(got, torch.Tensor)
        np.testing.assert_allclose(got, expected, rtol=ROUNDING, atol=ROUNDING)

import numpy as np
import pytest
import torch
from diffusers import ScoreSdeVeScheduler

from sde_onnx.schedule import VeSchedule
from sde_onnx.steps import langevin_step, langevin_step_size, prediction_step

ROUNDING = 1e-5   # of single float32 values after a handful of operations


def langevin(x, score, noise, **options):
    return langevin_step(x, score, noise, step_size=langevin_step_size(score, noise, **options))


def reverse_diffusion(x, score, noise, *, sigma, sigma_next):
    variance = sigma**2 - sigma_next**2
    return prediction_step(x, score, noise, variance=variance, std=variance**0.5)


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
def test_steps_run_on_torch_tensors_too(norm, rng):
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

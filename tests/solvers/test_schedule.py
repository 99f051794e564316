import numpy as np
import pytest
import torch
from diffusers import ScoreSdeVeScheduler

from sde_onnx.errors import ConfigError, InputError
from sde_onnx.solvers.schedule import VeSchedule

ROUNDING = 2e-6   # torch and numpy round their powers and exponentials apart, by a few float32 units


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 77, 1000, 2000])
def test_levels_are_those_of_diffusers(steps):
    scheduler = ScoreSdeVeScheduler(snr=0.15, sigma_min=0.01, sigma_max=348.0, sampling_eps=1e-5)
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    levels = list(VeSchedule(0.01, 348.0).levels(steps))
    assert len(levels) == steps
    for level, t, sigma_cond in zip(levels, scheduler.timesteps, scheduler.sigmas, strict=True):
        # diffusers finds its place in the grid from the time, by truncation
        index = (t * torch.ones(1) * (steps - 1)).long()
        np.testing.assert_allclose(level.sigma_cond, sigma_cond, rtol=ROUNDING)
        np.testing.assert_allclose(level.sigma, scheduler.discrete_sigmas[index][0], rtol=ROUNDING)
        np.testing.assert_allclose(level.sigma_next, scheduler.get_adjacent_sigma(index, t)[0], rtol=ROUNDING)
    assert levels[-1].sigma_next == 0


def test_levels_are_float32():
    assert {value.dtype for level in VeSchedule(0.01, 20.0).levels(5) for value in level} == {np.dtype(np.float32)}


@pytest.mark.parametrize("values", [
    {"sigma_min": 0.0, "sigma_max": 1.0},
    {"sigma_min": 2.0, "sigma_max": 1.0},
    {"sigma_min": float("nan"), "sigma_max": 1.0},
    {"sigma_min": 0.1, "sigma_max": float("inf")},
    {"sigma_min": 0.1, "sigma_max": 1.0, "num_scales": 0},
    {"sigma_min": 0.1, "sigma_max": 1.0, "sampling_eps": 1.0},
])
def test_impossible_schedules_are_refused(values):
    with pytest.raises(ConfigError, match="expected|needed"):
        VeSchedule(**values)


def test_whole_numbers_are_floats():
    schedule = VeSchedule(sigma_min=1, sigma_max=50)
    assert (type(schedule.sigma_min), type(schedule.sigma_max)) == (float, float)


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="steps is 0, expected a whole number of 1"):
        VeSchedule(0.01, 20.0).levels(0)

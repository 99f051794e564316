"""Restarts: the way that they go, and what they leave of Gaussian data."""

from itertools import pairwise

import numpy as np
import pytest

from sde_onnx.errors import InputError
from sde_onnx.solvers import multistep, restart
from sde_onnx.solvers.catalogue import resolve
from sde_onnx.solvers.noise import NumpyNoise
from sde_onnx.solvers.plan import denoised, run
from sde_onnx.solvers.schedule import VeSchedule

from closed_forms import MEAN, STD, gaussian_score, last, mixture_score

SCHEDULE = VeSchedule(0.05, 20.0)
SPACING = {"schedule": "karras", "rho": 7.0}
RESTARTS = {"restarts": 3, "restart_steps": 2, "restart_min": 0.2, "restart_max": 1.5}


class Model:
    schedule, solver_options = SCHEDULE, {}


def test_the_way_goes_down_and_up_and_down_again():
    steps = restart.way(SCHEDULE, 16, *SPACING.values(), *RESTARTS.values())
    assert len(steps) == 16
    sigmas = SCHEDULE.karras(10)
    low = sigmas[np.abs(np.log(np.array(sigmas[:-1]) / 0.2)).argmin()]
    assert [sigma for sigma, _ in steps].count(1.5) == 3
    assert [end for _, end in steps].count(low) == 4
    raised = [(end, start) for (_, end), (start, _) in pairwise(steps) if start != end]
    assert raised == [(low, 1.5)] * 3
    outside = [step for step in steps if step in list(pairwise(sigmas))]   # the way without them is whole
    assert outside == list(pairwise(sigmas))


def test_without_restarts_it_is_the_solver_itself(rng):
    none = RESTARTS | {"restarts": 0}
    seed = int(rng.integers(2**31))
    pictures = [last(run(plan, mixture_score, NumpyNoise(np.random.default_rng(seed), (2, 1, 8, 8)))).x
                for plan in (restart.multistep_plan(SCHEDULE, 12, **SPACING, **none, order=2, eta=0.7),
                             multistep.plan(SCHEDULE, 12, **SPACING, order=2, eta=0.7))]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize(("steps", "count"), [(2, 0), (5, 0), (11, 0), (12, 1), (25, 2), (50, 4), (100, 8)])
def test_as_many_restarts_as_a_third_of_the_steps_allows(steps, count):
    plan = resolve(Model, solver="restart", steps=steps).plan
    sigmas = [float(evaluation.sigma) for evaluation in plan.evaluations]
    assert len(sigmas) == steps
    assert sigmas.count(pytest.approx(0.15)) == plan.restarts == count


def test_a_restart_may_be_one_step():
    plan = resolve(Model, solver="restart", options={"restart_steps": 1}).plan
    sigmas = [float(evaluation.sigma) for evaluation in plan.evaluations]
    assert (len(sigmas), sigmas.count(0.15)) == (25, 8)


def test_wherever_it_begins_it_has_a_plan():
    """Below restart_max the restarts begin where the way does: of several starts all are the same number."""
    for sigma in np.arange(0.0101, 0.2, 1e-4):
        model = type("Below", (Model,), {"schedule": VeSchedule(0.01, float(sigma))})
        assert resolve(model, solver="restart").evaluations == 25


@pytest.mark.parametrize("schedule", [VeSchedule(0.2, 20.0), VeSchedule(0.01, 0.1)], ids=["above", "below"])
def test_a_model_of_other_noise_levels_restarts_as_far_as_they_go(schedule):
    plan = restart.multistep_plan(schedule, 25, **SPACING, restarts=None, restart_steps=4, restart_min=0.03,
                                  restart_max=0.15, order=2, eta=1.0)
    sigmas = [float(evaluation.sigma) for evaluation in plan.evaluations]
    assert len(sigmas) == 25
    assert max(sigmas) == pytest.approx(schedule.sigma_max)
    assert sum(after > before for before, after in pairwise(sigmas)) == (0 if schedule.sigma_min > 0.15 else 2)


@pytest.mark.parametrize("make", [
    lambda: restart.multistep_plan(SCHEDULE, 200, schedule="geometric", rho=7.0, order=2, eta=0.0,
                                   **RESTARTS | {"restart_steps": 40}),
    lambda: restart.multistep_plan(SCHEDULE, 200, schedule="geometric", rho=7.0, order=2, eta=1.0,
                                   **RESTARTS | {"restart_steps": 40}),
    lambda: restart.heun_plan(SCHEDULE, 200, schedule="geometric", rho=7.0, **RESTARTS | {"restart_steps": 40}),
], ids=["dpm", "dpm with noise", "heun"])
def test_gaussian_data_have_the_right_mean_and_variance(make, rng):
    x = last(run(make(), gaussian_score, NumpyNoise(rng, (64, 1, 64, 64)))).x
    assert x.std() == pytest.approx(STD**2 / (STD**2 + SCHEDULE.sigma_min**2) ** 0.5, rel=0.01)
    assert x.mean() == pytest.approx(MEAN, abs=0.02)   # what an ODE keeps of the latent's own mean: STD / sigma_max


def test_the_noise_that_is_put_in_is_what_lies_between_the_levels(rng):
    """The multistep solver draws once for its own noise and the restart's; both are in x."""
    plan = restart.multistep_plan(SCHEDULE, 16, **SPACING, **RESTARTS, order=2, eta=1.0)
    turn = next(index for index, (before, after) in enumerate(pairwise(plan.levels)) if after > before)
    x = np.zeros((4, 1, 128, 128))

    def score(x, sigma):
        return -x / sigma[:, None, None, None] ** 2   # of data that are all 0: D is 0

    evaluation = plan.evaluations[turn]
    assert not denoised(x, score(x, np.full(4, evaluation.sigma)), evaluation.sigma).any()
    # x of noise std sigma becomes x of noise std 1.5: what was scaled down, what the step draws, what the restart adds.
    start = evaluation.sigma * rng.standard_normal(x.shape)
    noise = rng.standard_normal(x.shape)
    raised, _, _ = evaluation.update(start, score(start, np.full(4, evaluation.sigma)), noise, ())
    assert raised.std() == pytest.approx(1.5, rel=0.01)


@pytest.mark.parametrize(("options", "message"), [
    ({"restart_max": 0.03}, "restart_max is 0.03, expected more than restart_min, 0.03"),
    ({"restart_max": 0.04, "restarts": 1}, "restart_max is 0.04, expected more than the last noise level, 0.05"),
    ({"restarts": 12}, "expected a whole number of 50 to 20000 for solver restart with these restarts"),
    ({"restarts": 1.5}, "restarts is 1.5, expected a whole number"),
    ({"restart_steps": 0}, "restart_steps is 0"),
])
def test_restarts_that_go_nowhere_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        resolve(Model, solver="restart", options=options)

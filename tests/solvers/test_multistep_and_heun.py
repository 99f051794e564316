import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from scipy.integrate import solve_ivp

from sde_onnx.errors import InputError
from sde_onnx.solvers import heun, multistep
from sde_onnx.solvers.noise import NumpyNoise, TorchNoise
from sde_onnx.solvers.plan import run, run_evaluations
from sde_onnx.solvers.schedule import VeSchedule

from closed_forms import MEAN, STD, gaussian_score, last, mixture_score

SCHEDULE = VeSchedule(0.05, 20.0)
WIDE = VeSchedule(0.05, 2000.0)   # D hardly moves in the first steps, which are of a lower order than the others


@pytest.fixture(scope="module")
def flow():
    """A latent, and where the probability-flow ODE takes it at sigma_min, to 1e-12."""
    z = np.random.default_rng(0).standard_normal((2, 1, 4, 4))

    def slope(sigma, x):
        return -sigma * mixture_score(x.reshape(z.shape), np.full(2, sigma)).ravel()

    ends = WIDE.sigma_max, WIDE.sigma_min
    solution = solve_ivp(slope, ends, (z * ends[0]).ravel(), "DOP853", rtol=1e-12, atol=1e-12)
    return z, solution.y[:, -1].reshape(z.shape)


@pytest.mark.parametrize(("solver", "options", "order"), [
    (multistep, {"order": 1, "eta": 0}, 1), (multistep, {"order": 2, "eta": 0}, 2),
    (multistep, {"order": 3, "eta": 0}, 3), (heun, {}, 2),
], ids=["dpm 1", "dpm 2", "dpm 3", "heun"])
def test_the_order_is_what_it_says(solver, options, order, flow):
    z, expected = flow   # float64: the order shows below float32's rounding
    errors = []
    for count in (250, 500, 1000):
        plan = solver.plan(WIDE, count + 1, schedule="geometric", **options)
        *_, before_last, _ = run(plan, mixture_score, iter([z]).__next__)
        errors.append(np.linalg.norm(before_last.x - expected))   # the last step denoises
    np.testing.assert_allclose(-np.diff(np.log2(errors)), order, atol=0.2)


@pytest.mark.parametrize(("solver", "options"), [
    (multistep, {"order": 2, "eta": 1.0}), (multistep, {"order": 3, "eta": 0.5}),
    (multistep, {"order": 2, "eta": 0}),
    (heun, {"churn": 40.0}), (heun, {}),
])
def test_gaussian_data_have_the_right_mean_and_variance(solver, options, rng):
    shape = (128, 1, 64, 64)   # the mean is within 0.002 at almost five standard errors
    x = last(run(solver.plan(SCHEDULE, 200, schedule="geometric", **options), gaussian_score, NumpyNoise(rng, shape))).x
    assert x.dtype == np.float32
    # The denoised image of the last step has the data's deviation, less what sigma_min blurs.
    std = STD**2 / (STD**2 + SCHEDULE.sigma_min**2) ** 0.5
    # Without noise the latent's own mean of 0 stays, in the measure of the deviations.
    kept = 0 if options.get("eta") or options.get("churn") else STD / SCHEDULE.sigma_max
    assert x.mean() == pytest.approx(MEAN * (1 - kept), abs=0.002)
    assert x.std() == pytest.approx(std, rel=0.01)


@pytest.mark.parametrize(("order", "algorithm", "eta"), [(2, "dpmsolver++", 0), (1, "dpmsolver++", 0),
                                                         (1, "sde-dpmsolver++", 1)])
def test_steps_are_those_of_diffusers(order, algorithm, eta, rng):
    """Its scheduler, told the model output that means our denoised image, with the same noise."""
    count = 12
    scheduler = EDMDPMSolverMultistepScheduler(sigma_min=0.05, sigma_max=20.0, rho=7.0, solver_order=order,
                                               algorithm_type=algorithm, final_sigmas_type="zero",
                                               lower_order_final=False, solver_type="heun")
    scheduler.set_timesteps(count)
    np.testing.assert_allclose(scheduler.sigmas, SCHEDULE.karras(count), rtol=1e-5)
    shape, generator = (2, 3, 8, 8), torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator) * 20.0
    for index, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[index]
        denoised = x + sigma**2 * gaussian_score(x, sigma * torch.ones(2))
        data = scheduler.config.sigma_data
        skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
        x = scheduler.step((denoised - skip * x) / out, t, x, generator=generator).prev_sample
    noise = TorchNoise([torch.Generator().manual_seed(1)], shape)
    result = last(run(multistep.plan(SCHEDULE, count, order=order, eta=eta), gaussian_score, noise))
    np.testing.assert_allclose(result.x, x, atol=2e-4)


def test_evaluations_are_counted():
    asked = []

    def score(x, sigma):
        asked.append(sigma)
        return gaussian_score(x, sigma)

    for plan, expected in ((multistep.plan(SCHEDULE, 10, order=2, eta=1.0), 10), (heun.plan(SCHEDULE, 10), 19)):
        asked.clear()
        step = last(run(plan, score, NumpyNoise(np.random.default_rng(0), (1, 1, 2, 2))))
        assert step.nfe == len(asked) == expected


def test_schedules_fall_from_the_largest_sigma_to_zero():
    geometric = SCHEDULE.spaced(5, "geometric", 7.0)
    for sigmas in (geometric, SCHEDULE.karras(5)):
        assert len(sigmas) == 6
        assert sigmas[0] == pytest.approx(20.0)
        assert sigmas[-2:] == [pytest.approx(0.05), 0]
    ratios = np.divide(geometric[1:-1], geometric[:-2])
    np.testing.assert_allclose(ratios, ratios[0])
    np.testing.assert_allclose(np.diff(np.power(SCHEDULE.karras(5)[:-1], 1 / 7)), (0.05 ** (1 / 7) - 20 ** (1 / 7)) / 4)


def test_in_the_middle_of_a_step_the_image_is_the_denoised_one(rng):
    noise = NumpyNoise(rng, (1, 1, 4, 4))
    images = [x_mean for _, _, x_mean in run_evaluations(heun.plan(SCHEDULE, 6, churn=10.0), gaussian_score,
                                                         noise)]
    for guess, step in zip(images[:-1:2], images[1::2], strict=True):
        np.testing.assert_array_equal(guess, step)


@pytest.mark.parametrize("sigma_max", [10.0, 348.0, 1378.0])
def test_the_ends_are_the_models_own_numbers(sigma_max):
    """Powers and roots round them, and what begins at sigma_max would not."""
    ve = VeSchedule(0.01, sigma_max)
    for schedule in ("karras", "geometric"):
        sigmas = ve.spaced(10, schedule, 7.0)
        assert (sigmas[0], sigmas[-2]) == (sigma_max, 0.01)
    churned = heun.plan(ve, 10, churn=40, churn_min=0.01, churn_max=sigma_max)
    raised = [level / sigma for level, sigma in zip(churned.levels, ve.karras(10)[:-1], strict=True)]
    assert raised == [pytest.approx(2**0.5)] * 10


@pytest.mark.parametrize(("call", "message"), [
    (lambda: SCHEDULE.spaced(1, "geometric", 7.0), "steps is 1, expected a whole number of 2"),
    (lambda: SCHEDULE.karras(5, rho=0.5), "rho is 0.5, expected a number of 1 to 1000"),
    (lambda: SCHEDULE.karras(5, rho=1e14), "rho is 100000000000000.0, expected a number of 1 to 1000"),
    (lambda: SCHEDULE.spaced(5, "Karras", 7.0), "schedule is 'Karras', expected one of: karras, geometric"),
    (lambda: VeSchedule(1.0, 1.0 + 1e-15).karras(100), "100 noise levels of .*: two are the same number"),
])
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()

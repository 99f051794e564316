"""Each image's own steps: against exact solutions, scipy on one image, and the order of the formula."""

import math

import numpy as np
import pytest
from scipy.integrate import RK45

from sde_onnx.errors import InputError, NonFiniteError
from sde_onnx.solvers.flow import integrate_each, probability_flow

from closed_forms import MEAN, STD, gaussian_score, last, mixture_score

SHAPE = (1, 4, 4)
LOW, HIGH = math.log(0.05), math.log(20.0)


def wave(u, y):
    """A slope that bends, and differently in each row: ``y' = cos(u) y``, so ``y = y0 exp(sin u - sin u0)``."""
    return np.cos(u)[:, None] * y


def mixture_slope(u, y):
    """The flow of the mixture, its score in float64: rounded as scipy's solver rounds."""
    sigma = np.exp(u)
    return -(sigma**2)[:, None] * mixture_score(y[:, :, None, None], sigma)[:, :, 0, 0]


def gaussian_flow(x, start, end):
    """The exact flow of Gaussian data."""
    return MEAN + (x - MEAN) * math.sqrt((STD**2 + math.exp(2 * end)) / (STD**2 + math.exp(2 * start)))


@pytest.mark.parametrize(("start", "end"), [(0.0, 5.0), (5.0, -1.0)])
def test_steps_keep_the_tolerance(start, end, rng):
    y = rng.standard_normal((3, 10))
    expected = y * math.exp(math.sin(end) - math.sin(start))
    errors = [abs(last(integrate_each(wave, y, start, end, rtol=tolerance, atol=tolerance)).y - expected).max()
              for tolerance in (1e-4, 1e-6, 1e-8, 1e-10)]
    for error, tolerance in zip(errors, (1e-4, 1e-6, 1e-8, 1e-10), strict=True):
        assert error < 100 * tolerance   # errors of some ten steps, grown by up to e^2 on the way


def test_equal_steps_have_order_five(rng):
    y = rng.standard_normal((2, 5))
    expected = y * math.exp(math.sin(3.0))
    errors = [abs(last(integrate_each(wave, y, 0.0, 3.0, steps=steps)).y - expected).max() for steps in (10, 20, 40)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert all(4.6 < order < 5.6 for order in orders), orders
    assert last(integrate_each(wave, y, 0.0, 3.0, steps=7)).nfe.tolist() == [42, 42]


@pytest.mark.parametrize(("start", "end"), [(LOW, HIGH), (HIGH, LOW)])
def test_one_image_takes_the_steps_of_scipy(start, end, rng):
    y = rng.standard_normal((1, 16)) * math.exp(start) + MEAN
    solver = RK45(lambda u, x: mixture_slope(np.array([u]), x[None])[0], start, y[0], end, rtol=1e-4, atol=1e-5)
    states = list(integrate_each(mixture_slope, y, start, end, rtol=1e-4, atol=1e-5))
    while solver.status == "running":
        solver.step()
    assert states[-1].nfe == solver.nfev
    np.testing.assert_allclose(states[-1].y[0], solver.y, rtol=1e-10, atol=1e-12)   # some lie near 0


def test_the_first_step_from_zeros_is_that_of_scipy():
    """There it has no size of y to go by."""
    solver = RK45(lambda u, y: np.cos(u) + y, 0.0, np.zeros(3), 2.0, rtol=1e-4, atol=1e-5)
    solver.step()
    states = integrate_each(lambda u, y: np.cos(u)[:, None] + y, np.zeros((1, 3)), 0.0, 2.0, rtol=1e-4, atol=1e-5)
    next(states)
    assert next(states).u == pytest.approx([solver.t], rel=1e-9)


def test_an_image_does_not_depend_on_its_batch(rng):
    y = rng.standard_normal((4, 16)) * [[1e-3], [1], [20], [400]]
    slope = probability_flow(mixture_score, SHAPE)
    together = last(integrate_each(slope, y, HIGH, LOW))
    assert len(set(together.nfe)) > 1
    for index in range(4):
        alone = last(integrate_each(slope, y[index : index + 1], HIGH, LOW))
        np.testing.assert_array_equal(alone.y[0], together.y[index])
        assert alone.nfe == together.nfe[index]


@pytest.mark.parametrize(("start", "end"), [(LOW, HIGH), (HIGH, LOW)])
@pytest.mark.parametrize("how", [{"rtol": 1e-7, "atol": 1e-7}, {"steps": 60}])
def test_the_flow_of_gaussian_data_is_the_closed_form(start, end, how, rng):
    x = rng.standard_normal((2, 16)) * math.hypot(STD, math.exp(start)) + MEAN
    states = list(integrate_each(probability_flow(gaussian_score, SHAPE), x, start, end, **how))
    np.testing.assert_allclose(states[-1].y, gaussian_flow(x, start, end), rtol=1e-5, atol=2e-6)   # float32 scores
    np.testing.assert_array_equal(states[0].y, x)
    for state in states:   # on the way too
        for row, u in enumerate(state.u):
            np.testing.assert_allclose(state.y[row], gaussian_flow(x[row], start, u), rtol=1e-5, atol=2e-6)


def test_no_way_is_no_step(rng):
    y = rng.standard_normal((2, 3))
    state = last(integrate_each(wave, y, 1.0, 1.0))
    np.testing.assert_array_equal(state.y, y)


@pytest.mark.parametrize("how", [{}, {"steps": 3}])
@pytest.mark.parametrize("bad", [np.nan, 1e38])
def test_slopes_without_bound_end_the_run(how, bad, rng):
    slope = probability_flow(lambda x, sigma: x * np.float32(bad), SHAPE)
    with pytest.raises(NonFiniteError, match="NaN or infinity at sigma|no step at sigma"):
        last(integrate_each(slope, rng.standard_normal((2, 16)), HIGH, LOW, **how))


def test_tolerances_that_no_step_keeps_end_the_run(rng):
    def noisy(u, y):
        return 1e6 * rng.standard_normal(y.shape)

    with pytest.raises(NonFiniteError, match="no step at sigma .* keeps rtol 1e-10 and atol 1e-10"):
        last(integrate_each(noisy, np.zeros((2, 3)), 0.0, 1.0, rtol=1e-10, atol=1e-10))


@pytest.mark.parametrize(("how", "message"), [
    ({"steps": 0}, "steps is 0"), ({"rtol": 0.0}, "rtol is 0.0"), ({"atol": -1.0}, "atol is -1.0"),
    ({"rtol": math.nan}, "rtol is nan"),
])
def test_bad_arguments_are_refused_at_once(how, message):
    with pytest.raises(InputError, match=message):
        integrate_each(wave, np.zeros((1, 1)), 0.0, 1.0, **how)

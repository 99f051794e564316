"""A plan as numbers against the same plan run, for every solver on a fresh score."""

from itertools import pairwise

import numpy as np
import pytest

from sde_onnx.solvers.catalogue import SOLVERS, Sampling
from sde_onnx.solvers.noise import NumpyNoise
from sde_onnx.solvers.plan import (
    COLUMNS,
    MEMORY,
    RESULTS,
    TERMS,
    langevin_step_size,
    rows,
    run_evaluations,
    sigma_of_each,
)
from sde_onnx.solvers.schedule import VeSchedule

from closed_forms import mixture_score

STEPS = 13
SCHEDULE = VeSchedule(0.05, 20.0, num_scales=STEPS)
OWN = {"snr": 0.16, "n_corrector": 2}
PLANNED = [name for name, solver in SOLVERS.items() if solver.steps is not None]


def plan_of(solver, **options):
    complete = {name: OWN.get(name, default) for name, default in SOLVERS[solver].options.items()}
    return Sampling(solver, STEPS, complete | options, SCHEDULE).plan


@pytest.mark.parametrize(("solver", "options"), [
    *((name, {}) for name in PLANNED), ("pc", {"corrector": "ald"}), ("pc", {"langevin_norm": "batch"}),
    ("pc", {"probability_flow": True}), ("stochastic-heun", {"churn_min": 0.1, "churn_max": 5.0}),
])
def test_rows_do_what_the_updates_do(solver, options, rng):
    """Driven by its rows alone, as a device drives it, a run gives every state of the updates."""
    plan, shape, seed = plan_of(solver, **options), (3, 1, 5, 5), int(rng.integers(2**31))
    table = rows(plan).astype(np.float64)
    drawn = NumpyNoise(np.random.default_rng(seed), shape)
    x = sum(deviation * drawn() for deviation in plan.start).astype(np.float64)
    memory = [np.zeros(shape)] * MEMORY
    draws = len(plan.start)
    expected = run_evaluations(plan, mixture_score, NumpyNoise(np.random.default_rng(seed), shape))
    for row, (evaluation, wanted_x, wanted_mean) in zip(table, expected, strict=True):
        entry = dict(zip(COLUMNS, row, strict=True))
        score, z = mixture_score(x, np.full(len(x), entry["sigma"])), np.zeros(shape)
        if entry["draw"] >= 0:
            assert entry["draw"] == draws   # counted, one after another
            z, draws = drawn().astype(np.float64), draws + 1
        if entry["snr"] > 0:
            size = langevin_step_size(score, z, snr=entry["snr"], norm="batch" if entry["batch_norm"] else "image")
            score, z = size * score, (2 * size) ** 0.5 * z
        terms = (x, score, *memory, z)
        x, x_mean, *memory = (sum(entry[result, term] * value for term, value in zip(TERMS, terms, strict=True))
                              for result in RESULTS)
        assert evaluation.draws == (entry["draw"] >= 0)
        for got, wanted in ((x, wanted_x), (x_mean, wanted_mean)):
            np.testing.assert_allclose(got, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("solver", PLANNED)
def test_every_step_ends_once_and_in_order(solver):
    plan = plan_of(solver)
    assert [item.ends for item in plan.evaluations if item.ends is not None] == list(range(STEPS))
    assert len(plan.levels) == STEPS
    if "restarts" not in SOLVERS[solver].options:   # tests/solvers/test_restart.py
        assert all(before > after for before, after in pairwise(plan.levels))


def test_an_images_noise_level_does_not_depend_on_its_values():
    sigma = sigma_of_each(np.zeros((2, 3, 4, 4), np.float32), 0.5)
    assert sigma.dtype == np.float32
    np.testing.assert_array_equal(sigma, [0.5, 0.5])

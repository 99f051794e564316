"""A request, resolved: complete, checked, and a value."""

import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest

import sde_onnx
from sde_onnx.errors import InputError, MissingExtraError
from sde_onnx.solvers.catalogue import QUALITIES, SOLVERS, resolve
from sde_onnx.solvers.options import OPTIONS
from sde_onnx.solvers.plan import Plan


@pytest.fixture(scope="module")
def metadata():
    return sde_onnx.read_metadata(sde_onnx.bundled_model())


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_option_has_a_value(solver, metadata):
    sampling = resolve(metadata, solver=solver)
    assert list(sampling.options) == list(SOLVERS[solver].options)
    for name, value in sampling.options.items():
        assert OPTIONS[name].checked(name, value) == value
    assert resolve(metadata, solver=solver, options=sampling.options) == sampling   # what is typed changes nothing


@pytest.mark.parametrize(("solver", "steps", "evaluations"), [
    ("pc", 10, 20), ("sde-dpmpp-2m", None, 25), ("ancestral", None, 50), ("heun", None, 35), ("stochastic-heun", 4, 7),
    ("rk45", None, None), ("adaptive-sde", None, None),
])
def test_evaluations_are_known_beforehand(solver, steps, evaluations, metadata):
    assert resolve(metadata, solver=solver, steps=steps).evaluations == evaluations


def test_what_is_left_to_the_model_is_the_models(metadata):
    sampling = resolve(metadata, quality="reference")
    assert (sampling.solver, sampling.steps) == ("pc", metadata.schedule.num_scales)
    assert (sampling.options["snr"], sampling.options["n_corrector"]) == (metadata.snr, metadata.n_corrector)


def test_nothing_asked_for_is_the_default_quality(metadata):
    assert resolve(metadata) == resolve(metadata, quality="balanced") == resolve(metadata, steps=25)
    fast = resolve(metadata, quality="fast", options={"rho": 5})
    assert (fast.steps, fast.options["eta"], fast.options["rho"]) == (QUALITIES["fast"][1], 1.0, 5.0)


def test_a_request_says_what_it_needs(metadata):
    assert resolve(metadata, solver="pc", options={"langevin_norm": "batch"}).depends_on_batch
    assert resolve(metadata, solver="rk45").depends_on_batch
    for corrector in ("none", "ald"):   # which have no norms
        options = {"langevin_norm": "batch", "corrector": corrector}
        assert not resolve(metadata, solver="pc", options=options).depends_on_batch
    assert not any(resolve(metadata, solver=solver).depends_on_batch for solver in SOLVERS if solver != "rk45")
    assert resolve(metadata, solver="heun", options={"measure_noise": True}).wrappers == ("measured-noise",)
    assert not any(resolve(metadata, solver=solver).wrappers for solver in SOLVERS)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_request_is_a_value(solver, metadata):
    sampling = resolve(metadata, solver=solver)
    copy = pickle.loads(pickle.dumps(sampling))
    assert copy == sampling
    assert str(copy) == str(sampling)
    assert isinstance(copy.plan, Plan | None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampling.steps = 3


@pytest.mark.parametrize(("asked", "message"), [
    ({"solver": "euler"}, "solver 'euler' is unknown, expected one of: pc, ancestral"),
    ({"quality": "best"}, "quality 'best' is unknown, expected one of: fast, balanced, fine, reference"),
    ({"quality": "fast", "steps": 3}, "a quality chooses the solver and its steps"),
    ({"quality": "fast", "solver": "pc"}, "fast has solver sde-dpmpp-2m, 12 steps, eta 1.0: leave out solver"),
    ({"quality": "balanced", "steps": 3}, "balanced has solver restart, 25 steps: leave out solver and steps"),
    ({"solver": "heun", "options": {"n_corrector": 2}}, r"option n_corrector \(--corrector-steps\) belongs to pc"),
    ({"solver": "rk45", "steps": 3}, "rk45 chooses its steps by its tolerances"),
    ({"solver": "pc", "steps": 0}, "steps is 0, expected a whole number of 1 to 20000 for solver pc"),
    ({"steps": 1}, "steps is 1, expected a whole number of 2 to 20000 for solver restart"),
    ({"solver": "dpmpp-3m", "steps": 2}, "steps is 2, expected a whole number of 3 to 20000 for solver dpmpp-3m"),
    ({"steps": 10**9}, "steps is 1000000000, expected a whole number of 2 to 20000"),
    ({"steps": 2.5}, "steps is 2.5, expected a whole number"),
    ({"options": {"snr": 0.1}}, "option snr belongs to pc; solver restart has schedule, rho, eta"),
    ({"options": {"magic": 1}}, "option magic is unknown"),
    ({"options": {"eta": -1}}, "eta is -1, expected a number of at least 0"),
    ({"options": {"eta": float("nan")}}, "eta is nan, expected a number"),
    ({"options": {"eta": "1"}}, "eta is '1', expected a number"),
    ({"options": {"rho": 0.5}}, "rho is 0.5, expected a number of 1 to 1000"),
    ({"options": {"schedule": "linear"}}, "schedule is 'linear', expected one of: karras, geometric"),
    ({"solver": "stochastic-heun", "options": {"churn": float("inf")}}, "churn is inf, expected a number"),
    ({"solver": "heun", "options": {"measure_noise": 1}}, "measure_noise is 1, expected true or false"),
    ({"solver": "rk45", "options": {"rtol": 0}}, "rtol is 0, expected a number above 0"),
    ({"solver": "pc", "options": {"snr": 0.0}}, "snr is 0.0, expected a number above 0"),
    ({"solver": "pc", "options": {"snr": True}}, "snr is True, expected a number"),
    ({"solver": "pc", "options": {"n_corrector": -1}}, "n_corrector is -1, expected a whole number of 0 to 100"),
    ({"solver": "pc", "options": {"n_corrector": 1.5}}, "n_corrector is 1.5, expected a whole number"),
    ({"solver": "pc", "options": {"predictor": "euler"}}, "predictor is 'euler', expected one of: reverse_diffusion"),
    ({"solver": "pc", "options": {"corrector": "mala"}}, "corrector is 'mala', expected one of: langevin, ald, none"),
    ({"solver": "pc", "options": {"langevin_norm": "none"}}, "langevin_norm is 'none', expected one of: image, batch"),
    ({"solver": "pc", "options": {"predictor": "none", "n_corrector": 0}}, "neither a predictor nor a corrector"),
], ids=str)
def test_what_cannot_be_is_refused_at_once(asked, message, metadata):
    with pytest.raises(InputError, match=message) as caught:
        resolve(metadata, **asked)
    assert "\n" not in str(caught.value)


def test_numpys_numbers_are_numbers(metadata):
    sampling = resolve(metadata, steps=np.int64(12), options={"eta": np.float32(0.5)})
    assert (sampling.steps, sampling.options["eta"]) == (12, 0.5)
    assert (type(sampling.steps), type(sampling.options["eta"])) == (int, float)


def test_a_package_that_is_missing_is_named_before_anything_runs(metadata, monkeypatch):
    monkeypatch.setattr("sde_onnx.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sde-onnx\[ode\]'"):
        resolve(metadata, solver="rk45")


def test_the_tables_need_no_numpy():
    code = "import sys, sde_onnx.solvers.catalogue; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

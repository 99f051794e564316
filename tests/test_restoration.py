"""Restoration with the bundled digits."""

import numpy as np
import pytest

import sde_onnx
from sde_onnx import operators
from sde_onnx.errors import InputError
from sde_onnx.guidance.measuring import ROUNDING, degrade
from sde_onnx.guidance.methods import METHODS
from sde_onnx.images import psnr
from sde_onnx.operators.given import operator_for
from sde_onnx.restoration import resolve_restoration

SHAPE = (3, 16, 16)
BOX = "box:5,5,6,6"
EXACT = 2e-3   # float32, and pixels that are sampled with values outside [0, 1]
REACHED = {"posterior": 0.02, "dps": 0.2}   # with two iterations, and by steps towards the measurement


@pytest.fixture(scope="module")
def gradient():
    return sde_onnx.load(sde_onnx.bundled_gradient(), "cpu")


@pytest.fixture(scope="module")
def clean(digits):
    return sde_onnx.sample(digits, range(100, 104))


@pytest.mark.parametrize("method", [pytest.param(method, marks=[pytest.mark.thorough] if method == "dps" else [])
                                    for method in METHODS])
def test_a_hole_is_filled(method, digits, gradient, clean):
    """With what was there, or nearly: much better than by the mean of what is known."""
    operator = operator_for(BOX, SHAPE)
    y = operator.A(clean)
    needs = {"gradient": gradient} if METHODS[method].needs_gradient else {}
    solver = {"solver": "ancestral", "steps": 100} if method in ("replacement", "dps") else {}
    restored = sde_onnx.restore(digits, y, BOX, range(4), method=method, **needs, **solver)
    assert restored.shape == clean.shape and restored.dtype == np.float32
    known = operator.A(np.ones_like(clean)) > 0
    np.testing.assert_allclose(restored[known], clean[known], atol=REACHED.get(method, EXACT))
    mean = (y.sum(axis=(2, 3)) / known.sum(axis=(2, 3)))[:, :, None, None]
    gain = psnr(restored, clean) - psnr(np.where(known, y, mean), clean)
    print(method, psnr(restored, clean), gain)
    assert gain.mean() > 4


def test_an_image_does_not_depend_on_its_batch(digits, gradient, clean):
    y = degrade(clean, operator_for("blur:1,down:2", SHAPE), range(4), noise=0.05)
    for method in ("null-space", "posterior", "daps"):
        needs = {"gradient": gradient} if METHODS[method].needs_gradient else {}
        together = sde_onnx.restore(digits, y, "blur:1,down:2", range(4), 8, method=method, noise=0.05, **needs)
        one = sde_onnx.restore(digits, y[2], "blur:1,down:2", [2], 8, method=method, noise=0.05, **needs)
        np.testing.assert_allclose(together[2:3], one, atol=2e-3)


@pytest.mark.parametrize(("method", "options", "products"), [
    ("null-space", {}, 0), ("posterior", {"options": {"iterations": 3}}, 3),
    ("dps", {"solver": "ancestral", "steps": 100}, 1),
])
def test_what_a_method_costs_in_products(method, options, products, digits):
    assert resolve_restoration(digits.metadata, has_gradient=True, method=method, **options).products == products


def test_one_measurement_serves_all_seeds(digits, clean):
    y = operator_for("gray", SHAPE).A(clean)
    samples = sde_onnx.restore(digits, y[0], "gray", range(3), 8)
    same = sde_onnx.restore(digits, np.repeat(y[:1], 3, axis=0), operators.gray(), range(3), 8)
    np.testing.assert_array_equal(samples, same)
    assert np.abs(samples[0] - samples[1]).max() > 0.02
    inside = ((samples > 0) & (samples < 1)).all(axis=1)   # where nothing was clipped
    assert inside.mean() > 0.5
    np.testing.assert_allclose(samples.mean(axis=1)[inside], np.repeat(y[0], 3, axis=0)[inside], atol=EXACT)


def test_what_a_mask_hides_is_not_read(digits, clean):
    operator = operator_for(BOX, SHAPE)
    y = operator.A(clean)
    marked = np.where(operator.A(np.ones_like(y)) > 0, y, 7).astype(np.float32)
    np.testing.assert_array_equal(sde_onnx.restore(digits, y, BOX, range(4), 8),
                                  sde_onnx.restore(digits, marked, BOX, range(4), 8))


def test_rounding_to_8_bits_counts_as_noise(digits, clean):
    """A blur's pseudo-inverse makes noise of it otherwise."""
    y = operator_for("blur:1.5", SHAPE).A(clean)
    rounded = (y * 255).round().astype(np.uint8)
    restored = sde_onnx.restore(digits, rounded, "blur:1.5", range(4))
    exactly = sde_onnx.restore(digits, (rounded / 255).astype(np.float32), "blur:1.5", range(4), noise=ROUNDING)
    np.testing.assert_allclose(restored, exactly, atol=1e-6)
    assert (psnr(restored, clean) > psnr(y, clean) + 3).all()


def test_the_gradient_file_alone_will_do(gradient, digits, clean):
    y = operator_for("down:2", SHAPE).A(clean)
    alone = sde_onnx.restore(gradient, y, "down:2", range(4), 6)
    beside = sde_onnx.restore(digits, y, "down:2", range(4), 6, gradient=gradient, method="posterior")
    np.testing.assert_allclose(alone, beside, atol=2e-3)


@pytest.mark.parametrize(("changed", "said"), [
    ({"operator": 5}, "operator is int"),
    ({"noise": -0.1}, "noise is -0.1"),
    ({"operator": "down:4"}, "the measurement has shape [3, 8, 8], the operator gives [3, 4, 4] of images [3, 16, 16]"),
    ({"method": "daps", "eta": 1.0}, "method daps takes nothing but the noise levels of sde-dpmpp-2m: leave out eta"),
    ({"method": "daps", "solver": "pc", "steps": 1}, "the first is the model's sigma_max: that is not how pc"),
    ({"method": "daps", "solver": "stochastic-heun"}, "that is not how stochastic-heun"),
    ({"method": "dps"}, "method dps needs the model's gradient file, which `sde-onnx gradient` makes; without one "
                        "there are null-space, daps, replacement"),
    ({"method": "nothing"}, "method 'nothing' is unknown, expected one of: null-space"),
    ({"zeta": 1.0}, "option zeta belongs to dps; method null-space has damping"),
    ({"method": "daps", "solver": "rk45"}, "method daps needs the solver's noise levels"),
    ({"seeds": []}, "no seeds"),
    ({"labels": 3}, "has no labels"),
])
def test_bad_input_is_refused(changed, said, digits):
    arguments = {"measurement": np.zeros((3, 8, 8), np.float32), "operator": "down:2", "seeds": range(2)} | changed
    with pytest.raises(InputError) as error:
        sde_onnx.restore(digits, **arguments)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_gradient_that_is_none_or_another_models_is_refused(digits, clean, model, gradient):
    with pytest.raises(InputError, match="has no gradient"):
        sde_onnx.restore(digits, clean, BOX, range(4), gradient=digits, method="posterior")
    others = np.zeros((4, *model.metadata.image_shape), np.float32)
    with pytest.raises(InputError, match=r"digits-gradient.onnx is the gradient of another model than"):
        sde_onnx.restore(model, others, BOX, range(4), gradient=gradient, method="posterior")


class Doubled:
    """A user's own of float64, which must not reach the model."""

    def A(self, x):   # noqa: N802
        return np.float64(2) * x.astype(np.float64)

    def adjoint(self, y):
        return np.float64(2) * y.astype(np.float64)


@pytest.mark.parametrize("method", ["null-space", "posterior", "daps"])
def test_float64_of_an_operator_and_of_the_noise_stays_outside(method, digits, gradient, clean):
    restored = sde_onnx.restore(digits, 2 * clean, Doubled(), range(4), 6, method=method, noise=np.float64(0.01),
                                gradient=gradient)
    assert restored.dtype == np.float32
    assert (psnr(restored, clean) > 25).all()


def test_what_is_hidden_may_be_nan(digits, clean):
    y = operator_for(BOX, SHAPE).A(clean)
    holed = np.where(operator_for(BOX, SHAPE).A(np.ones_like(y)) > 0, y, np.nan).astype(np.float32)
    np.testing.assert_array_equal(sde_onnx.restore(digits, holed, BOX, range(4), 4),
                                  sde_onnx.restore(digits, y, BOX, range(4), 4))


def test_measured_noise_does_not_go_with_products(digits):
    with pytest.raises(InputError, match="measure_noise does not go with method posterior"):
        resolve_restoration(digits.metadata, has_gradient=True, method="posterior", solver="dpmpp-2m",
                            options={"measure_noise": True})

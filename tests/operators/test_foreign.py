"""Operators that others wrote: a user's own, deepinv's, azula's."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sde_onnx import operators
from sde_onnx.errors import InputError
from sde_onnx.operators.foreign import adapted

SHAPE = (3, 12, 16)


class Halves:
    """A user's own: the upper half of an image, without a pseudo-inverse."""

    def A(self, x):   # noqa: N802
        return 2 * x[:, :, : x.shape[2] // 2]

    def adjoint(self, y):
        return np.concatenate([2 * y, np.zeros_like(y)], axis=2)


def test_a_users_own(rng):
    x = rng.standard_normal((2, *SHAPE))
    operator = adapted(Halves(), SHAPE)
    np.testing.assert_allclose(operator.pinv(operator.A(x))[:, :, :6], x[:, :, :6], atol=1e-6)
    np.testing.assert_allclose(operator.pinv(operator.A(x), 4.0)[:, :, :6], x[:, :, :6] / 2, atol=1e-6)


def test_a_users_own_inverse_is_told_the_damping_that_it_names(rng):
    class Own(Halves):
        def pinv(self, y, rtol=None, damping=0.0):
            assert rtol is None   # the damping is told by its name
            return self.adjoint(y) / (4 + damping) + 7   # so that it shows whose it is

    class Plain(Halves):
        def pinv(self, y):
            return self.adjoint(y) / 4 + 7

    y = rng.standard_normal((2, SHAPE[0], SHAPE[1] // 2, SHAPE[2]))
    np.testing.assert_allclose(adapted(Own(), SHAPE).pinv(y, 4.0)[:, :, :6], y / 4 + 7, atol=1e-6)
    np.testing.assert_allclose(adapted(Plain(), SHAPE).pinv(y)[:, :, :6], y / 2 + 7, atol=1e-6)
    np.testing.assert_allclose(adapted(Plain(), SHAPE).pinv(y, 4.0)[:, :, :6], y / 4, atol=1e-6)   # iterated


def test_deepinvs(rng, torchvision_folder):
    deepinv = importlib.import_module("deepinv")
    x = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    for physics in (
        deepinv.physics.Inpainting(SHAPE, mask=0.4), deepinv.physics.Downsampling(SHAPE, factor=4, filter=None),
        deepinv.physics.Decolorize(channels=3),
        deepinv.physics.BlurFFT(SHAPE, filter=deepinv.physics.blur.gaussian_blur(sigma=1.0)),
    ):
        operator = adapted(physics, SHAPE)
        y = operator.A(x)
        np.testing.assert_allclose(operator.A(operator.pinv(y)), y, atol=2e-3 * np.abs(y).max(), err_msg=repr(physics))
        again = rng.standard_normal(y.shape).astype(np.float32)
        assert np.vdot(y, again) == pytest.approx(np.vdot(x, operator.adjoint(again)), rel=1e-3, abs=1e-3)


def test_an_object_of_functions_of_tensors(rng):
    """deepinv's form, without deepinv."""
    whole = SimpleNamespace(A=lambda x: x[..., ::2, :], A_adjoint=lambda y: torch.stack([y, 0 * y], 3).flatten(2, 3),
                            A_dagger=lambda y: torch.stack([y, 0 * y], 3).flatten(2, 3) + 7)   # shows whose it is
    x = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    y = x[:, :, ::2]
    operator = adapted(whole, SHAPE)
    np.testing.assert_array_equal(operator.A(x), y)
    np.testing.assert_array_equal(operator.adjoint(y)[:, :, ::2], y)
    np.testing.assert_array_equal(operator.pinv(y)[:, :, ::2], y + 7)
    iterated = adapted(SimpleNamespace(A=whole.A, A_adjoint=whole.A_adjoint), SHAPE)
    np.testing.assert_allclose(iterated.pinv(y)[:, :, ::2], y, atol=1e-5)


def test_azulas_and_other_functions_of_tensors(rng):
    x = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    operator = adapted(lambda tensor: torch.nn.functional.avg_pool2d(tensor, 2), SHAPE)
    np.testing.assert_allclose(operator.A(x), operators.down(2).A(x), atol=1e-6)
    y = rng.standard_normal((2, 3, 6, 8)).astype(np.float32)
    np.testing.assert_allclose(operator.adjoint(y), operators.down(2).adjoint(y), atol=1e-6)
    np.testing.assert_allclose(operator.pinv(y), operators.down(2).pinv(y), atol=1e-5)


@pytest.mark.parametrize("operator", [
    3, SimpleNamespace(A=lambda x: x), SimpleNamespace(A_adjoint=lambda y: y), SimpleNamespace(adjoint=lambda y: y),
], ids=["a number", "A alone", "A_adjoint alone", "adjoint alone"])
def test_what_is_no_operator_is_refused(operator):
    said = f"operator is {type(operator).__name__}: expected one of sde_onnx.operators, an object with A and adjoint"
    with pytest.raises(InputError, match=said):
        adapted(operator, SHAPE)

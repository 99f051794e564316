"""The operator that a caller means, tried once."""

import numpy as np
import pytest

from sde_onnx.errors import InputError
from sde_onnx.operators.given import operator_for

SHAPE = (3, 16, 16)


class Halves:
    """Every other row."""

    def A(self, x):   # noqa: N802
        return x[:, :, ::2]

    def adjoint(self, y):
        image = np.zeros((len(y), *SHAPE), np.float32)
        image[:, :, ::2] = y
        return image


class Twice(Halves):
    """Its adjoint is that of another operator."""

    def adjoint(self, y):
        return np.repeat(y, 2, axis=2)


class Small(Halves):
    def adjoint(self, y):
        return y


class Sums(Halves):
    def A(self, x):   # noqa: N802
        return float(x.sum())


class Fails(Halves):
    def pinv(self, y, damping):
        raise ZeroDivisionError("no\nway")


class Flat(Halves):
    def pinv(self, y, damping):
        return y


class Refuses(Halves):
    def A(self, x):   # noqa: N802
        raise InputError("only on Mondays")


class Coarse(Halves):
    """Its adjoint is off by what float32 transforms may be."""

    def adjoint(self, y):
        return super().adjoint(y) * np.float32(1 + 2e-5)


class Vectors(Halves):
    """Its measurements are vectors."""

    def A(self, x):   # noqa: N802
        return super().A(x).reshape(len(x), -1)

    def adjoint(self, y):
        return super().adjoint(y.reshape(len(y), 3, 8, 16))


def test_measurements_may_be_vectors():
    assert operator_for(Vectors(), SHAPE).A(np.zeros((2, *SHAPE), np.float32)).shape == (2, 3 * 8 * 16)


def test_what_rounding_does_to_an_adjoint_is_taken():
    operator_for(Coarse(), SHAPE)


def test_one_that_fits_is_itself():
    operator = Halves()
    x = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    np.testing.assert_array_equal(operator_for(operator, SHAPE).A(x), x[:, :, ::2])
    np.testing.assert_array_equal(operator_for("box:0,0,16,8", SHAPE).A(x)[:, :, :8], 0 * x[:, :, :8])


@pytest.mark.parametrize(("operator", "said"), [
    ("down:3", "16 rows cannot be divided by 3"),
    (Twice(), "adjoint(y) is not the adjoint of A: <A x, y> is "),
    (Small(), "the operator's adjoint gives (2, 3, 8, 16) of measurements [2, 3, 8, 16], expected [2, 3, 16, 16]"),
    (Sums(), "the operator gives () of images [2, 3, 16, 16], expected a measurement for each"),
    (5, "operator is int"),
    (Fails(), "the operator's pinv fails on [2, 3, 8, 16]: ZeroDivisionError: no way"),
    (Flat(), "the operator's pinv gives (2, 3, 8, 16) of measurements [2, 3, 8, 16]"),
    (Refuses(), "only on Mondays"),
], ids=lambda value: getattr(type(value), "__name__", ""))
def test_what_is_no_operator_of_these_images_is_refused(operator, said):
    with pytest.raises(InputError) as error:
        operator_for(operator, SHAPE)
    assert said in str(error.value) and "\n" not in str(error.value)

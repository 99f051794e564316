"""Operators against dense algebra and Pillow."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from sde_onnx import operators
from sde_onnx.errors import InputError, SdeOnnxError
from sde_onnx.operators.operator import damped_inverse, least_squares

SHAPE = (3, 12, 16)
EXACT = 1e-10      # float64, closed forms
ITERATED = 1e-4    # of least squares by conjugate gradients, whose residual is 1e-6 of a badly conditioned system
CUT_OFF = 1e-4     # of singular values, which count as 0 below: what A A^+ A lacks of A

KERNEL = np.random.default_rng(1).uniform(0, 1, (3, 5))
OPERATORS = {
    "mask": (operators.mask(np.random.default_rng(0).integers(0, 2, (12, 16))), EXACT),
    "mask of channels": (operators.mask(np.random.default_rng(0).integers(0, 2, SHAPE)), EXACT),
    "box": (operators.box(2, 3, 5, 4), EXACT),
    "random": (operators.random(0.7), EXACT),
    "gray": (operators.gray(), EXACT),
    "down": (operators.down(4), EXACT),
    "bicubic": (operators.bicubic(4), EXACT),
    "blur": (operators.blur(1.5), CUT_OFF),
    "kernel": (operators.convolve(KERNEL), CUT_OFF),
    "gray, down": (operators.compose(operators.gray(), operators.down(2)), EXACT),
    "blur, bicubic, gray": (operators.parse_operator("blur:0.8,bicubic:2,gray"), EXACT),
    "gray, mask": (operators.parse_operator("gray,box:2,3,5,4"), ITERATED),
    "mask, down": (operators.parse_operator("random:0.3,down:2"), ITERATED),
    "kernel, down": (operators.compose(operators.convolve(KERNEL / KERNEL.sum()), operators.down(2)), ITERATED),
}


@pytest.mark.parametrize("largest", [1e-6, 1, 1e6])
def test_the_smallest_singular_values_are_none_by_their_share_of_the_largest(largest):
    values = largest * np.array([1, 2e-4, -2e-4j, 5e-5, 0])
    expected = np.array([1, 1 / 2e-4, 1 / -2e-4j, 0, 0]) / largest
    np.testing.assert_allclose(damped_inverse(values, 0), expected, rtol=1e-12)
    damped = values.conj() / (abs(values) ** 2 + largest**2)
    np.testing.assert_allclose(damped_inverse(values, largest**2), damped, rtol=1e-12)


@pytest.fixture(params=list(OPERATORS))
def case(request):
    return OPERATORS[request.param]


def dense(function, shape):
    """The matrix of a linear function of arrays of a shape."""
    unit = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    return function(unit).reshape(len(unit), -1).T


def test_the_adjoint_is_the_transposed_matrix(case):
    operator, _ = case
    matrix = dense(operator.A, SHAPE)
    measured = operator.A(np.zeros((1, *SHAPE))).shape[1:]
    np.testing.assert_allclose(dense(operator.adjoint, measured), matrix.T, atol=EXACT)


def test_the_pseudo_inverse_obeys_penrose(case, rng):
    operator, tolerance = case
    x = rng.standard_normal((2, *SHAPE))
    y = operator.A(x)
    assert np.linalg.norm(operator.A(operator.pinv(y)) - y) <= tolerance * np.linalg.norm(x)
    # The shortest solution lies in the range of A^T: it has no part in the null space of A.
    solution = operator.pinv(y)
    null = x - operator.pinv(y)
    assert abs(np.vdot(solution, null)) <= 10 * tolerance * np.linalg.norm(x) ** 2


def test_damping_is_that_of_least_squares(case, rng):
    operator, _ = case
    matrix = dense(operator.A, SHAPE)
    measured = operator.A(np.zeros((1, *SHAPE))).shape[1:]
    y = rng.standard_normal((2, *measured))
    damping = np.array([0.03, 0.5])
    got = operator.pinv(y, damping[:, None, None, None])
    for one, image, its in zip(y, got, damping, strict=True):
        expected = matrix.T @ np.linalg.solve(matrix @ matrix.T + its * np.eye(len(matrix)), one.ravel())
        np.testing.assert_allclose(image.ravel(), expected, atol=1e-5 * np.abs(expected).max())


def test_an_image_does_not_depend_on_its_batch(case, rng):
    operator, _ = case
    y = operator.A(rng.standard_normal((5, *SHAPE)).astype(np.float32))
    together, alone = operator.pinv(y), operator.pinv(y[3:4])
    assert together.dtype == np.float32
    np.testing.assert_allclose(together[3:4], alone, atol=1e-3 * np.abs(alone).max())


def test_bicubic_is_pillows(rng):
    plane = rng.uniform(0, 1, (24, 32)).astype(np.float32)
    expected = np.asarray(Image.fromarray(plane, "F").resize((8, 6), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(operators.bicubic(4).A(plane[None, None])[0, 0], expected, atol=1e-6)


def test_a_blur_mirrors_the_image_at_its_borders(rng):
    x = rng.standard_normal((1, 2, 9, 12))
    expected = gaussian_filter(x, 1.5, mode="reflect", truncate=4, axes=(2, 3))
    np.testing.assert_allclose(operators.parse_operator("blur:1.5").A(x), expected, atol=1e-9)


def test_constant_images_stay_as_they_are():
    x = np.full((1, 3, 12, 12), 0.37)
    for text in ("gray", "down:3", "bicubic:2", "blur:2.5", "blur:9"):
        np.testing.assert_allclose(operators.parse_operator(text).A(x), 0.37, atol=1e-12, err_msg=text)


def test_a_kernel_is_centred(rng):
    x = rng.standard_normal((1, 1, 9, 8))
    unit = np.zeros((3, 4))
    unit[1, 2] = 1
    np.testing.assert_allclose(operators.convolve(unit).A(x), x, atol=1e-12)


def test_masks():
    x = np.ones((1, 1, 10, 10))
    assert operators.random(0.7).A(x).sum() == 30
    assert (operators.random(0.7).A(x) == operators.random(0.7, 0).A(x)).all()
    assert (operators.random(0.7).A(x) != operators.random(0.7, 1).A(x)).any()
    kept = operators.box(1, 2, 3, 4).A(x)[0, 0]
    assert (kept[2:6, 1:4] == 0).all() and kept.sum() == 88


def test_files(tmp_path, rng):
    known = rng.integers(0, 2, SHAPE[1:]).astype(np.uint8)
    Image.fromarray(known * 255).save(tmp_path / "mask.png")
    x = rng.standard_normal((1, *SHAPE))
    np.testing.assert_array_equal(operators.parse_operator(f"mask:{tmp_path}/mask.png").A(x), known * x)
    np.save(tmp_path / "kernel.npy", KERNEL)
    both = operators.parse_operator(f"kernel:{tmp_path}/kernel.npy,down:2")
    np.testing.assert_allclose(both.A(x), operators.down(2).A(operators.convolve(KERNEL).A(x)))
    Image.fromarray((KERNEL * 255).astype(np.uint8)).save(tmp_path / "kernel.png")
    blurred = operators.parse_operator(f"kernel:{tmp_path}/kernel.png").A(np.ones((1, *SHAPE)))
    np.testing.assert_allclose(blurred, 1, atol=1e-12)


@pytest.mark.parametrize(("text", "said"), [
    ("", "unknown operator ''"), ("sharpen", "unknown operator 'sharpen', expected one of mask:FILE"),
    ("down", "operator 'down': expected down:FACTOR"), ("down:x", "expected down:FACTOR"),
    ("down:2,3", "expected down:FACTOR"), ("down:1", "the factor is 1"), ("gray:1", "expected gray"),
    ("box:1,2,3", "expected box:X,Y,WIDTH,HEIGHT"), ("box:1,1,0,4", "the box is 1,1,0,4"),
    ("random:1", "share of missing pixels is 1"), ("blur:0", "sigma is 0"), ("blur:nan", "sigma is nan"),
    ("mask:none.png", "none.png cannot be read as a picture"), ("kernel:none.npy", "none.npy cannot be read"),
    ("mask", "cannot be read as a picture"), ("random:0.5,-1", "seed -1 does not fit 64 bits"),
])
def test_bad_texts_are_refused(text, said):
    with pytest.raises(InputError) as error:
        operators.parse_operator(text)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("operator", "shape", "said"), [
    (operators.down(5), SHAPE, "12 rows cannot be divided by 5"),
    (operators.gray(), (1, 8, 8), "images of 1 channel have no colours to lose"),
    (operators.gray(), (4, 8, 8), "gray values are of 3 channels, the images have 4"),
    (operators.box(2, 2, 8, 8), (3, 8, 8), "is not inside an image of 8x8"),
    (operators.box(7, 0, 2, 1), (3, 8, 8), "is not inside an image of 8x8"),
    (operators.box(0, 7, 1, 2), (3, 8, 8), "is not inside an image of 8x8"),
    (operators.box(0, 0, 8, 8), (3, 8, 8), "leaves no pixel"),
    (operators.mask(np.ones((4, 4))), (3, 8, 8), "the mask has shape [4, 4], the images [3, 8, 8]"),
    (operators.random(0.999), (3, 4, 4), "leaves no pixel"),
    (operators.blur(1e6), (3, 8, 8), "the blur's sigma is 1e+06 pixels, more than the 8 of the images"),
    (operators.convolve(np.ones((9, 9))), (3, 8, 8), "the kernel of 9x9 is larger than the images of 8x8"),
])
def test_what_does_not_fit_is_refused(operator, shape, said):
    with pytest.raises(InputError) as error:
        operator.A(np.zeros((1, *shape)))
    assert said in str(error.value)


@pytest.mark.parametrize(("made", "said"), [
    (lambda: operators.mask(np.full((4, 4), 0.5)), "the mask holds 0.5: expected 1 where a pixel is known"),
    (lambda: operators.mask(np.array([[1, 0.5], [0, 1]])), "the mask holds 0.5"),
    (lambda: operators.mask(np.zeros((4, 4))), "nothing is known"),
    (lambda: operators.mask(np.ones(4)), "expected [H, W] or [C, H, W]"),
    (lambda: operators.convolve(np.ones(4)), "expected finite numbers [h, w]"),
    (lambda: operators.convolve(np.full((2, 2), np.nan)), "expected finite numbers"),
    (lambda: operators.compose(), "no operator"),
    (lambda: operators.down("2"), "the factor is '2'"),
])
def test_what_makes_no_sense_is_refused(made, said):
    with pytest.raises(SdeOnnxError, match=r".") as error:
        made()
    assert said in str(error.value)


def test_least_squares_of_a_singular_system_is_its_shortest_solution(rng):
    class Singular:
        matrix = rng.standard_normal((6, 4)) @ rng.standard_normal((4, 12))

        def A(self, x):   # noqa: N802
            return x @ self.matrix.T

        def adjoint(self, y):
            return y @ self.matrix

    y = Singular().A(rng.standard_normal((3, 12)))
    np.testing.assert_allclose(least_squares(Singular(), y), y @ np.linalg.pinv(Singular.matrix).T, atol=1e-5)

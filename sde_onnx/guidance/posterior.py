"""Posterior sampling by moment matching: the mean of x_0 given x and y, if x_0 given x were Gaussian.

    D' = D + V A^T (A V A^T + sigma_y^2)^-1 (y - A D),   V u = sigma^2 J_D^T u = sigma^2 (u + sigma^2 J_s^T u)

V is the covariance of x_0 given x (Tweedie's second formula). It is exact for Gaussian data. The system is solved by
GMRES, since a network's Jacobian is not symmetric: conjugate gradients leave it for infinity where sigma_y is small.

Source: Rozet et al. 2024, "Learning Diffusion Priors from Observations by Expectation Maximization", section 4.2 and
appendix E ("MMPS"); Saad & Schultz 1986, "GMRES: A Generalized Minimal Residual Algorithm".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sde_onnx.guidance.measurement import Measurement, Product, corrected
from sde_onnx.solvers.protocols import Array, Score

__all__ = ["posterior"]


def posterior(score: Score, measurement: Measurement, *, vjp: Product, iterations: int) -> Score:
    """The score given a measurement, of GMRES iterations of one vector-Jacobian product each.

    Args:
        score: the model's.
        measurement: what is known of each image of a batch.
        vjp: the score's vector-Jacobian product.
        iterations: of GMRES, at most, >= 1.
    """
    operator = measurement.operator

    def correction(x: Array, sigma: Array, image: Array) -> Array:
        level = sigma[:, 0, 0, 0]

        def spread(u: Array) -> Array:
            """``V A^T u``."""
            v = operator.adjoint(u)
            product = vjp(x, level, np.ascontiguousarray(v))[1]
            return sigma**2 * (v + sigma**2 * product)

        return image + _solved(spread, operator.A, measurement.residual(image), measurement.noise**2, iterations)

    return corrected(score, correction)


def _solved(
    spread: Callable[[Array], Array], measured: Callable[[Array], Array], residual: Array, variance: float,
    iterations: int,
) -> Array:
    """``V A^T u`` with ``(A V A^T + variance) u = residual``, by GMRES from 0, for each image its own.

    Args:
        spread: ``V A^T`` of a measurement.
        measured: ``A`` of an image.
        residual: ``[N, ...]``.
        variance: of the measurement's noise.
        iterations: at most.
    """
    norm = _norms(residual)
    basis, images = [_over(residual, norm)], []
    hessenberg = np.zeros((len(residual), iterations + 1, iterations))
    for column in range(iterations):
        images.append(spread(basis[column]))
        following = measured(images[column]) + variance * basis[column]
        for row, vector in enumerate(basis):   # modified Gram-Schmidt
            along = _products(vector, following)
            hessenberg[:, row, column] = along
            following = following - _each(along, following) * vector
        hessenberg[:, column + 1, column] = length = _norms(following)
        if not length.any():
            break
        basis.append(_over(following, length))
    right = np.zeros((len(residual), iterations + 1, 1))
    right[:, 0, 0] = norm
    weights = (np.linalg.pinv(hessenberg) @ right)[..., 0]
    shift = np.zeros_like(images[0])
    for column, image in enumerate(images):
        shift = shift + _each(weights[:, column], image) * image
    return shift


def _products(a: Array, b: Array) -> Array:
    """The inner product of each image's values, ``[N]`` float64."""
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    sums: Array = np.einsum("nk,nk->n", flat_a, flat_b, dtype=np.float64)
    return sums


def _norms(a: Array) -> Array:
    norms: Array = np.sqrt(_products(a, a))
    return norms


def _over(a: Array, norms: Array) -> Array:
    """Each image's values over its norm; 0 where that is 0."""
    return a * _each(np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0), a)


def _each(numbers: Array, like: Array) -> Array:
    """A number for each image, to be multiplied with ``like``."""
    return numbers.reshape(-1, *[1] * (like.ndim - 1)).astype(like.dtype)

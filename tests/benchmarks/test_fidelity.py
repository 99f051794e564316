"""The measure of the quality benchmark, on sets whose distance is known."""

import numpy as np
import pytest

from fidelity import extrapolated_distance, frechet_distance

K = 19


def gaussians(count, *, mean=0.0, deviation=1.0, seed=0):
    return mean + deviation * np.random.default_rng(seed).standard_normal((count, K))


def test_the_distance_is_that_of_gaussians():
    a, b = gaussians(200_000, seed=1), gaussians(200_000, mean=0.5, deviation=1.2, seed=2)
    assert frechet_distance(a, b) == pytest.approx(K * (0.5**2 + 0.2**2), rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("count", "mean", "deviation"), [(2048, 0, 1), (1024, 0, 1), (1024, 0.1, 0.9)])
def test_extrapolated_it_does_not_depend_on_the_number_of_images(count, mean, deviation):
    expected = K * (mean**2 + (deviation - 1) ** 2)
    reference = gaussians(200_000, seed=1)
    found = [extrapolated_distance([gaussians(count, mean=mean, deviation=deviation, seed=seed)], [reference])
             for seed in range(2, 42)]
    distances, errors = np.array(found).T
    assert distances.mean() == pytest.approx(expected, abs=4 * distances.std() / len(found) ** 0.5 + 0.003)
    assert errors.mean() == pytest.approx(distances.std(), rel=0.5)   # the jackknife's claim against what is seen
    plain = frechet_distance(gaussians(count, mean=mean, deviation=deviation, seed=2), reference)
    assert plain > expected + 0.4 * K / count

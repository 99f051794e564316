"""How far images of digits are from real ones: a Fréchet distance in the features of the judges of judge.py, as
Inception's give one for photographs:

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))      over means and covariances of the features of two sets

Of N images it is too large by about c / N, which for two thousand is more than what is to be measured. So it is taken
of all, of halves and of quarters, and extrapolated to infinitely many.

Sources: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", eq. 6;
Chong & Forsyth 2020, "Effectively Unbiased FID and Inception Score and where to find them".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from environment import ROOT

sys.path.insert(0, str(ROOT / "examples" / "digits"))
from sde_onnx.images import to_uint8

from data import colour, load_ink

__all__ = ["extrapolated_distance", "frechet_distance", "in_deviations", "real_digits"]

Moments = tuple[NDArray[np.float64], NDArray[np.float64]]   # mean [K], covariance [K, K]
SHARES = (1, 2, 4)   # parts that a set is cut into, for the extrapolation
BLOCKS = 16          # that the jackknife leaves out in turn


def real_digits(
    count: int, *, held_out: bool, seed: int = 0, data: str = "digits"
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """``count`` real digits, or other data, in fresh colours, ``[N, H, W, C]``, and what they say."""
    generator = torch.Generator().manual_seed(seed)
    ink, labels = load_ink(16, held_out=held_out, data=data)
    chosen = torch.randint(len(ink), (count,), generator=generator)
    return to_uint8(colour(ink[chosen], generator).numpy()), labels[chosen].numpy()


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The Fréchet distance of two sets of features, ``[N, K]`` and ``[M, K]``."""
    return _distance(_moments(a), _moments(b))


def _moments(features: NDArray[np.float64]) -> Moments:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def _distance(a: Moments, b: Moments) -> float:
    means, covariances = zip(a, b, strict=True)
    # tr (A B)^(1/2) is that of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: features that never vary do no harm.
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * cross)


def extrapolated_distance(
    sets: Sequence[NDArray[np.float64]], references: Sequence[NDArray[np.float64]]
) -> tuple[float, float]:
    """The Fréchet distance that infinitely many images would have, and its standard error.

    Args:
        sets: features of the images, ``[N, K]``, in the eyes of each judge; the distance is the mean of theirs.
        references: those of real images, ``[M, K]``; M is as it is.

    Returns:
        The distance, which chance may bring below 0, and its standard error, of a jackknife.
    """
    moments = [_moments(reference) for reference in references]
    quarter = len(sets[0]) // SHARES[-1]
    # Quarters at random, since neighbours may be of one batch, and fixed: whoever is left out leaves its own.
    quarters = np.random.default_rng(0).permutation(len(sets[0]))[: quarter * SHARES[-1]].reshape(SHARES[-1], quarter)

    def mean(columns: NDArray[np.int64]) -> float:
        chosen = quarters[:, columns].reshape(-1)
        return float(np.mean([_extrapolated(features[chosen], reference)
                              for features, reference in zip(sets, moments, strict=True)]))

    every = np.arange(quarter)
    estimates = np.array([mean(np.setdiff1d(every, block)) for block in np.array_split(every, BLOCKS)])
    variance = (BLOCKS - 1) / BLOCKS * ((estimates - estimates.mean()) ** 2).sum()
    return mean(every), float(variance**0.5)


def _extrapolated(features: NDArray[np.float64], reference: Moments) -> float:
    """The distance at 1 / N = 0, by a line through those of all, halves and quarters."""
    sizes = [len(features) // share for share in SHARES]
    distances = [np.mean([_distance(_moments(part), reference) for part in np.split(features[: size * share], share)])
                 for size, share in zip(sizes, SHARES, strict=True)]
    return float(np.polynomial.Polynomial.fit(1 / np.array(sizes), distances, 1).convert().coef[0])


def in_deviations(features: NDArray[np.float64], real: NDArray[np.float64]) -> NDArray[np.float64]:
    """Features in units of their deviations in a real set, ``[N, K]``; those that hardly vary there are left out.

    Distances then mean the same for every judge, and no feature outweighs the others by its scale: a unit that answers
    to one real digit in a thousand would, if its deviation there were the measure.
    """
    deviations = real.std(axis=0)
    vary = deviations > 0.1 * deviations.max()
    return features[:, vary] / deviations[vary]

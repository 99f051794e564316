"""Noise levels: the reference's predictor-corrector schedule, and those of solvers. And what a time ``t`` is.

With N steps, ``t`` running evenly from 1 to ``sampling_eps``, and a grid even in log sigma:

    sigma_cond_i = sigma_min (sigma_max / sigma_min)^t_i       what the network is told
    sigma_i      = grid[N - 1 - i],  sigma_next_i = grid[N - 2 - i], 0 after the last

The two differ by about 1e-4 relative; the reference uses both, and equal pictures need both.

Source: Song et al. 2021, equation 31 (appendix C) and algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Any, NamedTuple

import numpy as np

from sde_onnx.checks import MOST_STEPS, checked_count, is_number
from sde_onnx.errors import ConfigError, InputError, one_line
from sde_onnx.solvers.options import OPTIONS

__all__ = ["NoiseLevel", "VeSchedule"]


LARGEST_SIGMA = 1e18


class NoiseLevel(NamedTuple):
    """One step of a schedule. All float32 scalars, so that formulas round as the reference's do."""

    sigma_cond: np.float32   # what the network is told, > 0
    sigma: np.float32        # noise std before the step
    sigma_next: np.float32   # noise std after it, 0 after the last
    dt: np.float32           # its length in time t, 1 / N


@dataclass(frozen=True)
class VeSchedule:
    """A variance-exploding noise schedule, as the model was trained with.

    Args:
        sigma_min: smallest noise std, > 0, data in [0, 1].
        sigma_max: largest noise std, > sigma_min; also the std of the initial latent.
        num_scales: steps that the model's author samples with, >= 1.
        sampling_eps: the last time that the network is asked at, in (0, 1).

    Raises:
        ConfigError: a value out of its range.
    """

    sigma_min: float
    sigma_max: float
    num_scales: int = 2000
    sampling_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("sigma_min", "sigma_max", "sampling_eps"):   # a config may write 50 for 50.0
            value = getattr(self, name)
            if not is_number(value):
                raise ConfigError(f"{name} is {one_line(value)}, expected a finite number")
            object.__setattr__(self, name, float(value))
        if not 0 < self.sigma_min < self.sigma_max:
            raise ConfigError(
                f"sigma_min {self.sigma_min} and sigma_max {self.sigma_max} are not a noise range: "
                "0 < sigma_min < sigma_max is needed"
            )
        if self.sigma_min < 1 / LARGEST_SIGMA or self.sigma_max > LARGEST_SIGMA:
            raise ConfigError(f"sigma_min {self.sigma_min} and sigma_max {self.sigma_max} leave float32: it holds "
                              f"the squares of {1 / LARGEST_SIGMA:g} to {LARGEST_SIGMA:g}")
        if type(self.num_scales) is not int or not 1 <= self.num_scales <= MOST_STEPS:
            raise ConfigError(f"num_scales is {one_line(self.num_scales)}, expected a whole number of 1 to "
                              f"{MOST_STEPS}")
        if not 0 < self.sampling_eps < 1:
            raise ConfigError(f"sampling_eps is {self.sampling_eps}, expected a time between 0 and 1")

    def sigma_at(self, t: Any) -> Any:
        """The noise std of a time in [0, 1], or of each of an array, rounded as the reference does: in float32."""
        return np.float32(self.sigma_min) * np.float32(self.sigma_max / self.sigma_min) ** np.float32(t)

    def levels(self, steps: int) -> Iterator[NoiseLevel]:
        """Yields the reference's noise levels, from the largest.

        Args:
            steps: N, >= 1.

        Raises:
            InputError: ``steps`` below 1.
        """
        checked_count("steps", steps, least=1, most=MOST_STEPS)
        t = np.linspace(1.0, self.sampling_eps, steps)
        # A single point of the grid is its start, sigma_min, in torch and numpy alike: the reference's one-step run.
        grid = np.exp(np.linspace(math.log(self.sigma_min), math.log(self.sigma_max), steps)).astype(np.float32)
        sigma_cond = (self.sigma_min * (self.sigma_max / self.sigma_min) ** t).astype(np.float32)
        following = np.append(grid[-2::-1], np.float32(0))
        return map(NoiseLevel, sigma_cond, grid[::-1], following, repeat(np.float32(1 / steps)))

    def spaced(self, steps: int, schedule: str, rho: float) -> list[float]:
        """Noise levels by the name of their spacing.

        Args:
            steps: >= 2.
            schedule: ``"karras"``, or ``"geometric"``, even in log sigma.
            rho: of :meth:`karras`.

        Returns:
            ``steps + 1`` numbers, the last 0.

        Raises:
            InputError: an argument out of its range.

        Source: Karras et al. 2022, equation 5; Song et al. 2021, appendix C.
        """
        OPTIONS["schedule"].checked("schedule", schedule)
        return self.karras(steps, rho=rho if schedule == "karras" else math.inf)

    def karras(self, steps: int, *, rho: float = 7.0) -> list[float]:
        """Noise levels that fall evenly in ``sigma^(1/rho)``, then 0: ``steps + 1`` numbers.

        Args:
            steps: >= 2.
            rho: 1 to 1000; the larger, the more steps at small sigma. Infinity is the geometric schedule.

        Raises:
            InputError: an argument out of its range.

        Source: Karras et al. 2022, equation 5.
        """
        checked_count("steps", steps, least=2, most=MOST_STEPS)
        if rho == math.inf:
            sigmas = np.geomspace(self.sigma_max, self.sigma_min, steps)
        else:
            rho = OPTIONS["rho"].checked("rho", rho)
            sigmas = np.linspace(self.sigma_max ** (1 / rho), self.sigma_min ** (1 / rho), steps) ** rho
        levels = [self.sigma_max, *sigmas[1:-1].tolist(), self.sigma_min, 0.0]   # the powers round the ends
        if any(level <= following for level, following in pairwise(levels)):
            raise InputError(f"{steps} noise levels of {self.sigma_max} to {self.sigma_min}: two are the same number")
        return levels

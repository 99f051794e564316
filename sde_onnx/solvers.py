"""Everything that samples, under one name each: what it is, its options, its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sde_onnx.adaptive import adaptive_sde, rk45
from sde_onnx.errors import InputError
from sde_onnx.fixed_steps import dpm_solver, heun
from sde_onnx.noise import NoiseSource
from sde_onnx.noise_level import tell_measured_noise
from sde_onnx.samplers import ScoreFunction, Step, predictor_corrector
from sde_onnx.schedule import VeSchedule

__all__ = ["DEFAULT_QUALITY", "DEFAULT_SOLVER", "QUALITIES", "SCHEDULES", "SOLVERS", "Solver", "SolverSettings",
           "chosen_options", "solver_settings", "start_solver", "step_count", "what_is_meant"]


@dataclass(frozen=True)
class Solver:
    """A way to sample, under its name in SOLVERS."""

    start: Callable[..., Iterator[Step]]          # (score, noise, schedule or sigmas, ...) -> steps
    about: str
    steps: int | None                             # if not asked for; None: the model's own number; 0: it adapts them
    options: Mapping[str, Any]                    # that a caller may set, with their defaults; None: the model's own
    fixed: Mapping[str, Any] = field(default_factory=dict)   # arguments that make this solver what it is


SPACING = {"schedule": "karras", "rho": 7.0}
NOISELESS = SPACING | {"measure_noise": False}
SOLVERS = {
    "pc": Solver(predictor_corrector, "the paper's predictor-corrector sampler", None, {
        "snr": None, "n_corrector": None, "predictor": "reverse_diffusion", "corrector": "langevin",
        "probability_flow": False, "langevin_norm": "image",
    }),
    "ancestral": Solver(dpm_solver, "ancestral sampling on any schedule", 50, SPACING | {"schedule": "geometric"},
                        {"order": 1, "eta": 1.0}),
    "sde-dpmpp-2m": Solver(dpm_solver, "stochastic DPM-Solver++, second order", 25, SPACING | {"eta": 2.0},
                           {"order": 2}),
    "sde-dpmpp-3m": Solver(dpm_solver, "stochastic DPM-Solver++, third order", 25, SPACING | {"eta": 1.0},
                           {"order": 3}),
    "dpmpp-2m": Solver(dpm_solver, "DPM-Solver++, second order, no noise", 25, NOISELESS, {"order": 2, "eta": 0.0}),
    "dpmpp-3m": Solver(dpm_solver, "DPM-Solver++, third order, no noise", 25, NOISELESS, {"order": 3, "eta": 0.0}),
    "heun": Solver(heun, "Heun's method on the probability-flow ODE", 18, NOISELESS, {"churn": 0.0}),
    "rk45": Solver(rk45, "adaptive Runge-Kutta on the probability-flow ODE", 0, {"rtol": 1e-5, "atol": 1e-5}),
    "adaptive-sde": Solver(adaptive_sde, "the reverse diffusion, with steps as long as the error allows", 0, {
        "rtol": 0.02, "atol": 1 / 256,
    }),
    "stochastic-heun": Solver(heun, "Heun's method with churn", 25, SPACING | {
        "churn": 40.0, "churn_min": 0.0, "churn_max": math.inf, "churn_noise": 1.0,
    }),
}
SCHEDULES = ("karras", "geometric")
# Solver, steps (None: the solver's own) and options by what they are for. What they cost and lose: the README, from
# benchmarks/quality.py.
QUALITIES: dict[str, tuple[str, int | None, Mapping[str, Any]]] = {
    "fast": ("sde-dpmpp-2m", 12, {"eta": 0.5}),
    "balanced": ("sde-dpmpp-2m", None, {}),   # what the solver takes by itself
    "reference": ("pc", None, {}),
}
DEFAULT_QUALITY = "balanced"
DEFAULT_SOLVER = QUALITIES[DEFAULT_QUALITY][0]   # where steps alone are asked for


def what_is_meant(
    quality: str | None, solver: str | None, steps: int | None, options: Mapping[str, Any]
) -> tuple[str, int | None, dict[str, Any]]:
    """Solver, steps and options of a caller who has named some of them.

    A quality is all three, of which the caller's options replace its own; it is DEFAULT_QUALITY where neither a solver
    nor steps are named. Else the solver's own steps and options hold, since a quality's were measured together.

    Raises:
        InputError: a quality together with a solver or steps, or an unknown one.
    """
    if quality is None and (solver is not None or steps is not None):
        return solver or DEFAULT_SOLVER, steps, dict(options)
    if solver is not None or steps is not None:
        raise InputError("a quality chooses the solver and its steps: leave out solver and steps")
    quality = quality or DEFAULT_QUALITY
    if quality not in QUALITIES:
        raise InputError(f"quality {quality!r} is unknown, expected one of: {', '.join(QUALITIES)}")
    solver, steps, preset = QUALITIES[quality]
    return solver, steps, {**preset, **options}


def step_count(name: str, schedule: VeSchedule, steps: int | None) -> int:
    """How many steps a solver takes: as asked, or its own number, or the model's; 0 if that shows on the way.

    Raises:
        InputError: an unknown solver, or a number for one that chooses its steps itself.
    """
    if name not in SOLVERS:
        raise InputError(f"solver {name!r} is unknown, expected one of: {', '.join(SOLVERS)}")
    own = SOLVERS[name].steps
    if own == 0 and steps is not None:
        raise InputError(f"solver {name} chooses its steps by its tolerances: leave steps out")
    return steps if steps is not None else schedule.num_scales if own is None else own


def start_solver(
    name: str,
    score: ScoreFunction,
    noise: NoiseSource,
    schedule: VeSchedule,
    steps: int | None = None,
    *,
    model_options: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Iterator[Step]:
    """Starts a solver by its name.

    Args:
        name: a key of SOLVERS.
        score: the score function.
        noise: returns the next standard normal array ``[N, C, H, W]`` at each call.
        schedule: the model's noise levels.
        steps: noise levels; the solver's own number if not given.
        model_options: what the model says of options that are left to it, ``snr`` and ``n_corrector``.
        options: of the solver, by name.

    Raises:
        InputError: an unknown solver, an option that it does not have (names those that do), or a value out of its
            range.
    """
    settings = solver_settings(name, schedule, steps, model_options=model_options, options=options)
    if settings.start is predictor_corrector:
        return predictor_corrector(score, noise, schedule, settings.count, **settings.options)
    if settings.sigmas is None:
        return settings.start(score, noise, schedule, **settings.options)
    if settings.measure_noise:
        score = tell_measured_noise(score)
    return settings.start(score, noise, settings.sigmas, **settings.options)


@dataclass(frozen=True)
class SolverSettings:
    """All that a solver is started with, but score and noise."""

    start: Callable[..., Iterator[Step]]
    count: int                      # steps; 0 if that shows on the way
    options: Mapping[str, Any]      # keyword arguments of start
    sigmas: list[float] | None      # the noise levels, where start takes them and not the schedule
    measure_noise: bool             # whether the network is told the noise that it sees


def solver_settings(
    name: str, schedule: VeSchedule, steps: int | None, *, model_options: Mapping[str, Any], options: Mapping[str, Any]
) -> SolverSettings:
    """Completes and checks what was asked for. Arguments and errors: :func:`start_solver`, which checks the values."""
    count = step_count(name, schedule, steps)
    chosen = chosen_options(name, model_options, options)
    measure_noise = chosen.pop("measure_noise", False)
    sigmas = _noise_levels(schedule, count, chosen) if "schedule" in chosen else None
    return SolverSettings(SOLVERS[name].start, count, chosen, sigmas, measure_noise)


def chosen_options(name: str, model_options: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a solver: what the caller has chosen, the model's and the solver's own for the rest.

    Raises:
        InputError: an option that the solver does not have.
    """
    solver = SOLVERS[name]
    for option in options:
        if option not in solver.options:
            owners = [other for other, candidate in SOLVERS.items() if option in candidate.options]
            whose = f"belongs to {', '.join(owners)}" if owners else "is unknown"
            raise InputError(f"option {option} {whose}; solver {name} has {', '.join(solver.options)}")
    own = {option: model_options[option] if default is None else default for option, default in solver.options.items()}
    return own | dict(options) | dict(solver.fixed)


def _noise_levels(schedule: VeSchedule, steps: int, chosen: dict[str, Any]) -> list[float]:
    """The noise levels that a solver's ``schedule`` and ``rho`` ask for; both are taken out of ``chosen``.

    Raises:
        InputError: an unknown schedule, or what it refuses.
    """
    kind, rho = chosen.pop("schedule"), chosen.pop("rho")
    if kind not in SCHEDULES:
        raise InputError(f"schedule is {kind!r}, expected one of: {', '.join(SCHEDULES)}")
    return schedule.karras(steps, rho=rho) if kind == "karras" else schedule.geometric(steps)

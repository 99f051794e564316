"""Everything that samples, by name, and what a caller asked for, resolved.

A new solver is a formula and a plan in a module of this package, and a line in SOLVERS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from sde_onnx.checks import MOST_STEPS, checked_choice, checked_count
from sde_onnx.errors import InputError, counted, one_line
from sde_onnx.extras import require_scipy
from sde_onnx.solvers.options import OPTIONS, shown_name

if TYPE_CHECKING:
    from sde_onnx.solvers.plan import Plan, Step
    from sde_onnx.solvers.protocols import NoiseSource, Score
    from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["DEFAULT_QUALITY", "MODEL", "QUALITIES", "SOLVERS", "SPACINGS", "ModelDefaults", "Sampling", "Solver",
           "defaults_of", "function_named", "resolve"]


@dataclass(frozen=True)
class Solver:
    """A way to sample, under its name in SOLVERS."""

    about: str                     # one line for people
    function: str                  # MODULE.FUNCTION of this package: writes the plan or, of an adaptive solver, runs
    options: Mapping[str, Any]     # that a caller may set, keys of OPTIONS, with their defaults; MODEL: the model's own
    steps: int | str | None = 25   # if not asked for; MODEL: the model's own number; None: it adapts them
    least: int = 2                 # steps that it needs
    fixed: Mapping[str, Any] = field(default_factory=dict)   # further arguments, which make this solver what it is
    mixes_images: bool = False     # whether an image depends on its batch whatever the options
    requirement: Callable[[], None] | None = None   # raises a MissingExtraError where the solver cannot run


MODEL = "the model's"
SPACING = {"schedule": "karras", "rho": 7.0}
NOISELESS = SPACING | {"measure_noise": False}
RESTARTS = {"restarts": None, "restart_steps": 4, "restart_min": 0.03, "restart_max": 0.15}
SPACINGS = (*SPACING, *RESTARTS)   # the options that noise levels depend on
SOLVERS = {
    "pc": Solver("the paper's predictor-corrector sampler", "predictor_corrector.plan", {
        "snr": MODEL, "n_corrector": MODEL, "predictor": "reverse_diffusion", "corrector": "langevin",
        "probability_flow": False, "langevin_norm": "image",
    }, steps=MODEL, least=1),
    "ancestral": Solver("ancestral sampling on any schedule", "multistep.plan", SPACING | {"schedule": "geometric"},
                        steps=50, fixed={"order": 1, "eta": 1.0}),
    "sde-dpmpp-2m": Solver("stochastic DPM-Solver++, second order", "multistep.plan", SPACING | {"eta": 2.0},
                           fixed={"order": 2}),
    "sde-dpmpp-3m": Solver("stochastic DPM-Solver++, third order", "multistep.plan", SPACING | {"eta": 1.0},
                           least=3, fixed={"order": 3}),
    "restart": Solver("stochastic DPM-Solver++, second order, with restarts", "restart.multistep_plan",
                      SPACING | {"eta": 1.0} | RESTARTS, fixed={"order": 2}),
    "dpmpp-2m": Solver("DPM-Solver++, second order, no noise", "multistep.plan", NOISELESS,
                       fixed={"order": 2, "eta": 0.0}),
    "dpmpp-3m": Solver("DPM-Solver++, third order, no noise", "multistep.plan", NOISELESS, least=3,
                       fixed={"order": 3, "eta": 0.0}),
    "heun": Solver("Heun's method on the probability-flow ODE", "heun.plan", NOISELESS, steps=18),
    "restart-heun": Solver("Heun's method with restarts", "restart.heun_plan", SPACING | RESTARTS, steps=26),
    "rk45": Solver("adaptive Runge-Kutta on the probability-flow ODE", "adaptive.rk45", {"rtol": 1e-5, "atol": 1e-5},
                   steps=None, mixes_images=True, requirement=require_scipy),
    "adaptive-sde": Solver("the reverse diffusion, with steps as long as the error allows", "adaptive.adaptive_sde",
                           {"rtol": 0.02, "atol": 1 / 256}, steps=None),
    "stochastic-heun": Solver("Heun's method with churn", "heun.plan", SPACING | {
        "churn": 40.0, "churn_min": 0.0, "churn_max": None, "churn_noise": 1.0,
    }),
}
# Solver, steps (None: the solver's own) and options by what they are for. What they cost and lose: docs/quality.md.
QUALITIES: dict[str, tuple[str, int | None, Mapping[str, Any]]] = {
    "fast": ("sde-dpmpp-2m", 12, {"eta": 1.0}),
    "balanced": ("restart", None, {}),   # what the solver takes by itself
    "fine": ("restart", 50, {"eta": 2.0}),
    "reference": ("pc", None, {}),
}
DEFAULT_QUALITY = "balanced"


def defaults_of(option: str) -> dict[str, list[str]]:
    """The defaults of an option for people, and the solvers that have each."""
    defaults: dict[str, list[str]] = {}
    for name, solver in SOLVERS.items():
        if option in solver.options:
            defaults.setdefault(OPTIONS[option].shown(solver.options[option]), []).append(name)
    return defaults


class ModelDefaults(Protocol):
    """What a model says of sampling: :class:`sde_onnx.ModelMetadata`."""

    @property
    def schedule(self) -> VeSchedule:
        """Its noise levels."""

    @property
    def solver_options(self) -> Mapping[str, Any]:
        """Its own values of options that solvers leave to it."""


@dataclass(frozen=True)
class Sampling:
    """A request, resolved and checked: made by :func:`resolve`. It pickles."""

    solver: str                  # a key of SOLVERS
    steps: int | None            # from one noise level to the next; None of a solver that adapts them
    options: Mapping[str, Any]   # every option of the solver
    schedule: VeSchedule         # the model's noise levels

    @cached_property
    def plan(self) -> Plan | None:
        """The solver's plan; ``None`` of one that chooses its steps while it runs.

        Raises:
            InputError: options that together mean nothing.
        """
        return None if self.steps is None else self._function(self.schedule, self.steps, **self._arguments)

    @property
    def evaluations(self) -> int | None:
        """Network evaluations an image; ``None`` where that shows on the way."""
        return None if self.plan is None else len(self.plan.evaluations)

    @property
    def least_steps(self) -> int:
        """The fewest steps that the solver can take with these options."""
        return _least_steps(self.solver, self.options)

    @property
    def depends_on_batch(self) -> bool:
        """Whether an image depends on those that are sampled beside it."""
        norms = () if self.plan is None else (item.langevin.norm for item in self.plan.evaluations if item.langevin)
        return SOLVERS[self.solver].mixes_images or "batch" in norms

    @property
    def wrappers(self) -> tuple[str, ...]:
        """What stands around the score, by the names of :data:`sde_onnx.generate.sample.WRAPPERS`."""
        return tuple(wrapper for name, value in self.options.items() if value and (wrapper := _wrapper(name)))

    def check_model(self, model: ModelDefaults) -> None:
        """Refuses a model of other noise levels than the request was resolved for; ``InputError``."""
        if model.schedule != self.schedule:
            raise InputError(f"the request was resolved for a model of {self.schedule}, this one has {model.schedule}")

    def run(self, score: Score, noise: NoiseSource) -> Iterator[Step]:
        """Yields the steps, run on the host; nothing is computed before the first is asked for.

        Arguments and errors: :func:`sde_onnx.solvers.plan.run_evaluations`; the score has its wrappers around it.
        """
        from sde_onnx.solvers.plan import run

        if self.plan is not None:
            return run(self.plan, score, noise)
        steps: Iterator[Step] = self._function(score, noise, self.schedule, **self._arguments)
        return steps

    def to_json(self) -> dict[str, Any]:
        """Solver, steps and options as JSON values: all that an image depends on, but model and seed."""
        return {"solver": self.solver, "steps": self.steps, "options": dict(self.options)}

    def __str__(self) -> str:
        """For people: what differs from the solver's own defaults is named."""
        own = SOLVERS[self.solver].options
        changed = "".join(f" {name} {value}" for name, value in self.options.items() if value != own[name])
        steps = "adaptive steps" if self.steps is None else counted(self.steps, "step")
        if self.plan is not None and "restarts" in self.options and self.options["restarts"] is None:
            steps += f" with {counted(self.plan.restarts, 'restart')}"   # so many has the plan chosen
        return f"{self.solver}{changed}, {steps}"

    @property
    def _function(self) -> Callable[..., Any]:
        """The solver's, imported when it is needed: ``--help`` must not wait for numpy."""
        return function_named("solvers", SOLVERS[self.solver].function)

    @property
    def _arguments(self) -> dict[str, Any]:
        """Keyword arguments of the solver's function."""
        chosen = {name: value for name, value in self.options.items() if not _wrapper(name)}
        return chosen | dict(SOLVERS[self.solver].fixed)


def _wrapper(option: str) -> str | None:
    """What an option puts around the score, if it is one that does."""
    return getattr(OPTIONS[option], "wraps", None)


def function_named(room: str, name: str) -> Callable[..., Any]:
    """The function that a table names as ``MODULE.FUNCTION`` of a room of this package."""
    module, _, own = name.partition(".")
    function: Callable[..., Any] = getattr(import_module(f"sde_onnx.{room}.{module}"), own)
    return function


def resolve(
    model: ModelDefaults,
    *,
    quality: str | None = None,
    solver: str | None = None,
    steps: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Sampling:
    """Completes and checks what was asked for: once, and before anything is computed.

    Args:
        model: decides what solvers leave to it.
        quality: a key of QUALITIES: solver, steps and options, of which the caller's options replace its own.
        solver: a key of SOLVERS; that of DEFAULT_QUALITY if not given.
        steps: >= 1; the solver's own number, or the model's, if not given.
        options: of the solver, by name.

    Raises:
        InputError: a quality together with a solver or steps, an unknown name, an option that the solver does not have
            (names those that do), or a value out of its range.
        MissingExtraError: the solver needs a package that is not installed.
    """
    if not hasattr(model, "solver_options"):
        raise InputError(f"model is {one_line(model)}, expected a model's metadata: of a loaded one `.metadata`, of a "
                         "file sde_onnx.read_metadata")
    preset: Mapping[str, Any] = {}
    if quality is not None:
        chosen_solver, chosen_steps, preset = QUALITIES[checked_choice("quality", quality, QUALITIES)]
        if solver is not None or steps is not None:
            own = "".join(f", {name} {value}" for name, value in preset.items())
            count = _step_count(chosen_solver, model.schedule, chosen_steps, preset)
            raise InputError(f"a quality chooses the solver and its steps, {quality} has solver {chosen_solver}, "
                             f"{count} steps{own}: leave out solver and steps, or the quality")
        solver, steps = chosen_solver, chosen_steps
    solver = QUALITIES[DEFAULT_QUALITY][0] if solver is None else checked_choice("solver", solver, SOLVERS)
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise InputError(f"options is {one_line(options)}, expected a dictionary of the solver's options")
    if (require := SOLVERS[solver].requirement) is not None:
        require()
    chosen = _complete_options(solver, model.solver_options, {**preset, **options})
    sampling = Sampling(solver, _step_count(solver, model.schedule, steps, chosen), chosen, model.schedule)
    sampling.plan   # noqa: B018  # which is kept, and refuses options that together mean nothing
    return sampling


def _complete_options(solver: str, model_options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    own = SOLVERS[solver].options
    for name in given:
        if name not in own:
            owners = [other for other, candidate in SOLVERS.items() if name in candidate.options]
            whose = f"belongs to {', '.join(owners)}" if owners else "is unknown"
            shown = shown_name(name) if owners else name
            raise InputError(f"option {shown} {whose}; solver {solver} has {', '.join(map(shown_name, own))}")
    complete = {name: model_options[name] if default == MODEL else default for name, default in own.items()}
    return {name: OPTIONS[name].checked(name, value) for name, value in (complete | dict(given)).items()}


def _least_steps(name: str, options: Mapping[str, Any]) -> int:
    least: int = SOLVERS[name].least + (options.get("restarts") or 0) * options.get("restart_steps", 0)
    return least


def _step_count(name: str, schedule: VeSchedule, steps: int | None, options: Mapping[str, Any]) -> int | None:
    solver = SOLVERS[name]
    if solver.steps is None:
        if steps is not None:
            raise InputError(f"solver {name} chooses its steps by its tolerances: leave steps out")
        return None
    if steps is None:
        steps = schedule.num_scales if isinstance(solver.steps, str) else solver.steps
    least = _least_steps(name, options)
    restarts = " with these restarts" if least > solver.least else ""
    return checked_count("steps", steps, least=least, most=MOST_STEPS, hint=f" for solver {name}{restarts}")

"""The options of solvers: each one's name, range, unit and meaning, once.

The command line, its help and docs/solvers.md are made from this table. Defaults are a solver's own, in
:data:`sde_onnx.solvers.catalogue.SOLVERS`. Neither this module nor that one imports numpy: ``--help`` is quick.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from sde_onnx.checks import is_number
from sde_onnx.errors import InputError, one_line

__all__ = ["FLOW_TOLERANCE", "GUIDANCE", "LIKELIHOOD_STEPS", "OPTIONS", "PROBE_KINDS", "Choice", "Number", "Option",
           "Switch", "shown_name"]

# Of the probability flow, for codes and likelihoods; the commands show them in their help.
FLOW_TOLERANCE = 1e-5       # of a step, relative and absolute
LIKELIHOOD_STEPS = 32
GUIDANCE = 4.0   # weight of a classifier: docs/restoration.md has what it was chosen by
PROBE_KINDS = ("rademacher", "gaussian")   # signs, which have the least variance, or normals


@dataclass(frozen=True)
class Option(ABC):
    """What every option has: a flag on the command line, and help."""

    flag: str
    help: str

    @abstractmethod
    def checked(self, name: str, value: Any) -> Any:
        """Returns the value in its own type; ``InputError`` if the option cannot have it."""

    def shown(self, value: Any) -> str:
        """A value for people."""
        return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Number(Option):
    """A finite number."""

    least: float = 0.0
    most: float | None = None
    open: bool = False         # the least itself is refused
    whole: bool = False
    unset: str | None = None   # what None means, for an option that may be left without a value

    def checked(self, name: str, value: Any) -> float | None:
        if value is None and self.unset is not None:
            return None
        if not is_number(value, whole=self.whole) or value < self.least or (self.open and value == self.least) or (
                self.most is not None and value > self.most):
            raise InputError(f"{name} is {one_line(value)}, expected {self.wanted}")
        return int(value) if self.whole else float(value)

    @property
    def wanted(self) -> str:
        """The range for people."""
        limit = f"{'above' if self.open else 'of at least'} {self.least:g}"
        if self.most is not None:
            limit = f"of {self.least:g} to {self.most:g}"
        return f"a whole number {limit}" if self.whole else f"a number {limit}"

    def shown(self, value: Any) -> str:
        return str(self.unset) if value is None else super().shown(value)


@dataclass(frozen=True)
class Choice(Option):
    """One of several words."""

    choices: tuple[str, ...] = ()

    def checked(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in self.choices:
            raise InputError(f"{name} is {one_line(value)}, expected one of: {', '.join(self.choices)}")
        return str(value)


@dataclass(frozen=True)
class Switch(Option):
    """Yes or no."""

    wraps: str | None = None   # what it puts around the score, of generate.sample.WRAPPERS: not the solver's matter

    def checked(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise InputError(f"{name} is {one_line(value)}, expected true or false")
        return value

    def shown(self, value: Any) -> str:
        return "yes" if value is True else "no"


OPTIONS: dict[str, Option] = {
    "snr": Number("--snr", "The corrector's signal-to-noise ratio.", open=True),
    "n_corrector": Number("--corrector-steps", "Corrections a step.", whole=True, most=100),
    "predictor": Choice("--predictor", "The predictor.",
                        choices=("reverse_diffusion", "euler_maruyama", "ancestral", "none")),
    "corrector": Choice("--corrector", "The corrector: step sizes from norms, from sigma, or none.",
                        choices=("langevin", "ald", "none")),
    "probability_flow": Switch("--probability-flow", "Predict along the probability-flow ODE."),
    "langevin_norm": Choice("--langevin-norm",
                            "Norms of each image, or averaged over the batch as the reference does.",
                            choices=("image", "batch")),
    "schedule": Choice("--schedule", "How the noise levels are spaced.", choices=("karras", "geometric")),
    # Beyond the most the spacing is geometric, but for what the powers round.
    "rho": Number("--rho", "Of the karras schedule: the larger, the more steps at small sigma.", least=1.0,
                  most=1000.0),
    "eta": Number("--eta", "How much noise; 0 is none, 1 the reverse diffusion's."),
    "measure_noise": Switch("--measure-noise",
                            "Tell the network the noise that x has, measured, where it is well above sigma.",
                            wraps="measured-noise"),
    "rtol": Number("--rtol", "Relative tolerance of a step.", open=True),
    "atol": Number("--atol", "Absolute tolerance of a step.", open=True),
    "restarts": Number("--restarts", "How often the last steps are repeated, noise put in before. All are steps.",
                       whole=True, unset="as many as a third of the steps makes"),
    "restart_steps": Number("--restart-steps", "Steps of each repetition.", whole=True, least=1),
    "restart_min": Number("--restart-min", "Restarts begin after the noise level nearest to this sigma.", open=True),
    "restart_max": Number("--restart-max",
                          "Noise is put in up to this sigma, or up to the model's largest if that is less.", open=True),
    "churn": Number("--churn", "Noise put in, over all steps."),
    "churn_min": Number("--churn-min", "Noise is put in from this sigma on."),
    "churn_max": Number("--churn-max", "Noise is put in up to this sigma.", unset="none"),
    "churn_noise": Number("--churn-noise", "Standard deviation of that noise."),
}


def shown_name(name: str) -> str:
    """An option for people: its name, and its flag where that has other words."""
    flag = OPTIONS[name].flag
    return name if flag == "--" + name.replace("_", "-") else f"{name} ({flag})"

"""Methods of restoration, by name.

A method is a file of this package and a line in METHODS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sde_onnx.checks import checked_choice
from sde_onnx.errors import InputError
from sde_onnx.solvers.options import Number, Option

__all__ = ["METHODS", "METHOD_OPTIONS", "SOLVER", "Method", "default_method", "options_of"]

SOLVER = "sde-dpmpp-2m"   # if neither a solver nor a quality is asked for: what the methods were measured with


@dataclass(frozen=True)
class Method:
    """A way to sample images that agree with a measurement, under its name in METHODS."""

    about: str                       # one line for people
    function: str                    # MODULE.FUNCTION of this package: wraps the score, or is a loop of its own
    options: Mapping[str, Any] = field(default_factory=dict)   # keys of METHOD_OPTIONS, with their defaults
    needs_gradient: bool = False     # whether it takes vector-Jacobian products
    is_loop: bool = False            # whether it runs in place of the solver's loop: then it needs a plan
    product_for: str = "an evaluation"   # or "a step": what products are taken for, if there are any
    levels_only: bool = False        # whether it is such a loop that takes the solver's noise levels and nothing else


METHOD_OPTIONS: dict[str, Option] = {
    "iterations": Number("--iterations", "GMRES iterations a network evaluation, a vector-Jacobian product each.",
                         whole=True, least=1),
    "damping": Number("--damping", "How much of a noisy measurement is left to the network: lambda.", open=True),
    "zeta": Number("--zeta", "How far x goes towards the measurement in a step, data units.", open=True),
    "ode_steps": Number("--ode-steps", "Network evaluations for an estimate at each noise level.", whole=True, least=1),
    "spread": Number("--spread", "Spread of the draw around the estimate, in sigma.", open=True),
}
METHODS = {
    "null-space": Method("puts right what is measured; needs no gradient", "null_space.null_space", {"damping": 1.0}),
    "posterior": Method("moment matching: the measurement tells of the rest by the network's own covariance",
                        "posterior.posterior", {"iterations": 2}, needs_gradient=True),
    "dps": Method("a gradient step towards the measurement, for many steps", "dps.dps", {"zeta": 0.5},
                  needs_gradient=True, is_loop=True, product_for="a step"),
    "daps": Method("draws around estimates, a noise level at a time", "daps.daps", {"ode_steps": 4, "spread": 1.0},
                   is_loop=True, levels_only=True),
    "replacement": Method("the paper's: what is measured is replaced after every update", "replacement.replacement",
                          is_loop=True),
}


def default_method(*, has_gradient: bool) -> str:
    """The method that is best where there is a gradient file, or where there is none: docs/restoration.md."""
    return "posterior" if has_gradient else "null-space"


def options_of(method: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits options into those of a method, completed and checked, and the rest, which are the solver's.

    Raises:
        InputError: an unknown method, an option of another method, or a value out of its range.
    """
    checked_choice("method", method, METHODS)
    own = METHODS[method].options
    for name in given:
        if name in METHOD_OPTIONS and name not in own:
            owners = [other for other, candidate in METHODS.items() if name in candidate.options]
            raise InputError(f"option {name} belongs to {', '.join(owners)}; method {method} has "
                             f"{', '.join(own) or 'no options'}")
    complete = dict(own) | {name: value for name, value in given.items() if name in own}
    return ({name: METHOD_OPTIONS[name].checked(name, value) for name, value in complete.items()},
            {name: value for name, value in given.items() if name not in METHOD_OPTIONS})

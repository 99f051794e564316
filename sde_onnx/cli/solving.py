"""The options of solvers on the command line. tests/test_cli.py holds their names to those of the solvers' table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["QUALITY_NAMES", "SOLVER_NAMES", "solver_options"]

# Written here once more, since --help must not wait for numpy.
QUALITY_NAMES = ("fast", "balanced", "reference")
SOLVER_NAMES = ("pc", "ancestral", "sde-dpmpp-2m", "sde-dpmpp-3m", "dpmpp-2m", "dpmpp-3m", "heun", "rk45",
                "adaptive-sde", "stochastic-heun")

OPTIONS = (
    click.option("--snr", type=float, show_default="the model's", help="pc: the corrector's signal-to-noise ratio."),
    click.option("--corrector-steps", "n_corrector", type=click.IntRange(min=0), show_default="the model's",
                 help="pc: corrections a step."),
    click.option("--predictor", type=click.Choice(["reverse_diffusion", "euler_maruyama", "ancestral", "none"]),
                 show_default="reverse_diffusion", help="pc: the predictor."),
    click.option("--corrector", type=click.Choice(["langevin", "ald", "none"]), show_default="langevin",
                 help="pc: the corrector."),
    click.option("--probability-flow", is_flag=True, default=None, help="pc: predict along the probability-flow ODE."),
    click.option("--langevin-norm", type=click.Choice(["image", "batch"]), show_default="image",
                 help="pc: norms of each image, or averaged over the batch as the reference does."),
    click.option("--schedule", type=click.Choice(["karras", "geometric"]), show_default="the solver's",
                 help="All but pc and the adaptive ones: how the noise levels are spaced."),
    click.option("--rho", type=click.FloatRange(min=1), show_default="7", help="With it: of the karras schedule."),
    click.option("--eta", type=click.FloatRange(min=0), show_default="2, sde-dpmpp-3m 1",
                 help="sde-dpmpp: how much noise; 0 is none, 1 the reverse diffusion's."),
    click.option("--measure-noise", is_flag=True, default=None,
                 help="dpmpp and heun: tell the network the noise that x has, measured, where it is well above sigma."),
    click.option("--rtol", type=click.FloatRange(min=0, min_open=True), show_default="the solver's",
                 help="rk45, adaptive-sde: relative tolerance of a step."),
    click.option("--atol", type=click.FloatRange(min=0, min_open=True), show_default="the solver's",
                 help="rk45, adaptive-sde: absolute tolerance of a step."),
    click.option("--churn", type=click.FloatRange(min=0), show_default="40",
                 help="stochastic-heun: noise put in, over all steps."),
    click.option("--churn-min", type=click.FloatRange(min=0), show_default="0",
                 help="stochastic-heun: from this sigma on."),
    click.option("--churn-max", type=click.FloatRange(min=0), show_default="none",
                 help="stochastic-heun: up to this sigma."),
    click.option("--churn-noise", type=click.FloatRange(min=0), show_default="1",
                 help="stochastic-heun: standard deviation of that noise."),
)


def solver_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of all solvers to a command; whether they go with the chosen one, the solver says."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command

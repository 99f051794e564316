"""What README and docs/quality.md say of quality and cost, from what quality.py and evaluations.py have written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sde_onnx.solvers.catalogue import DEFAULT_QUALITY, MODEL, QUALITIES, SOLVERS

from plots import OURS_FP32, quality_name

__all__ = ["evaluations_of", "headline_section", "is_quality", "qualities_section", "restarts_section",
           "second_section", "tried_section"]

NETWORK = "256"          # whose seconds an image are shown
MODEL_STEPS = 2000       # of the models of that size, and what diffusers takes by itself
DIFFUSERS_EVALUATIONS = 2 * MODEL_STEPS
FIGURES = ["Fréchet distance", "recognised", "noise left"]

Row = dict[str, Any]


def headline_section(headline: dict[str, Any]) -> str:
    """The README's first numbers: how long an image of 256x256 takes."""
    eager, ours, about = _seconds(headline)
    times = ", ".join(f"**{_span(evaluations_of(name) * ours['median'])}** with `--quality {name}`"
                      f"{' (the default)' if name == DEFAULT_QUALITY else ''}" for name in reversed(QUALITIES))
    return "\n".join([
        f"A 256x256 image on {about['cores']} cores ({about['cpu']}): "
        f"**{_span(DIFFUSERS_EVALUATIONS * eager['median'])}** in diffusers as it comes, {times}: evaluations, times "
        "the seconds of one."])


def qualities_section(quality: dict[str, Any], headline: dict[str, Any]) -> str:
    """The table of the qualities: seconds an image at 256x256, and the figures of the bundled digits."""
    eager, ours, about = _seconds(headline)
    lines = [_header("", "evaluations", "s an image, 256²", *FIGURES),
             _line("diffusers as it comes", f"{DIFFUSERS_EVALUATIONS:,}",
                   f"{DIFFUSERS_EVALUATIONS * eager['median']:,.0f}", "", "", "")]
    for name in reversed(QUALITIES):
        row = next(row for row in quality["rows"] if is_quality(row, name, quality["model_steps"]))
        default = ", the default" if name == DEFAULT_QUALITY else ""
        lines.append(_line(f"`--quality {name}`{default}", f"{evaluations_of(name):,}",
                           f"{evaluations_of(name) * ours['median']:,.0f}", *_figures(row)))
    return "\n".join([
        *lines, "",
        f"Seconds: evaluations, times one evaluation of a 66 M network on {about['cores']} cores ({about['cpu']}):",
        f"{eager['median']:.2f} s in diffusers, {ours['median']:.2f} s here, in turns in one run (medians of "
        f"{len(ours['seconds'])}; [`headline.json`](benchmarks/results/headline.json)).",
        "The other figures: the bundled digits ([`quality.json`](benchmarks/results/quality.json)), whose `reference` "
        f"has {quality['model_steps']:,} steps."])


def _seconds(headline: dict[str, Any]) -> tuple[Row, Row, dict[str, Any]]:
    """What was measured of diffusers and of ours, and on what."""
    [timed] = [row for row in headline["rows"] if row["network"] == NETWORK]
    return timed["subjects"][timed["reference"]], timed["subjects"][OURS_FP32], timed["environment"]


def evaluations_of(name: str) -> int:
    """Evaluations an image of a quality, on a model of 256x256."""
    solver, steps, _ = QUALITIES[name]
    count = steps or SOLVERS[solver].steps
    return DIFFUSERS_EVALUATIONS if isinstance(count, str) else int(count or 0)


def _span(seconds: float) -> str:
    """A time for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"


def tried_section(quality: dict[str, Any]) -> str:
    """Everything that was tried on one model, by evaluations."""
    rows = sorted(quality["rows"], key=lambda row: (row["nfe"], row["solver"]))
    return "\n".join([
        _header("", "evaluations", "images", *FIGURES, "classes off"),
        *(_line(_label(row, quality), f"{row['nfe']:.0f}", str(row["images"]), *_figures(row),
                f"{row['class_distance']:.3f}") for row in rows),
        *(_line(title, "", str(quality["images"]), *_figures(quality[key]), f"{quality[key]['class_distance']:.3f}")
          for key, title in (("real", "the model's training images"), ("unseen", "real images that it has not seen"))),
    ])


def second_section(second: dict[str, Any] | None) -> str:
    """The same of the second model, if it has been measured."""
    return "Not measured yet." if second is None else tried_section(second)


def restarts_section(quality: dict[str, Any]) -> str:
    """Points with restarts beside the same solver without, at as many evaluations."""
    lines = [_header("", "evaluations", "", *FIGURES)]
    for row in sorted(quality["rows"], key=lambda row: (row["nfe"], row["solver"])):
        if row["solver"].startswith("restart"):
            lines.append(_line(quality_name(row), f"{row['nfe']:.0f}", "with", *_figures(row)))
            if (plain := _without_restarts(row, quality["rows"])) is not None:
                lines.append(_line("", "", "without", *_figures(plain)))
    return "\n".join(lines)


def is_quality(row: Row, name: str, model_steps: int) -> bool:
    """Whether a point is a quality of the command line, on a model of so many steps."""
    solver, steps, options = QUALITIES[name]
    count = steps or SOLVERS[solver].steps
    return row["solver"] == solver and row["steps"] == (model_steps if count == MODEL else count) and (
        _complete(solver, row["options"]) == _complete(solver, options))


def _complete(solver: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {**SOLVERS[solver].options, **options}


def _without_restarts(row: Row, rows: list[Row]) -> Row | None:
    """The point of as many evaluations and as much noise, without restarts."""
    plain = {"restart": "sde-dpmpp-2m", "restart-heun": "heun"}[row["solver"]]
    eta = _complete(row["solver"], row["options"]).get("eta")
    return next((other for other in rows if other["solver"] == plain and round(other["nfe"]) == round(row["nfe"])
                 and _complete(plain, other["options"]).get("eta") == eta), None)


def _label(row: Row, quality: dict[str, Any]) -> str:
    names = [name for name in QUALITIES if is_quality(row, name, quality["model_steps"])]
    known = quality_name(row) if row["solver"] in SOLVERS else row["solver"]   # else a variant, under its own words
    return "".join(f"**{name}**: " for name in names) + known


def _figures(row: Row) -> list[str]:
    return [f"{row['frechet']:.3f} ± {row['frechet_standard_error']:.3f}", f"{row['recognised']:.3f}",
            f"{row['grain']:.1f} / {row['grain_90']:.1f}"]


def _header(*names: str) -> str:
    return f"{_line(*names)}\n{_line(*len(names) * ['---'])}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"

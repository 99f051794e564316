"""Writes the README's benchmark sections and their plots from the committed results.

    python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sde_onnx.solvers import QUALITIES, SOLVERS

from environment import RESULTS, ROOT

README = ROOT / "README.md"
PLOT, QUALITY_PLOT = ROOT / "docs" / "cpu.png", ROOT / "docs" / "quality.png"
CPU_MARKS, BF16_MARKS, QUALITY_MARKS = (
    (f"<!-- {name} -->", f"<!-- /{name} -->") for name in ("cpu", "bf16", "quality")
)
TITLES = {"digits": "digits 16²", "32": "32², 62 M", "256": "256², 66 M", "1024": "1024², 106 M"}
OURS = "sde-onnx"


def cpu_section(cpu: dict[str, Any], loop: dict[str, Any]) -> str:
    """The README's text on the speed of CPUs, from what evaluations.py and loop.py have written."""
    rows = cpu["rows"]
    about = rows[-1]["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    shares = "; ".join(f"{row['network']} at batch {row['batch_size']}, {row['provider']} {row['precision']}: "
                       f"{100 * row['loop_share']:.1f}%" for row in loop["rows"])
    return "\n".join([
        f"`make bench-full` on {about['cores']} cores ({about['cpu']}, {', '.join(about['cpu_features'])}; "
        f"{versions}). Times faster",
        "than diffusers' module in eager PyTorch float32 at batch 1, and in parentheses the largest relative error "
        "against it over",
        "three noise levels:",
        "",
        *_table(rows, 1, _speed),
        "",
        "At batch 4:",
        "",
        *_table(rows, 4, _speed),
        "",
        "Highest resident memory while evaluating, batch 1, in MB:",
        "",
        *_table(rows, 1, lambda subject, _: f"{subject['peak_mb']:.0f}"),
        "",
        f"Of a sampling run the loop outside the network takes ({shares}).",
        "",
        "![How many times faster than eager PyTorch](docs/cpu.png)",
        "",
        "Raw samples: [`benchmarks/results/cpu.json`](benchmarks/results/cpu.json), "
        "[`benchmarks/results/loop.json`](benchmarks/results/loop.json).",
    ])


def bf16_section(result: dict[str, Any]) -> str:
    """The README's text on what bfloat16 does to pictures, from what benchmarks/precision.py has written."""
    recognised, to_real, others = (result[key] for key in ("recognised", "frechet_to_real", "frechet_to_other_seeds"))
    return "\n".join([
        f"| {result['images']} images, {result['solver']}, {result['steps']} steps | float32 | bfloat16 |",
        "| --- | --- | --- |",
        f"| Fréchet distance to the float32 images of the same seeds | 0 | {result['frechet_bf16_fp32']:.3f} |",
        f"| Fréchet distance of half of them to the float32 images of the other half's seeds | "
        f"{others['fp32']:.3f} | {others['bf16']:.3f} |",
        f"| Fréchet distance to real digits | {to_real['fp32']:.2f} | {to_real['bf16']:.2f} |",
        f"| recognised with p > 0.9 (real digits: {recognised['real']:.2f}) | {recognised['fp32']:.2f} | "
        f"{recognised['bf16']:.2f} |",
        f"| the same digit as in float32 | 1 | {result['same_class']:.3f} |",
        "",
        f"The judge is a classifier trained on digits that the model has not seen; of real ones it names "
        f"{100 * result['judge_accuracy_on_real']:.0f}% rightly. Pixels differ",
        f"by {result['mean_difference_of_255']:.1f} of 255 on average.",
    ])


def quality_section(result: dict[str, Any]) -> str:
    """The README's text on what solvers cost and lose, from what benchmarks/quality.py has written."""
    rows = sorted(result["rows"], key=lambda row: row["nfe"])
    return "\n".join([
        f"| {result['images']} images each | evaluations | s an image | Fréchet distance | recognised | classes off |",
        "| --- | --- | --- | --- | --- | --- |",
        *(f"| {_preset(row)}{_quality_name(row)} | {row['nfe']:.0f} | {row['seconds_an_image']:.3g} | "
          f"{_frechet(row)} | {row['recognised']:.3f} | {row['class_distance']:.3f} |" for row in rows),
        *(f"| {title} |  |  | {_frechet(result[key])} | {result[key]['recognised']:.3f} | "
          f"{result[key]['class_distance']:.3f} |"
          for key, title in (("real", "the model's training digits, as many"),
                             ("unseen", "real digits that it has not seen, as many"))),
        "",
        f"Fréchet distance: to {result['compared_with']} of its training digits, of {result['part']} images at a time, "
        "the mean and its standard error;",
        f"in the features of {result['judges']} classifiers trained on digits that the model has not seen, in units of "
        "their deviations.",
        "Recognised: the classifiers are sure of a digit, p > 0.9. Classes off: the share of images that would have to",
        "show another digit for all ten to be as frequent as in real ones. Seconds on "
        f"{result['environment']['cores']} cores ({result['environment']['cpu']}).",
    ])


def _preset(row: dict[str, Any]) -> str:
    """Which of the command line's qualities a point is, if it is one."""
    for name, (solver, steps, options) in QUALITIES.items():
        count = SOLVERS[solver].steps if steps is None else steps   # None is the model's own number
        if (row["solver"], row["options"]) == (solver, options) and (
                row["model_steps"] if count is None else row["steps"] == count):
            return f"**{name}**: "
    return ""


def _quality_name(row: dict[str, Any]) -> str:
    options = "".join(f" `--{name.replace('_', '-')}{'' if value is True else f' {value}'}`"
                      for name, value in row["options"].items())
    return f"`{row['solver']}`{options}"


def _frechet(row: dict[str, Any]) -> str:
    return f"{row['frechet']:.3f} ± {row['frechet_standard_error']:.3f}"


def replaced(text: str, marks: tuple[str, str], section: str) -> str:
    """The text with what stands between the marks replaced."""
    start, end = text.index(marks[0]) + len(marks[0]), text.index(marks[1])
    return f"{text[:start]}\n{section}\n{text[end:]}"


def _table(rows: list[dict[str, Any]], batch: int, cell: Any) -> list[str]:
    chosen = [row for row in rows if row["batch"] == batch]
    names = list(dict.fromkeys(name for row in chosen for name in row["subjects"]))
    lines = ["| | " + " | ".join(TITLES[row["network"]] for row in chosen) + " |", "| --- |" + " --- |" * len(chosen)]
    for name in names:
        cells = [_cell(row, name, cell) for row in chosen]
        lines.append(f"| {f'**{name}**' if name.startswith(OURS) else name} | " + " | ".join(cells) + " |")
    return lines


def _cell(row: dict[str, Any], name: str, cell: Any) -> str:
    subject = row["subjects"].get(name)
    if subject is None:
        return ""
    return subject["failure"] if subject.get("failure") else cell(subject, name == row["reference"])


def _speed(subject: dict[str, Any], is_reference: bool) -> str:
    if is_reference:
        return f"{subject['median']:.3g} s"
    return f"{subject['ratio']:.2f}x ({max(subject['errors'].values()):.0e})"


def plot(cpu: dict[str, Any], path: Path) -> None:
    """Draws the ratios at batch 1: a group of bars for each network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in cpu["rows"] if row["batch"] == 1]
    names = [name for name in rows[0]["subjects"] if name != rows[0]["reference"]]
    colours = {name: plt.get_cmap("Blues" if name.startswith(OURS) else "Greys")(0.35 + 0.12 * index)
               for index, name in enumerate(names)}
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    width = 0.85 / len(names)
    for index, name in enumerate(names):
        found = [(place, row["subjects"][name]["ratio"]) for place, row in enumerate(rows)
                 if "ratio" in row["subjects"].get(name, {})]
        bars = axes.bar([place + (index - (len(names) - 1) / 2) * width for place, _ in found],
                        [value for _, value in found], width, label=name, color=colours[name])
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [TITLES[row["network"]] for row in rows])
    axes.set_ylabel("times faster than diffusers eager fp32")
    axes.set_title(f"One network evaluation, batch 1, {rows[0]['environment']['cores']} cores")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)


def plot_quality(result: dict[str, Any], path: Path) -> None:
    """Draws the Fréchet distance against evaluations: a line for each solver with its options."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(result["rows"], key=lambda row: row["nfe"]):
        curves.setdefault(_quality_name(row).replace("`", ""), []).append(row)
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for index, (name, rows) in enumerate(curves.items()):
        is_reference = rows[0]["solver"] == result["reference"]
        axes.errorbar([row["nfe"] for row in rows], [row["frechet"] for row in rows],
                      [row["frechet_standard_error"] for row in rows], marker="o", markersize=4, capsize=2, label=name,
                      color="black" if is_reference else plt.get_cmap("tab20")(index % 20),
                      linestyle="--" if rows[0]["options"] else "-")
    best = max((row for row in result["rows"] if row["solver"] == result["reference"]), key=lambda row: row["nfe"])
    middle, error = best["frechet"], best["frechet_standard_error"]
    axes.axhspan(middle - error, middle + error, color="black", alpha=0.1, linewidth=0,
                 label=f"{best['solver']} at {best['nfe']:.0f} evaluations")
    axes.axhline(result["real"]["frechet"], color="grey", linewidth=0.8, linestyle=":", label="its training digits")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("network evaluations an image")
    axes.set_ylabel("Fréchet distance to real digits")
    axes.set_title(f"Bundled digits, {result['images']} images a point")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)


def main() -> None:
    text = README.read_text(encoding="utf-8")
    for marks, write, names in SECTIONS:
        text = replaced(text, marks, write(*(json.loads((RESULTS / name).read_text()) for name in names)))
    README.write_text(text, encoding="utf-8")
    plot(json.loads((RESULTS / "cpu.json").read_text()), PLOT)
    plot_quality(json.loads((RESULTS / "quality.json").read_text()), QUALITY_PLOT)


# What stands between which marks, and the result files that it is written from.
SECTIONS = [
    (CPU_MARKS, cpu_section, ["cpu.json", "loop.json"]),
    (BF16_MARKS, bf16_section, ["bf16.json"]),
    (QUALITY_MARKS, quality_section, ["quality.json"]),
]


if __name__ == "__main__":
    main()

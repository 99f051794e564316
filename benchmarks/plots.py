"""The documentation's plots, and how tables and plots call what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from samples import Samples

__all__ = ["OURS", "OURS_FP32", "TITLES", "method_name", "plot_qualities", "plot_quality", "plot_restoration",
           "plot_speed", "quality_name"]

TITLES = {"digits": "digits 16²", "32": "32², 62 M", "256": "256², 66 M", "1024": "1024², 106 M"}
OURS = "sde-onnx"
OURS_FP32 = "sde-onnx fp32"
FIGURES = {"frechet": "Fréchet distance to real images", "recognised": "recognised",
           "grain_90": "noise left, 90th percentile, of 255"}
LARGEST_ETA = 6.0
PLOTTED: dict[str, dict[str, Any]] = {   # how the solvers are drawn; those without a colour are coloured by eta
    "pc": {"marker": "s", "color": "black"}, "heun": {"marker": "x", "color": "tab:red"},
    "dpmpp-2m": {"marker": "+", "color": "tab:orange"}, "ancestral": {"marker": "v", "color": "tab:pink"},
    "sde-dpmpp-2m": {"marker": "o"}, "restart": {"marker": "^", "linestyle": "--"},
}
MATRIX_UNITS = "amx_bf16"   # the feature of a processor


def quality_name(row: dict[str, Any]) -> str:
    """A solver with the options that differ from its own."""
    options = "".join(f" `--{name.replace('_', '-')}{'' if value is True else f' {value}'}`"
                      for name, value in row["options"].items())
    return f"`{row['solver']}`{options}"


def method_name(row: dict[str, Any]) -> str:
    """A method of restoration with its options and its solver."""
    options = "".join(f" --{name.replace('_', '-')} {value:g}" for name, value in row["options"].items())
    return f"{row['method']}{options}, {row['solver']} {row['steps']}"


def plot_restoration(result: dict[str, Any], path: Path) -> None:
    """Draws PSNR against seconds an image: a panel for each task, a row of them for each noise."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, seconds = result["rows"], result["seconds_an_image"]
    tasks, noises = (list(dict.fromkeys(row[key] for row in rows)) for key in ("operator", "noise"))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, panels = plt.subplots(len(noises), len(tasks), figsize=(2.6 * len(tasks), 2.6 * len(noises)),
                                  layout="constrained", sharex=True, squeeze=False)
    for noise, line in zip(noises, panels, strict=True):
        for task, axes in zip(tasks, line, strict=True):
            for index, method in enumerate(methods):
                found = [row for row in rows if (row["operator"], row["noise"], row["method"]) == (task, noise, method)]
                axes.errorbar([seconds[method_name(row)] for row in found], [row["psnr"] for row in found],
                              [row["psnr_standard_error"] for row in found], fmt="o", markersize=4, capsize=2,
                              label=method, color=plt.get_cmap("tab10")(index))
            axes.set_xscale("log")
            axes.set_title(f"{task}, noise {noise:g}", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(fontsize=6, frameon=False)
    figure.supxlabel("seconds an image", fontsize=8)
    figure.supylabel("PSNR of one sample, dB", fontsize=8)
    figure.savefig(path, dpi=130)


def plot_speed(cpu: dict[str, Any], amx: dict[str, Any] | None, path: Path) -> None:
    """Draws the ratios at batch 1: a group of bars for each network, a panel for each of the two runs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = [run["rows"] for run in (cpu, amx) if run is not None]
    figure, panels = plt.subplots(len(runs), figsize=(9, 3.7 * len(runs)), layout="constrained", squeeze=False)
    for axes, rows in zip(panels[:, 0], runs, strict=True):
        _draw_ratios(axes, [row for row in rows if row["batch"] == 1])
    panels[0, 0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)


def _draw_ratios(axes: Any, rows: list[dict[str, Any]]) -> None:
    from matplotlib import colormaps

    names = [name for name in rows[0]["subjects"] if name != rows[0]["reference"]]
    width = 0.85 / len(names)
    for index, name in enumerate(names):
        found = [(place, row["subjects"][name]["ratio"]) for place, row in enumerate(rows)
                 if "ratio" in row["subjects"].get(name, {})]
        bars = axes.bar([place + (index - (len(names) - 1) / 2) * width for place, _ in found],
                        [value for _, value in found], width, label=name,
                        color=colormaps["Blues" if name.startswith(OURS) else "Greys"](0.35 + 0.12 * index))
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [TITLES[row["network"]] for row in rows])
    axes.set_ylabel("times faster than diffusers eager fp32")
    about = rows[0]["environment"]
    units = "with" if MATRIX_UNITS in about["cpu_features"] else "without"
    axes.set_title(f"One network evaluation, batch 1, {about['cores']} cores {units} matrix units (AMX)")
    axes.spines[["top", "right"]].set_visible(False)


def plot_quality(runs: list[dict[str, Any]], path: Path) -> None:
    """Draws what solvers lose against evaluations: a panel for each figure, a column for each model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(len(FIGURES), len(runs), figsize=(1.5 + 4 * len(runs), 8), layout="constrained",
                                  sharex=True, squeeze=False)
    for column, run in zip(panels.T, runs, strict=True):
        column[0].set_title(f"{run['data']}, 16x16", fontsize=9)
        for axes, (key, label) in zip(column, FIGURES.items(), strict=True):
            _draw_quality(axes, run, key)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xscale("log")
            if axes in panels[:, 0]:
                axes.set_ylabel(label, fontsize=8)
    for axes in panels[0]:
        axes.set_yscale("symlog", linthresh=0.2, linscale=1.5)   # even around 0, where the best are
        axes.set_yticks([0, 0.05, 0.1, 0.15, 0.2, 0.5, 1], ["0", "0.05", "0.1", "0.15", "0.2", "0.5", "1"])
    for axes in panels[2]:
        axes.set_yscale("log")
        axes.set_yticks([5, 10, 20, 50], ["5", "10", "20", "50"])
        axes.minorticks_off()
    figure.supxlabel("network evaluations an image", fontsize=8)
    handles = {label: handle for axes in panels[0] for handle, label in zip(*axes.get_legend_handles_labels(),
                                                                          strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize=7, frameon=False, loc="outside right upper")
    figure.savefig(path, dpi=130)


def plot_qualities(samples: dict[str, Samples], path: Path) -> None:
    """Draws the images of the same seeds, a row for each quality."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(len(samples), figsize=(9, 0.62 * len(samples)), layout="constrained")
    for axes, (name, held) in zip(rows, samples.items(), strict=True):
        axes.imshow(np.concatenate(list(held.pixels), axis=1), interpolation="nearest")
        axes.set_ylabel(f"{name}\n{held.nfe:.0f}", fontsize=8, rotation=0, ha="right", va="center")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=150)


def _draw_quality(axes: Any, run: dict[str, Any], key: str) -> None:
    """A line for each solver with its options; error bars where the figure has them."""
    from matplotlib import colormaps

    curves: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(run["rows"], key=lambda row: row["nfe"]):
        if row["solver"] in PLOTTED and not set(row["options"]) - {"eta"}:
            curves.setdefault(quality_name(row).replace("`", ""), []).append(row)
    for name, rows in curves.items():
        solver, eta = rows[0]["solver"], rows[0]["options"].get("eta", 0.0)
        errors = [row[f"{key}_standard_error"] for row in rows] if f"{key}_standard_error" in rows[0] else None
        axes.errorbar([row["nfe"] for row in rows], [row[key] for row in rows], errors, label=name, markersize=4,
                      capsize=2, linewidth=1, **PLOTTED[solver],
                      **({} if "color" in PLOTTED[solver] else {"color": colormaps["viridis_r"](eta / LARGEST_ETA)}))
    axes.axhline(run["real"][key], color="grey", linewidth=0.8, linestyle=":", label="its training images")

"""The documentation's plots, and how tables and plots call what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["LINE_TO_BEAT", "OURS", "TITLES", "method_name", "plot_quality", "plot_restoration", "plot_speed",
           "quality_name"]

TITLES = {"digits": "digits 16²", "32": "32², 62 M", "256": "256², 66 M", "1024": "1024², 106 M"}
OURS = "sde-onnx"
LINE_TO_BEAT = 2000   # evaluations of the reference that cheap solvers are held against
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


def plot_quality(result: dict[str, Any], path: Path) -> None:
    """Draws the Fréchet distance against evaluations: a line for each solver with its options."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(result["rows"], key=lambda row: row["nfe"]):
        curves.setdefault(quality_name(row).replace("`", ""), []).append(row)
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for index, (name, rows) in enumerate(curves.items()):
        is_reference = rows[0]["solver"] == result["reference"]
        axes.errorbar([row["nfe"] for row in rows], [row["frechet"] for row in rows],
                      [row["frechet_standard_error"] for row in rows], marker="o", markersize=4, capsize=2, label=name,
                      color="black" if is_reference else plt.get_cmap("tab20")(index % 20),
                      linestyle="--" if rows[0]["options"] else "-")
    [line] = [row for row in result["rows"] if (row["solver"], row["nfe"]) == (result["reference"], LINE_TO_BEAT)]
    middle, error = line["frechet"], line["frechet_standard_error"]
    axes.axhspan(middle - error, middle + error, color="black", alpha=0.1, linewidth=0,
                 label=f"{line['solver']} at {line['nfe']:.0f} evaluations")
    axes.axhline(result["real"]["frechet"], color="grey", linewidth=0.8, linestyle=":", label="its training digits")
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=0.2, linscale=1.5)   # even around 0, where the best are
    axes.set_yticks([0, 0.05, 0.1, 0.15, 0.2, 0.5, 1], ["0", "0.05", "0.1", "0.15", "0.2", "0.5", "1"])
    axes.set_xlabel("network evaluations an image")
    axes.set_ylabel("Fréchet distance to real digits")
    axes.set_title("Bundled digits")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)

"""Writes the benchmark sections of README and docs from the committed results, and their plots (plots.py).

    python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plots import OURS, OURS_FP32, TITLES, method_name, plot_quality, plot_restoration, plot_speed
from quality_page import (
    evaluations_of,
    headline_section,
    qualities_section,
    restarts_section,
    second_section,
    tried_section,
)

from sde_onnx.solvers.catalogue import DEFAULT_QUALITY

from environment import RESULTS, ROOT

README = ROOT / "README.md"
PERFORMANCE_PAGE, CODES_PAGE, GRADIENT_PAGE, LIKELIHOOD_PAGE = (
    ROOT / "docs" / f"{name}.md" for name in ("performance", "codes", "gradients", "likelihood"))
PLOT, QUALITY_PLOT = ROOT / "docs" / "cpu.png", ROOT / "docs" / "quality.png"
QUALITY_PAGE = ROOT / "docs" / "quality.md"
EMBEDDING_PAGE = ROOT / "docs" / "embedding.md"
RESTORATION_PAGE, RESTORATION_PLOT = ROOT / "docs" / "restoration.md", ROOT / "docs" / "restoration.png"


def speed_section(cpu: dict[str, Any]) -> str:
    """The README's table of speed: an image, an evaluation, how exact."""
    rows = [row for row in cpu["rows"] if row["batch"] == 1]
    evaluations = evaluations_of(DEFAULT_QUALITY)
    lines = [f"| | s an image, {evaluations} evaluations | diffusers' evaluation, ms | ours, ms | times faster | "
             "relative error |", "| --- |" + " --- |" * 5]
    for row in rows:
        eager, ours = row["subjects"][row["reference"]], row["subjects"][OURS_FP32]
        lines.append(f"| {TITLES[row['network']]} | {evaluations * ours['median']:.3g} | {_milliseconds(eager)} | "
                     f"{_milliseconds(ours)} | {ours['ratio']:.2f} | {max(ours['errors'].values()):.0e} |")
    about = rows[-1]["environment"]
    return "\n".join([
        *lines, "",
        f"Batch 1 on {about['cores']} cores ({about['cpu'].replace('(R)', '')}), eager PyTorch float32 against ONNX "
        "Runtime's CPU provider, in turns",
        "in one run: medians, and from least to most. The error is that of the score against diffusers' module, the "
        "largest of three",
        "noise levels. Half precision, `torch.compile`, memory: [performance](docs/performance.md)."])


def _milliseconds(subject: dict[str, Any]) -> str:
    median, least, most = (1e3 * value for value in (subject["median"], min(subject["seconds"]),
                                                     max(subject["seconds"])))
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    return f"{median:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f})"


def cpu_section(cpu: dict[str, Any], loop: dict[str, Any], amx: dict[str, Any] | None) -> str:
    """The page's text on the speed of CPUs, from what evaluations.py and loop.py have written.

    ``amx`` is a run on a processor with matrix units, shown beside one without.
    """
    rows = cpu["rows"]
    return "\n".join([
        f"`make bench-full` on {_machine(rows)}. Times faster",
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
        *([] if amx is None else _with_matrix_units(amx["rows"])),
        "Share of a sampling run outside the network:",
        "",
        *_shares(loop["rows"]),
        "",
        "![How many times faster than eager PyTorch](cpu.png)",
        "",
        "Raw samples: [`benchmarks/results/cpu.json`](../benchmarks/results/cpu.json), "
        "[`benchmarks/results/loop.json`](../benchmarks/results/loop.json)"
        + ("." if amx is None else ", [`benchmarks/results/cpu_amx.json`](../benchmarks/results/cpu_amx.json)."),
    ])


def _shares(rows: list[dict[str, Any]]) -> list[str]:
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        kind = f"{TITLES[row['network']]} at batch {row['batch_size']}"
        cells.setdefault(kind, {})[f"{row['provider']} {row['precision']}"] = f"{100 * row['loop_share']:.1f}%"
    columns = list(dict.fromkeys(column for held in cells.values() for column in held))
    return ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns),
            *(f"| {kind} | " + " | ".join(held.get(column, "") for column in columns) + " |"
              for kind, held in cells.items())]


def _with_matrix_units(rows: list[dict[str, Any]]) -> list[str]:
    commits = ", ".join(dict.fromkeys(row["environment"]["commit"][:7] for row in rows))
    return ["With matrix units for bfloat16 (AMX), at batch 1, measured earlier (commits",
            f"{commits}) on {_machine(rows)}:", "", *_table(rows, 1, _speed), ""]


def _machine(rows: list[dict[str, Any]]) -> str:
    about = rows[-1]["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"{about['cores']} cores ({about['cpu']}, {', '.join(about['cpu_features'])}; {versions})"


def gpu_section(cuda: dict[str, Any] | None, fp16: dict[str, Any] | None) -> str:
    """The page's text on GPUs, from what benchmarks/gpu.py and precision.py have written, if they have."""
    if cuda is None or fp16 is None:
        return "Not measured on a GPU yet; `make gpu` does."
    rows = cuda["rows"]
    about = rows[-1]["environment"]
    lines = [f"`make gpu` on {about['gpu']}. Full predictor-corrector steps: times faster than diffusers eager",
             "float32 with TensorFloat-32, images a second at 1,000 steps, the largest relative error of the score",
             "against float32."]
    for batch in sorted({row["batch"] for row in rows}):
        lines += ["", f"At batch {batch}:", "", *_table(rows, batch, _gpu_speed)]
    return "\n".join([*lines, "", *half_section(fp16, "fp16", "float16").splitlines(), "",
                      "Raw samples: [`benchmarks/results/cuda.json`](../benchmarks/results/cuda.json), "
                      "[`benchmarks/results/fp16.json`](../benchmarks/results/fp16.json)."])


def _gpu_speed(subject: dict[str, Any], is_reference: bool) -> str:
    speed = f"{subject['median'] * 1e3:.3g} ms" if is_reference else f"{subject['ratio']:.2f}x"
    return f"{speed}, {subject['images_per_second_1000_steps']:.3g}/s ({max(subject['errors'].values()):.0e})"


def bf16_section(result: dict[str, Any]) -> str:
    """The page's text on what bfloat16 does to pictures, from what benchmarks/precision.py has written."""
    return half_section(result, "bf16", "bfloat16")


def half_section(result: dict[str, Any], half: str, name: str) -> str:
    """What a half precision does to pictures."""
    recognised, to_real, others = (result[key] for key in ("recognised", "frechet_to_real", "frechet_to_other_seeds"))
    return "\n".join([
        f"| {result['images']} images, {result['solver']}, {result['steps']} steps | float32 | {name} |",
        "| --- | --- | --- |",
        f"| Fréchet distance to the float32 images of the same seeds | 0 | {result[f'frechet_{half}_fp32']:.3f} |",
        f"| Fréchet distance of half of them to the float32 images of the other half's seeds | "
        f"{others['fp32']:.3f} | {others[half]:.3f} |",
        f"| Fréchet distance to real digits | {to_real['fp32']:.2f} | {to_real[half]:.2f} |",
        f"| recognised with p > 0.9 (real digits: {recognised['real']:.2f}) | {recognised['fp32']:.2f} | "
        f"{recognised[half]:.2f} |",
        f"| the same digit as in float32 | 1 | {result['same_class']:.3f} |",
        "",
        f"The judge is a classifier trained on digits that the model has not seen; of real ones it names "
        f"{100 * result['judge_accuracy_on_real']:.0f}% rightly. Pixels differ",
        f"by {result['mean_difference_of_255']:.1f} of 255 on average.",
    ])


def _frechet(row: dict[str, Any]) -> str:
    return f"{row['frechet']:.3f} ± {row['frechet_standard_error']:.3f}"


def marks(section: str) -> tuple[str, str]:
    """What a section of a page stands between."""
    return f"<!-- {section} -->", f"<!-- /{section} -->"


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


def result(name: str) -> dict[str, Any] | None:
    """A committed result; ``None`` of what has not been measured yet."""
    path = RESULTS / name
    held: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return held


def gradient_section(result: dict[str, Any] | None) -> str:
    """The page's text on gradients, from what benchmarks/gradients.py has written, if it has."""
    if result is None:
        return ""
    rows = result["rows"]
    lines = [f"Score and product at batch 1 on {_machine(rows)}:", "",
             "| | eager PyTorch | sde-onnx | | relative error | memory, eager and ours |", "| --- |" + " --- |" * 5]
    for row in rows:
        eager, ours = row["subjects"][row["reference"]], row["subjects"][OURS]
        lines.append(f"| {TITLES[row['network']]} | {eager['median'] * 1e3:.0f} ms | {ours['median'] * 1e3:.0f} ms | "
                     f"{ours['ratio']:.2f}x | {max(ours['errors'].values()):.0e} | {eager['peak_mb']:.0f} MB, "
                     f"{ours['peak_mb']:.0f} MB |")
    return "\n".join([
        *lines, "", "Raw samples: [`benchmarks/results/gradients.json`](../benchmarks/results/gradients.json)."])


def likelihood_section(result: dict[str, Any] | None) -> str:
    """The page's text on likelihoods, from what benchmarks/likelihood.py has written, if it has."""
    if result is None:
        return "The likelihoods of the digits are not measured in full yet; `python benchmarks/likelihood.py` does."
    peak, noise = result["floors"]
    lines = ["The bundled digits in bits per dimension, one probe, 32 steps "
             "([`benchmarks/results/likelihood.json`](../benchmarks/results/likelihood.json)):", "",
             "| | images | bits/dim |", "| --- | --- | --- |",
             *(f"| {name} | {row['images']} | {row['mean']:.3f} ± {row['standard_error']:.3f} |"
               for name, row in result["groups"].items())]
    return "\n".join([
        *lines, "",
        f"An image's value differs by at most {result['batches_apart']:.0e} between batches of 1, 7 and 64, and by at",
        f"most {result['from_128_steps']['32']:.0e} from that of 128 steps. With the exact score no image is below "
        f"{peak:.2f}, and images with",
        f"noise of sigma_min average at least {noise:.2f}. Digits as they are carry less noise, and are below both."])


def codes_section(result: dict[str, Any] | None) -> str:
    """The page's text on round trips, from what benchmarks/codes.py has written, if it has."""
    if result is None:
        return ""
    rows = result["rows"]
    return "\n".join([
        f"Encoding and decoding {result['images']} digits, root mean square of the error for values in [0, 1] "
        "([`benchmarks/results/codes.json`](../benchmarks/results/codes.json)):", "",
        "| " + " | ".join(rows) + " |", "| " + " --- |" * len(rows),
        "| " + " | ".join(f"{row['rms']:.1e}" for row in rows.values()) + " |"])


def restoration_section(result: dict[str, Any] | None) -> str:
    """The page's text on methods of restoration, from what benchmarks/restoration.py has written, if it has."""
    if result is None:
        return "Not measured yet; `python benchmarks/restoration.py` does."
    rows, seconds = result["rows"], result["seconds_an_image"]
    names = list(dict.fromkeys(method_name(row) for row in rows))
    tasks, noises = (list(dict.fromkeys(row[key] for row in rows)) for key in ("operator", "noise"))
    counts = {name: next(row["images"] for row in rows if method_name(row) == name) for name in names}
    most = max(counts.values())
    fewer = "".join(f" ({name}: the first {count})" for name, count in counts.items() if count < most)
    lines = [f"Measured on {most} digits that the model has not seen{fewer}: PSNR of one sample in dB with its",
             "standard error, SSIM, and the share in which the bundled classifier sees the same digit "
             f"([`restoration.json`](../benchmarks/results/restoration.json), {_machine([result])}).",
             "", "![PSNR against seconds](restoration.png)"]
    for noise in noises:
        lines += ["", f"Noise {noise:g}:", "", "| | " + " | ".join(tasks) + " |", "| --- |" + " --- |" * len(tasks)]
        for name in names:
            cells = [next((_restored(row) for row in rows if (method_name(row), row["operator"], row["noise"])
                           == (name, task, noise)), "") for task in tasks]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "What they cost, and how far A x is from y, task by task: in deviations of the noise, without noise",
              "in levels of 255.", "", "| | evaluations | products | s an image | residual with noise | without |",
              "| --- | --- | --- | --- | --- | --- |"]
    for name in names:
        own = [row for row in rows if method_name(row) == name]
        with_noise, without = ([f"{row['residual']:.2g}" for row in own if (row["noise"] > 0) == is_noisy]
                               for is_noisy in (True, False))
        lines.append(f"| {name} | {own[0]['evaluations']} | {own[0]['products']} | {seconds[name]:.3g} | "
                     f"{', '.join(with_noise)} | {', '.join(without)} |")
    return "\n".join(lines)


def _restored(row: dict[str, Any]) -> str:
    seen = "" if row["recognised"] is None else f", {row['recognised']:.2f}"
    return f"{row['psnr']:.1f} ± {row['psnr_standard_error']:.1f}, {row['ssim']:.3f}{seen}"


def guidance_section(result: dict[str, Any] | None) -> str:
    """The page's text on classifier guidance, from what benchmarks/guidance.py has written, if it has."""
    if result is None:
        return "Not measured yet; `python benchmarks/guidance.py` does."
    return "\n".join([
        f"The bundled digits, {result['count']} samples of each class by `sde-dpmpp-2m` in 25 steps "
        "([`guidance.json`](../benchmarks/results/guidance.json)):", "",
        "| weight | show the asked class | Fréchet distance within it |", "| --- | --- | --- |",
        *(f"| {row['weight']} | {row['hit']:.3f} | {_frechet(row)} |" for row in result["rows"]), "",
        "The judges were trained on digits that neither the model nor the classifier has seen. The distance is the",
        "mean over classes, to real digits of the class, extrapolated to infinitely many images."])


def compatibility_section(result: dict[str, Any] | None) -> str:
    """The page's text on other runtimes, from what tests/compatibility has written, if it has."""
    if result is None:
        return "Not tried yet; `make compatibility` does."
    runtimes = result["runtimes"]
    cases = list(next(iter(runtimes.values()))["cases"])
    return "\n".join([
        "Files of the bundled digits against what this project's own environment makes, on the CPU "
        "([`compatibility.json`](../benchmarks/results/compatibility.json)):", "",
        "| | version | " + " | ".join(cases) + " |", "| --- | --- |" + " --- |" * len(cases),
        *(f"| {name} | {row['version'].split('-')[0]} | "
          + " | ".join(_agreement(row["cases"].get(case)) for case in cases) + " |" for name, row in runtimes.items()),
        "", "Images by the share of equal values, and the largest difference of 255 if there is one; scores and",
        "products by their relative error."])


def _agreement(case: dict[str, Any] | None) -> str:
    if case is None:
        return ""
    if "error" in case:
        return "fails"
    if "relative_error" in case:
        return f"{case['relative_error']:.0e}"
    return f"{100 * case['equal']:.4g}%" + (f", {case['largest']}" if case["largest"] else "")


def main() -> None:
    for page, sections in PAGES.items():
        text = page.read_text(encoding="utf-8")
        for section, write, names in sections:
            text = replaced(text, marks(section), write(*map(result, names)))
        page.write_text(text, encoding="utf-8")
    if (restored := result("restoration.json")) is not None:
        plot_restoration(restored, RESTORATION_PLOT)
    plot_speed(json.loads((RESULTS / "cpu.json").read_text()), result("cpu_amx.json"), PLOT)
    plot_quality([run for name in ("quality.json", "quality_fashion.json") if (run := result(name)) is not None],
                 QUALITY_PLOT)


# What stands between which marks of a page, and the result files that it is written from.
PAGES: dict[Path, list[tuple[str, Any, list[str]]]] = {README: [
    ("headline", headline_section, ["headline.json"]),
    ("speed", speed_section, ["cpu.json"]),
    ("qualities", qualities_section, ["quality.json", "headline.json"]),
], PERFORMANCE_PAGE: [
    ("cpu", cpu_section, ["cpu.json", "loop.json", "cpu_amx.json"]),
    ("bf16", bf16_section, ["bf16.json"]),
    ("gpu", gpu_section, ["cuda.json", "fp16.json"]),
], GRADIENT_PAGE: [
    ("gradients", gradient_section, ["gradients.json"]),
], LIKELIHOOD_PAGE: [
    ("likelihood", likelihood_section, ["likelihood.json"]),
], CODES_PAGE: [
    ("codes", codes_section, ["codes.json"]),
], QUALITY_PAGE: [
    ("tried", tried_section, ["quality.json"]),
    ("restarts", restarts_section, ["quality.json"]),
    ("second", second_section, ["quality_fashion.json"]),
], EMBEDDING_PAGE: [
    ("compatibility", compatibility_section, ["compatibility.json"]),
], RESTORATION_PAGE: [
    ("restoration", restoration_section, ["restoration.json"]),
    ("guidance", guidance_section, ["guidance.json"]),
]}


if __name__ == "__main__":
    main()

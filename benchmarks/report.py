"""Writes the benchmark sections of README and docs from the committed results, and their plots (plots.py).

    python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cuda_page import half_errors_section, noise_section
from quality_page import headline_section, qualities_section, restarts_section, second_section, tried_section
from scale_page import scale_section
from speed_page import bf16_section, cpu_section, gpu_section, machine, speed_section, winograd_section

from environment import RESULTS, ROOT
from plots import TITLES, method_name, plot_quality, plot_restoration, plot_speed

README = ROOT / "README.md"
PERFORMANCE_PAGE, CODES_PAGE, CUDA_PAGE, GRADIENT_PAGE, LIKELIHOOD_PAGE, SCALE_PAGE = (
    ROOT / "docs" / f"{name}.md" for name in ("performance", "codes", "cuda", "gradients", "likelihood", "scale"))
PLOT, QUALITY_PLOT = ROOT / "docs" / "cpu.png", ROOT / "docs" / "quality.png"
QUALITY_PAGE = ROOT / "docs" / "quality.md"
EMBEDDING_PAGE = ROOT / "docs" / "embedding.md"
# Of a processor with AVX-512, of the same kind at several batch sizes on another day, and of one without AVX-512.
GRADIENT_RESULTS = ["gradients.json", "gradients_batches.json", "gradients_avx2.json"]
RESTORATION_PAGE, RESTORATION_PLOT = ROOT / "docs" / "restoration.md", ROOT / "docs" / "restoration.png"


def _frechet(row: dict[str, Any]) -> str:
    return f"{row['frechet']:.3f} ± {row['frechet_standard_error']:.3f}"


def marks(section: str) -> tuple[str, str]:
    """What a section of a page stands between."""
    return f"<!-- {section} -->", f"<!-- /{section} -->"


def replaced(text: str, marks: tuple[str, str], section: str) -> str:
    """The text with what stands between the marks replaced."""
    start, end = text.index(marks[0]) + len(marks[0]), text.index(marks[1])
    return f"{text[:start]}\n{section}\n{text[end:]}"


def result(name: str) -> dict[str, Any] | None:
    """A committed result; ``None`` of what has not been measured yet."""
    path = RESULTS / name
    held: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return held


def gradient_section(*results: dict[str, Any] | None) -> str:
    """The page's text on gradients, from what benchmarks/gradients.py has written in several runs."""
    measured = {name: result["rows"] for name, result in zip(GRADIENT_RESULTS, results, strict=True) if result}
    if not measured:
        return "Not measured yet."
    lines = []
    for rows in measured.values():
        lines += [f"Commit {rows[0]['environment']['commit'][:7]}, on {machine(rows)}:", "",
                  "| network | batch | | score and product | times faster | relative error | memory |",
                  "| --- |" + " --- |" * 6]
        for row in rows:
            for name, subject in row["subjects"].items():
                lines.append(f"| {TITLES[row['network']]} | {row['batch']} | {name} | "
                             f"{subject['median'] * 1e3:.0f} ms | {subject['ratio']:.2f} | "
                             + f"{max(subject['errors'].values()):.1e}" * (name != row["reference"])
                             + f" | {subject['peak_mb']:.0f} MB |")
        lines.append("")
    samples = ", ".join(f"[`benchmarks/results/{name}`](../benchmarks/results/{name})" for name in measured)
    return "\n".join([*lines, f"Raw samples: {samples}."])


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
             f"([`restoration.json`](../benchmarks/results/restoration.json), {machine([result])}).",
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


def half_weights_section(result: dict[str, Any] | None) -> str:
    """The page's text on weights in float16, from what tests/compatibility has written, if it has."""
    if result is None:
        return ""
    about = result["half_weights"]
    size, whole = (about[name] / 1e6 for name in ("bytes", "bytes_fp32"))
    return (f"The bundled digits become {size:.1f} MB in place of {whole:.1f}, and their score differs by "
            f"{about['relative_error']:.0e}; it is\ncomputed in float32 all the same.")


def embedded_section(result: dict[str, Any]) -> str:
    """The page's text on the time of embedded evaluations, from what benchmarks/embedding.py has written."""
    ratios = [row["ratio"] for row in result["rows"]]
    return (f"An evaluation takes {min(ratios):.2f} to {max(ratios):.2f} of the time that it takes in the host's loop, "
            "for digits and a 32x32 network of\n62 million parameters "
            "([`embedding.json`](../benchmarks/results/embedding.json), `python benchmarks/embedding.py`).")


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
    ("speed", speed_section, ["cpu.json", "headline.json"]),
    ("qualities", qualities_section, ["quality.json", "headline.json"]),
], PERFORMANCE_PAGE: [
    ("cpu", cpu_section, ["cpu.json", "loop.json", "cpu_amx.json"]),
    ("winograd", winograd_section, ["winograd.json"]),
    ("bf16", bf16_section, ["bf16.json"]),
    ("gpu", gpu_section, ["cuda.json", "fp16.json"]),
], CUDA_PAGE: [
    ("half", half_errors_section, ["half.json"]),
    ("noise", noise_section, ["noise.json", "noise_slower.json"]),
], SCALE_PAGE: [
    ("scale", scale_section, ["scale.json", "scale_256.json"]),
], GRADIENT_PAGE: [
    ("gradients", gradient_section, GRADIENT_RESULTS),
], LIKELIHOOD_PAGE: [
    ("likelihood", likelihood_section, ["likelihood.json"]),
], CODES_PAGE: [
    ("codes", codes_section, ["codes.json"]),
], QUALITY_PAGE: [
    ("tried", tried_section, ["quality.json"]),
    ("restarts", restarts_section, ["quality.json"]),
    ("second", second_section, ["quality_fashion.json"]),
], EMBEDDING_PAGE: [
    ("half weights", half_weights_section, ["compatibility.json"]),
    ("embedded", embedded_section, ["embedding.json"]),
    ("compatibility", compatibility_section, ["compatibility.json"]),
], RESTORATION_PAGE: [
    ("restoration", restoration_section, ["restoration.json"]),
    ("guidance", guidance_section, ["guidance.json"]),
]}


if __name__ == "__main__":
    main()

"""What README and docs/performance.md say of speed, from what evaluations.py, loop.py, gpu.py, precision.py wrote."""

from __future__ import annotations

from typing import Any

from quality_page import evaluations_of

from sde_onnx.solvers.catalogue import DEFAULT_QUALITY

from plots import OURS, OURS_FP32, TITLES

__all__ = ["bf16_section", "cpu_section", "gpu_section", "machine", "speed_section", "winograd_section"]


def speed_section(cpu: dict[str, Any], headline: dict[str, Any]) -> str:
    """The README's table of speed: an image, an evaluation, how exact; which machine, if not the headline's."""
    rows = [row for row in cpu["rows"] if row["batch"] == 1]
    evaluations = evaluations_of(DEFAULT_QUALITY)
    lines = [f"| | s an image, {evaluations} evaluations | diffusers' evaluation, ms | ours, ms | times faster | "
             "relative error |", "| --- |" + " --- |" * 5]
    for row in rows:
        eager, ours = row["subjects"][row["reference"]], row["subjects"][OURS_FP32]
        lines.append(f"| {TITLES[row['network']]} | {evaluations * ours['median']:.3g} | {_milliseconds(eager)} | "
                     f"{_milliseconds(ours)} | {ours['ratio']:.2f} | {max(ours['errors'].values()):.0e} |")
    about = rows[-1]["environment"]
    same = about["cpu"] == headline["rows"][0]["environment"]["cpu"]
    other = "" if same else ", another machine than the seconds above"
    return "\n".join([
        *lines, "",
        f"Batch 1 on {about['cores']} cores ({about['cpu'].replace('(R)', '')}{other}): eager PyTorch float32 and ONNX "
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
        f"`make bench-full` on {machine(rows)}. Times faster",
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


def winograd_section(result: dict[str, Any] | None) -> str:
    """The page's text on files for cpu, from what evaluations.py has written on a processor without AVX-512."""
    if result is None:
        return "Not measured yet."
    rows = result["rows"]
    tables = [line for batch in sorted({row["batch"] for row in rows})
              for line in (f"At batch {batch}:", "", *_table(rows, batch, _speed_and_memory), "")]
    return "\n".join([
        f"On {machine(rows)}. Times faster than eager PyTorch, largest relative",
        "error of the score over three noise levels, highest resident memory:", "", *tables,
        "Raw samples: [`benchmarks/results/winograd.json`](../benchmarks/results/winograd.json)."])


def _speed_and_memory(subject: dict[str, Any], is_reference: bool) -> str:
    return f"{_speed(subject, is_reference)}, {subject['peak_mb']:.0f} MB"


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
            f"{commits}) on {machine(rows)}:", "", *_table(rows, 1, _speed), ""]


def machine(rows: list[dict[str, Any]]) -> str:
    """What rows were measured on: the processor and the versions."""
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

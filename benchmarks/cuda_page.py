"""The tables of docs/cuda.md: what float16 costs, and how long a device would wait for noise."""

from __future__ import annotations

from typing import Any

from speed_page import machine

__all__ = ["half_errors_section", "noise_section"]


def half_errors_section(result: dict[str, Any] | None) -> str:
    """From what benchmarks/half.py has written, if it has."""
    if result is None:
        return ""
    levels = {"at sigma_min": 0, "at 5 sigma_min": 8, "at 100 sigma_min": 24}
    lines = [f"| | {' | '.join(levels)} | largest of 40 | work at 256² |", "| --- |" + " --- |" * (len(levels) + 2)]
    work = {"fp16": "1", "mixed": f"{result['times']['256']:.1f}"}
    for precision, errors in result["errors"].items():
        if precision in work:
            values = " | ".join(f"{errors[index]:.1e}" for index in levels.values())
            lines.append(f"| `--precision {precision}` | {values} | {max(errors):.1e} | {work[precision]} |")
    shares = ", ".join(f"{100 * share:.0f}% at {size}²" for size, share in result["top_share"].items())
    return "\n".join([
        *lines, "",
        "Relative errors of the bundled digits' score, kernels emulated on the CPU "
        "([`half.json`](../benchmarks/results/half.json)). Work counts",
        f"multiplications: the image's resolution has {shares} of them, and each there is three, at",
        "half the rate of float16."])


def noise_section(result: dict[str, Any] | None, slower: dict[str, Any] | None) -> str:
    """From what benchmarks/noise.py has written, if it has; here, and where two cores draw less."""
    if result is None:
        return ""
    drawing = "; ".join(f"{row['way']} {row['a_second']:.0f} a second with threads: {row['threads']}"
                        for row in result["drawing"] if row["arrays"] == "3x1024x1024")
    times = sorted({row["milliseconds"] for row in result["waiting"]})
    lines = [f"Arrays of 3x1024², on {machine([result])}: {drawing}. A simulated device at 256², batch",
             "16, whose evaluations take so long, in the loop above:", "",
             f"| | draws | {' | '.join(f'{value:g} ms' for value in times)} |", "| --- | --- |" + " --- |" * len(times)]
    turns = len(result["waiting"][0]["samples"])
    solvers = dict.fromkeys((row["solver"], row["way"]) for row in result["waiting"])
    for case in solvers:
        rows = {row["milliseconds"]: row for row in result["waiting"] if (row["solver"], row["way"]) == case}
        first = rows[times[0]]
        lines.append(f"| {case[0]}, {case[1]} | {first['draws']} of {first['evaluations']} | "
                     + " | ".join(f"{100 * rows[value]['idle']:.1f}%" for value in times) + " |")
    told = (f"Share of a run in which the device waits, median of {turns} turns. Before: one array ahead, chunks of a "
            "sixteenth")
    lines += ["", f"{told} ([`noise.json`](../benchmarks/results/noise.json))."]
    if slower is not None:
        drawn = max(row["a_second"] for row in slower["drawing"] if row["arrays"] == "3x1024x1024")
        idle = next(row["idle"] for row in slower["waiting"]
                    if (row["way"], row["milliseconds"]) == ("now", times[0]))   # of the solver that stands first
        lines += [f"Two slower cores, which drew {drawn:.0f} arrays a second, left it waiting for {100 * idle:.1f}%",
                  f"at {times[0]:g} ms ([`noise_slower.json`](../benchmarks/results/noise_slower.json))."]
    return "\n".join(lines)

"""The table of docs/scale.md: images a second by processes, threads and batch size."""

from __future__ import annotations

from typing import Any

from speed_page import machine

__all__ = ["scale_section"]

TITLES = {"digits": "16x16, 1.3 M", "32": "32x32, 62 M", "256": "256x256, 66 M"}


def scale_section(*results: dict[str, Any] | None) -> str:
    """From what benchmarks/scale.py has written, if it has, in one run or several."""
    measured = [result for result in results if result is not None]
    if not measured:
        return ""
    lines = [f"Images a second on {machine(measured)}:", "",
             "| | batch | one process | a process a core | actors on Ray |", "| --- |" + " --- |" * 4]
    all_rows = [row for result in measured for row in result["rows"]]
    rows = {(row["network"], row["batch"], row["way"]): row for row in all_rows}
    for network, batch in dict.fromkeys((row["network"], row["batch"]) for row in all_rows):
        found = [rows.get((network, batch, way)) for way in ("one process", "a process a core", "Ray")]
        cells = ["" if row is None else f"{row['images_a_second']:.3g}" for row in found]
        steps = next(row["evaluations"] for row in found if row)
        lines.append(f"| {TITLES[network]}, {steps} evaluations | {batch} | {' | '.join(cells)} |")
    told = "One process has a thread a core; the others a thread each. Medians of turns, one turn at 256x256"
    files = ", ".join(f"[`{name}.json`](../benchmarks/results/{name}.json)" for name in ("scale", "scale_256"))
    return "\n".join([*lines, "", f"{told} ({files})."])

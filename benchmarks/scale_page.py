"""The table of docs/scale.md: images a second by processes, threads and batch size."""

from __future__ import annotations

from typing import Any

from speed_page import machine

__all__ = ["scale_section"]

TITLES = {"digits": "16x16, 1.3 M", "32": "32x32, 62 M", "256": "256x256, 66 M"}


def scale_section(result: dict[str, Any] | None) -> str:
    """From what benchmarks/scale.py has written, if it has."""
    if result is None:
        return ""
    lines = [f"Images a second on {machine([result])}:", "",
             "| | batch | one process | a process a core | actors on Ray |", "| --- |" + " --- |" * 4]
    rows = {(row["network"], row["batch"], row["way"]): row for row in result["rows"]}
    for network, batch in dict.fromkeys((row["network"], row["batch"]) for row in result["rows"]):
        found = [rows.get((network, batch, way)) for way in ("one process", "a process a core", "Ray")]
        cells = ["" if row is None else f"{row['images_a_second']:.3g}" for row in found]
        steps = next(row["evaluations"] for row in found if row)
        lines.append(f"| {TITLES[network]}, {steps} evaluations | {batch} | {' | '.join(cells)} |")
    told = "One process has a thread a core; the others a thread each. Medians of turns"
    return "\n".join([*lines, "", f"{told} ([`scale.json`](../benchmarks/results/scale.json))."])

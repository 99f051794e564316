"""A table of likelihoods: kept beside the output while it grows, resumed where it stopped, put in place at the end."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sde_onnx.errors import OutputError
from sde_onnx.files import read_json, replacing
from sde_onnx.likelihood import Likelihood, lowest_bits_per_dim

__all__ = ["PLOTS", "WRITERS", "Measurements", "plot_histogram"]

Row = dict[str, Any]
COLUMNS = ("name", "seed", "bits_per_dim", "standard_error", "log_density", "evaluations")


class Measurements:
    """The rows of one way to measure, one for each image in turn.

    Args:
        output: the file to be, of a suffix in WRITERS.
        settings: everything that rows depend on, as JSON values; ``seed`` is that of the first.
        names: of all images.
        sigma_min: of the model, which says how low bits per dimension can fall.
        force: whether rows of other settings or images are dropped.

    Raises:
        OutputError: unfinished rows are of other settings or images, or damaged.
    """

    def __init__(
        self, output: Path, settings: Mapping[str, Any], names: Sequence[str], sigma_min: float, *, force: bool
    ) -> None:
        self.rows: list[Row] = []
        self._output, self._names, self._sigma_min = output, names, sigma_min
        self._about = {"settings": json.loads(json.dumps(settings)), "names": list(names)}
        self._unfinished = output.with_name(f".{output.name}.unfinished.json")
        if self._unfinished.exists() and not force:
            found = read_json(self._unfinished, OutputError)
            about = {name: found.get(name) for name in self._about}
            rows = found.get("rows")
            whole = isinstance(rows, list) and len(rows) <= len(names) and all(
                isinstance(row, dict) and tuple(row) == COLUMNS for row in rows)
            if about != self._about or not whole:
                raise OutputError(f"{self._unfinished} was begun with other settings or pictures: choose another "
                                  "--output, or --force to begin anew")
            self.rows = found["rows"]

    @property
    def finished(self) -> int:
        """How many images were measured."""
        return len(self.rows)

    def add(self, batch: Likelihood) -> None:
        """Adds the next images, and writes all so far."""
        columns = batch.bits_per_dim, batch.standard_error, batch.log_density, batch.evaluations
        for bits, error, density, evaluations in zip(*(column.tolist() for column in columns), strict=True):
            place = len(self.rows)
            self.rows.append(dict(zip(COLUMNS, (
                self._names[place], self._about["settings"]["seed"] + place, bits,
                None if math.isnan(error) else error, density, evaluations), strict=True)))
        with replacing(self._unfinished) as temporary:
            temporary.write_text(json.dumps({**self._about, "rows": self.rows}), encoding="utf-8")

    def write(self) -> list[str]:
        """Writes the output, and returns what there is to say of it."""
        bits = np.array([row["bits_per_dim"] for row in self.rows])
        error = float(bits.std(ddof=1) / math.sqrt(len(bits))) if len(bits) > 1 else self.rows[0]["standard_error"]
        mean = {"name": "mean", "bits_per_dim": float(bits.mean()), "standard_error": error}
        peak, noise = lowest_bits_per_dim(self._sigma_min)
        with replacing(self._output) as temporary:
            WRITERS[self._output.suffix](temporary, self.rows, mean, {
                "settings": self._about["settings"],
                "floors": {"of the density's peak": peak, "of noise of sigma_min, on average": noise}})
        self._unfinished.unlink(missing_ok=True)
        spread = "" if error is None else f" +- {error:.4f}"
        return [f"{self._output}: {len(self.rows)} images",
                f"{mean['bits_per_dim']:.4f}{spread} bits/dim on average, "
                f"{np.mean([row['evaluations'] for row in self.rows]):.0f} evaluations an image",
                f"with the exact score an image has at least {peak:.2f}, and images with noise of sigma_min "
                f"{self._sigma_min:g} average at least {noise:.2f}"]


def _write_csv(path: Path, rows: Sequence[Row], mean: Row, about: Row) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows([*rows, mean])


def _write_json(path: Path, rows: Sequence[Row], mean: Row, about: Row) -> None:
    path.write_text(json.dumps({**about, "mean": mean, "images": rows}, indent=1) + "\n", encoding="utf-8")


WRITERS = {".csv": _write_csv, ".json": _write_json}
PLOTS = (".png", ".svg", ".pdf")


def plot_histogram(rows: Sequence[Row], path: Path) -> None:
    """Writes a histogram of bits per dimension as a picture. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist([row["bits_per_dim"] for row in rows], bins="auto")
    axes.set_xlabel("bits per dimension")
    axes.set_ylabel("images")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)

"""A table of likelihoods: kept beside the output while it grows, resumed where it stopped, put in place at the end."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sde_onnx.errors import OutputError, counted
from sde_onnx.files import read_json, replacing
from sde_onnx.generate.shards import WHOLE, Shard
from sde_onnx.likelihood import Likelihood, lowest_bits_per_dim

__all__ = ["PLOTS", "WRITERS", "Measurements", "plot_histogram"]

Row = dict[str, Any]
MOST_BYTES = 200   # the longest name of an output that what is unfinished repeats in its own; of a longer one, the hash
COLUMNS = ("name", "seed", "bits_per_dim", "standard_error", "log_density", "evaluations")


class Measurements:
    """The rows of one way to measure, one for each image in turn.

    Args:
        output: the file to be, of a suffix in WRITERS.
        settings: everything that rows depend on, as JSON values; ``seed`` is that of the first.
        names: of all images.
        sigma_min: of the model, which says how low bits per dimension can fall.
        shard: which of the images this process measures. The rows of each lie beside the output until all are there;
            whoever finds that puts them together.
        force: whether rows of other settings or images are dropped.

    Raises:
        OutputError: unfinished rows are of other settings or images, or damaged.
    """

    def __init__(
        self, output: Path, settings: Mapping[str, Any], names: Sequence[str], sigma_min: float, *,
        shard: Shard = WHOLE, force: bool,
    ) -> None:
        self._output, self._names, self._sigma_min, self._shard = output, names, sigma_min, shard
        self._about = {"settings": json.loads(json.dumps(settings)), "names": list(names)}
        self.mine = range(len(names))[shard.span(len(names))]
        self.is_whole = shard.count == 1
        name = os.fsencode(output.name)
        self._short = output.name if len(name) <= MOST_BYTES else hashlib.sha256(name).hexdigest()
        self.rows: list[Row] = [] if force else self._read(shard)

    def _unfinished(self, shard: Shard) -> Path:
        part = "" if shard.count == 1 else f".{shard.index}-of-{shard.count}"
        return self._output.with_name(f".{self._short}{part}.unfinished.json")

    def _read(self, shard: Shard) -> list[Row]:
        """The rows that a shard has measured."""
        path = self._unfinished(shard)
        try:
            found = read_json(path, OutputError)
        except OutputError:
            if not path.exists():   # not begun, or put together with the others' a moment ago
                return []
            raise
        about, rows = {name: found.get(name) for name in self._about}, found.get("rows")
        most = len(range(len(self._names))[shard.span(len(self._names))])
        if about != self._about or not isinstance(rows, list) or len(rows) > most or not all(
                isinstance(row, dict) and tuple(row) == COLUMNS for row in rows):
            raise OutputError(f"{path} was begun with other settings or pictures: choose another --output, or --force "
                              "to begin anew")
        return rows

    @property
    def finished(self) -> int:
        """How many images were measured."""
        return len(self.rows)

    def add(self, batch: Likelihood) -> None:
        """Adds the next images, and writes all so far."""
        columns = batch.bits_per_dim, batch.standard_error, batch.log_density, batch.evaluations
        for bits, error, density, evaluations in zip(*(column.tolist() for column in columns), strict=True):
            place = self.mine.start + len(self.rows)
            self.rows.append(dict(zip(COLUMNS, (
                self._names[place], self._about["settings"]["seed"] + place, bits,
                None if math.isnan(error) else error, density, evaluations), strict=True)))
        with replacing(self._unfinished(self._shard)) as temporary:
            temporary.write_text(json.dumps({**self._about, "rows": self.rows}), encoding="utf-8")

    def write(self) -> list[str]:
        """Writes the output, if all shards have measured theirs, and returns what there is to say of it."""
        if self._shard.count > 1:
            if self.rows and not self._unfinished(self._shard).exists():   # another one has put all together
                return [f"{self._output}: {counted(len(self._names), 'image')}"]
            shards = [Shard(index, self._shard.count) for index in range(self._shard.count)]
            parts = [self._read(shard) for shard in shards]
            measured = sum(map(len, parts))
            if measured < len(self._names):
                return [f"shard {self._shard}: {counted(len(self.rows), 'image')}; of all {len(self._names)} "
                        f"{measured} are measured, and the last shard to end writes {self._output}"]
            self.rows, self.is_whole = [row for part in parts for row in part], True
        bits = np.array([row["bits_per_dim"] for row in self.rows])
        error = float(bits.std(ddof=1) / math.sqrt(len(bits))) if len(bits) > 1 else self.rows[0]["standard_error"]
        mean = {"name": "mean", "bits_per_dim": float(bits.mean()), "standard_error": error}
        peak, noise = lowest_bits_per_dim(self._sigma_min)
        with replacing(self._output) as temporary:
            WRITERS[self._output.suffix](temporary, self.rows, mean, {
                "settings": self._about["settings"],
                "floors": {"of the density's peak": peak, "of noise of sigma_min, on average": noise}})
        any_split = re.compile(rf"\.{re.escape(self._short)}(\.\d+-of-\d+)?\.unfinished\.json")
        for path in self._output.parent.iterdir():
            if any_split.fullmatch(path.name):
                path.unlink(missing_ok=True)
        spread = "" if error is None else f" +- {error:.4f}"
        return [f"{self._output}: {counted(len(self.rows), 'image')}",
                f"{mean['bits_per_dim']:.4f}{spread} bits/dim on average, "
                f"{np.mean([row['evaluations'] for row in self.rows]):.0f} evaluations an image",
                f"with the exact score an image has at least {peak:.2f}, and images with noise of sigma_min "
                f"{self._sigma_min:g} average at least {noise:.2f}"]


def _write_csv(path: Path, rows: Sequence[Row], mean: Row, about: Row) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:   # names of any bytes
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

"""Seeds as text: ``7``, ``0-63``, ``0-3,8,12-15``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sde_onnx.checks import MOST_SEEDS
from sde_onnx.errors import InputError

__all__ = ["format_seeds", "parse_seeds"]


def parse_seeds(text: str, *, most: int | None = MOST_SEEDS, repeated: bool = False, what: str = "seeds") -> list[int]:
    """Reads numbers and ranges, both ends included, at the ``most`` so many.

    Args:
        text: the list.
        most: numbers, or ``None`` for any.
        repeated: whether one may come again.
        what: they are, for messages.

    Raises:
        InputError: no such list, a number over 64 bits, or one that is named twice and may not be.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})(?:\s*-\s*(\d{1,20}))?\s*", part)
        if match is None:
            raise InputError(f"{part!r} is neither a whole number nor a range such as 0-63")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"{part!r} runs backwards")
        if last >= 1 << 64:
            raise InputError(f"{last} does not fit 64 bits: expected 0 to 2^64 - 1")
        if most is not None and last - first + len(seeds) >= most:
            raise InputError(f"more than {most:,} {what} for one run")
        seeds.extend(range(first, last + 1))
    if not repeated and len(set(seeds)) < len(seeds):
        raise InputError("a seed is named twice")
    return seeds


def format_seeds(seeds: Iterable[int]) -> str:
    """The shortest text that :func:`parse_seeds` reads as these seeds."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)

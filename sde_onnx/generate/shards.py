"""A run split among processes, on one machine or many: each does its own part of one list, known by two numbers.

    RANK, WORLD_SIZE               what torchrun and PyTorch's launchers tell a process
    SLURM_PROCID, SLURM_NTASKS     what srun tells a task; a job's own script has them, too, and is no task

Parts are cut from the list that all processes have, so nobody asks anybody what there is to do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sde_onnx.errors import InputError

__all__ = ["WHOLE", "Shard", "parse_shard", "shard_of_environment"]

Item = TypeVar("Item")
VARIABLES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
MOST_SHARDS = 1_000_000


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, the first is 0."""

    index: int
    count: int
    variables: tuple[str, ...] = ()   # of the environment, that say so

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count <= MOST_SHARDS:
            raise InputError(f"shard {self}: expected I/N with I from 0 to N - 1, and N from 1 to {MOST_SHARDS}")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def blocks(self, items: Sequence[Item], size: int) -> list[Item]:
        """Its part of a list that is cut into blocks of ``size``: every ``count``-th block, whole."""
        return [item for first in range(self.index * size, len(items), self.count * size)
                for item in items[first : first + size]]

    def span(self, length: int) -> slice:
        """Its part of a list of ``length`` in one piece, as long as the others' or one longer."""
        return slice(length * self.index // self.count, length * (self.index + 1) // self.count)


WHOLE = Shard(0, 1)


def parse_shard(text: str) -> Shard:
    """Reads ``0/4``; ``InputError`` of anything else."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
    if match is None:
        raise InputError(f"{text!r} is no shard, expected I/N such as 0/4: the first of four")
    return Shard(int(match[1]), int(match[2]))


def shard_of_environment(environment: Mapping[str, str] = os.environ) -> Shard:
    """The part that a launcher has given this process; all where none has.

    Raises:
        InputError: variables that are no two such numbers.
    """
    in_script = "SLURM_JOB_ID" in environment and not environment.get("SLURM_STEP_ID", "").isdigit()
    for names in VARIABLES[: 1 if in_script else None]:
        if all(name in environment for name in names):
            text = " of ".join(f"{name}={environment[name]}" for name in names)
            try:
                return Shard(int(environment[names[0]]), int(environment[names[1]]), variables=names)
            except (ValueError, InputError):
                raise InputError(f"{text} is no shard: expected a number below the other") from None
    return WHOLE

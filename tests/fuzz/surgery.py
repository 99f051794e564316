"""What makes good input bad: bytes, JSON trees, values."""

from __future__ import annotations

import copy
import random
from typing import Any

__all__ = ["JUNK", "mutated_bytes", "mutated_tree"]

JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 2**31, 2**63, 2**64, -(2**63), 0.0, -0.5, 0.5, 1e-320, 1e300,
    float("nan"), float("inf"), -float("inf"), "", "x", "0", "3", "-1", "fp32", "none", "é", "\x00", "a" * 5000,
    "../../x", [], {}, [None], [[]], [1, 2, 3], [3, 65536, 65536], {"a": 1}, {"": None}, [1e9, 1e9, 1e9], 10**400,
)


def mutated_bytes(content: bytes, random_: random.Random) -> bytes:
    """Content with one to four faults: bits, bytes, pieces that are missing, doubled, zero or huge numbers."""
    changed = bytearray(content)
    for _ in range(random_.choice((1, 1, 1, 2, 4))):
        place = random_.randrange(len(changed) + 1) if changed else 0
        length = random_.choice((1, 1, 2, 8, 64, 1000))
        match random_.randrange(8):
            case 0 if place < len(changed):
                changed[place] ^= 1 << random_.randrange(8)
            case 1 if place < len(changed):
                changed[place] = random_.randrange(256)
            case 2:
                changed[place:place] = random_.randbytes(length)
            case 3:
                del changed[place : place + length]
            case 4:
                del changed[place:]
            case 5:
                changed[place:place] = changed[place : place + length]
            case 6:
                changed[place : place + length] = bytes(len(changed[place : place + length]))
            case _:
                changed[place : place + 10] = b"\xff" * 9 + b"\x01"
    return bytes(changed)


def mutated_tree(tree: Any, random_: random.Random) -> Any:
    """A JSON tree with one to three faults: values of another kind, keys that are missing, renamed or new."""
    tree = copy.deepcopy(tree)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return random_.choice(JUNK)
        holder, key = random_.choice(places)
        match random_.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[f"{key}_"] = holder.pop(key)
            case 2 if isinstance(holder, dict):
                holder[random_.choice(("", "x", "_class_name", "format", "type"))] = random_.choice(JUNK)
            case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] = random_.choice((-holder[key], holder[key] * 1000, holder[key] // 3, str(holder[key])))
            case _:
                holder[key] = copy.deepcopy(random_.choice(JUNK))
    return tree


def _places(tree: Any) -> Any:
    """Every container with a key or an index of it."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])

"""Prints the lowest versions that pyproject.toml names, as constraints for pip: ``make lowest`` installs them.

torch is left at the version of constraints.txt, whose build for CPUs is at hand.
"""

from __future__ import annotations

import platform
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENT = re.compile(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)(?:; (.*))?")
EXTRAS = ("export", "diffusers", "plot", "ode")


def lowest() -> list[str]:
    """``name==version`` of the runtime and of the extras that run everywhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    markers = {"platform_machine": platform.machine(), "sys_platform": sys.platform}
    found = {}
    for line in named:
        match = REQUIREMENT.fullmatch(line)
        if match is None:
            raise SystemExit(f"{line!r} names no lowest version")
        name, version, marker = match.groups()
        if name != "torch" and (marker is None or eval(marker, {}, markers)):   # of our own file
            found[name] = version
    torch = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert torch is not None
    return [*(f"{name}=={version}" for name, version in found.items()), torch[0]]


if __name__ == "__main__":
    print(*lowest(), sep="\n")

"""Times the commands of README and CONTRIBUTING as a stranger runs them: a fresh clone, a new environment, each once.

    python benchmarks/fresh_clone.py --output benchmarks/results/fresh_clone.json

Clones HEAD, not the working tree. Reference data for the tests are looked for where they are for this checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import ROOT, environment
from report import replaced

COMMANDS = {
    "install": "make .venv/installed",
    "sample": "make sample",
    "test": "make test",
    "quick": "make quick",
    "runtime": "make runtime",
    "lint": "make lint",
}
PAGE = ROOT / "docs" / "performance.md"
MARKS = "<!-- timings -->", "<!-- /timings -->"


def run(command: str, folder: Path) -> dict[str, Any]:
    """Runs a command and returns its seconds and its last lines; raises if it fails."""
    golden = os.environ.get("SDE_ONNX_GOLDEN", str(ROOT.parent / "shared" / "golden"))
    start = time.monotonic()
    result = subprocess.run(command.split(), cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, "SDE_ONNX_GOLDEN": golden})
    seconds = time.monotonic() - start
    if result.returncode:
        raise SystemExit(f"{command} failed:\n{result.stdout}")
    lines = [line.replace(str(folder), ".") for line in result.stdout.splitlines() if line.strip()]
    print(f"{command}: {seconds:.0f} s", *lines[-3:], sep="\n    ", flush=True)
    return {"command": command, "seconds": round(seconds, 1), "printed": lines[-3:]}


def timings(result: dict[str, Any]) -> str:
    """The page's paragraph on the two commands, from the JSON that this script wrote."""
    about, rows = result["environment"], result["rows"]
    tests = re.sub(r" in .*", "", rows["test"]["printed"][-1].strip("= "))
    return (
        f"On {about['cores']} cores ({about['cpu']}): installation {rows['install']['seconds']:.0f} s; then "
        f"`make sample` {rows['sample']['seconds']:.0f} s, which ends with\n`{rows['sample']['printed'][-1]}`;\n"
        f"`make test` {rows['test']['seconds']:.0f} s, which ends with `{tests}`\n"
        "([`fresh_clone.json`](../benchmarks/results/fresh_clone.json))."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the result as JSON; docs/performance.md shows it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "sde-onnx"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        rows = {name: run(command, clone) for name, command in COMMANDS.items()}
        picture = (clone / "samples.png").read_bytes()
    result = {"environment": environment("python benchmarks/fresh_clone.py"), "rows": rows}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    (ROOT / "docs" / "samples.png").write_bytes(picture)
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), MARKS, timings(result)), encoding="utf-8")


if __name__ == "__main__":
    main()

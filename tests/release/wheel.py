"""Installs a wheel into empty environments, as a user does, and uses it: ``make wheel-test``.

    python tests/release/wheel.py build/dist/*.whl

The runtime alone under this Python and the newest at hand; with the export extra under this Python, since torch's build
for CPUs is at hand for one version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEWEST, OLDEST = 15, 11   # of Python 3
EXPORTED = """
set -e
sde-onnx export "$1" -o mine.onnx --gradient gradient.onnx
sde-onnx sample mine.onnx --seeds 0-3 -o mine.png
sde-onnx sample mine.onnx --seeds 0-3 --quality fast -o images
sde-onnx likelihood gradient.onnx images --steps 4 -o likelihood.csv
sde-onnx embed mine.onnx -o sampler.onnx --golden golden.npz
sde-onnx verify sampler.onnx golden.npz
"""


def newest_python() -> str:
    """The newest Python of this machine that runs."""
    for minor in range(NEWEST, OLDEST - 1, -1):
        found = [shutil.which(f"python3.{minor}"),
                 *map(str, Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(
                     f"versions/3.{minor}.*/bin/python"))]
        for python in filter(None, found):
            if subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
                return python
    return sys.executable


def version_of(python: str) -> str:
    """Its version's first two numbers: those of a machine that are the same are tried once."""
    told = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", told], capture_output=True, text=True, check=True).stdout.strip()


def environment(folder: Path, python: str, *arguments: str) -> Path:
    """The programs of a new environment with what pip is asked for."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *arguments], check=True)
    return folder / "bin"


def main() -> None:
    [wheel] = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pythons = {version_of(python): python for python in (newest_python(), sys.executable)}
        for place, python in enumerate(pythons.values()):
            programs = environment(folder / f"runtime-{place}", python, str(wheel.resolve()))
            told = subprocess.run([programs / "python", "--version"], capture_output=True, text=True, check=True)
            print(f"{told.stdout.strip()}, the runtime alone:", flush=True)
            subprocess.run([programs / "python", ROOT / "tests" / "runtime_only.py"], cwd=folder, check=True)
        programs = environment(folder / "export", sys.executable, "-c", str(ROOT / "constraints.txt"),
                               f"{wheel.resolve()}[export]")
        print("with the export extra:", flush=True)
        subprocess.run(["sh", "-c", EXPORTED, "sh", str(ROOT / "examples" / "digits" / "checkpoint")], cwd=folder,
                       check=True, env={**os.environ, "PATH": os.pathsep.join([str(programs), os.environ["PATH"]])})
        licences = sorted(path.name for path in (folder / "export" / "lib").rglob("sde_onnx-*.dist-info/licenses/**/*")
                          if path.is_file())
        print(f"licences in the wheel: {', '.join(licences)}")


if __name__ == "__main__":
    main()

"""Samples without the export extra: `make runtime` runs this in an environment that has neither torch nor onnx.

Where one of them is installed it fails, since it would show nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for name in ("torch", "onnx", "diffusers"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed: this environment shows nothing"

command = Path(sys.executable).with_name("sde-onnx")
seconds = []
for _ in range(5):
    start = time.perf_counter()
    subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)
    seconds.append(time.perf_counter() - start)
assert min(seconds) < 0.5, seconds

with tempfile.TemporaryDirectory() as folder:
    from sde_onnx.cli import main

    with contextlib.chdir(folder):
        main(["sample", "--seeds", "0-3", "--steps", "20", "-o", "samples.png"], standalone_mode=False)
        main(["sample", "--seeds", "0-1", "--steps", "20", "-o", "digits"], standalone_mode=False)
        main(["encode", "digits", "--steps", "10", "-o", "codes.npz"], standalone_mode=False)
        main(["decode", "codes.npz", "--steps", "10", "-o", "again"], standalone_mode=False)
        main(["sample", "--label", "3", "--seeds", "0-1", "--steps", "4", "-o", "threes.png"], standalone_mode=False)
        main(["restore", "digits", "--degrade", "--operator", "down:2", "--seeds", "0-1", "--steps", "4",
              "-o", "sharp"], standalone_mode=False)   # with products of the bundled gradient
        main(["likelihood", "digits", "--steps", "4", "-o", "digits.csv"], standalone_mode=False)
    assert len((Path(folder) / "digits.csv").read_text().splitlines()) == 4   # a header, two images, the mean
    assert (Path(folder) / "samples.png").stat().st_size > 0
    assert sorted(path.name for path in (Path(folder) / "again").iterdir()) == ["000000.png", "000001.png"]
    assert (Path(folder) / "threes.png").stat().st_size > 0
    assert len(list((Path(folder) / "sharp").rglob("*.png"))) == 2 + 2 * 2   # panels, and restorations of each
    assert not {"torch", "onnx"} & sys.modules.keys()
    refused = subprocess.run([command, "export", folder, "-o", "m.onnx"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1, refused
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert "pip install 'sde-onnx[export]'" in refused.stderr, refused.stderr

print(f"sampled without torch and onnx; --help answers in {min(seconds):.2f} s; export says: {refused.stderr.strip()}")

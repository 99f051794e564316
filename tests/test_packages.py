"""What an installation holds: no folder of the tree is forgotten in the wheel."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules():
    """Every Python file of the tree, as the wheel names it."""
    return {*(path.relative_to(ROOT).as_posix() for path in (ROOT / "sde_onnx").rglob("*.py")),
            *(f"sde_onnx/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "export").rglob("*.py"))}


def test_every_folder_is_a_package_of_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {name.replace(".", "/") for name in listed} == {str(Path(name).parent) for name in modules()}


@pytest.mark.thorough
def test_the_wheel_holds_the_tree(tmp_path):
    subprocess.run(["git", "-C", ROOT, "checkout-index", "-a", "--prefix", f"{tmp_path}/tree/"], check=True)
    for name in modules():   # as they are now, not as they were added
        there = tmp_path / "tree" / name.removeprefix("sde_onnx/" if name.startswith("sde_onnx/export/") else "")
        there.parent.mkdir(parents=True, exist_ok=True)
        source = ROOT / there.relative_to(tmp_path / "tree")
        there.write_bytes(source.read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, tmp_path / "tree"],
                   check=True)
    [wheel] = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert modules() <= held
    assert {"sde_onnx/models/digits.onnx", "sde_onnx/py.typed"} <= held
    assert {name for name in held if name.endswith(".py")} == modules()

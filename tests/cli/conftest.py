"""What tests of commands share: two digits as files, and their latents."""

import commands
import pytest

import sde_onnx
from sde_onnx.images import save_png, to_uint8


@pytest.fixture(scope="session")
def pictures(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed, picture in enumerate(to_uint8(sde_onnx.sample(digits, range(2)))):
        save_png(folder / f"{seed}.png", picture)
    return folder


@pytest.fixture(scope="session")
def codes(pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("codes") / "codes.npz"
    commands.done("encode", pictures, "--steps", 12, "--provider", "cpu", "-o", path)
    return path

"""``sde-onnx restore``, and classes with ``sde-onnx sample``."""

import shutil

import commands
import numpy as np
import pytest
from PIL import Image

import sde_onnx
from sde_onnx.images import load_png, to_uint8
from sde_onnx.operators import parse_operator

BOX = "box:5,5,6,6"


def done(*arguments):
    return commands.done("restore", *arguments, "--provider", "cpu", "--seeds", "0-2", "--steps", 6, "--solver",
                         "sde-dpmpp-2m")


def refuses(message, *arguments, status=1):
    return commands.refuses(message, "restore", *arguments, "--provider", "cpu", status=status)


@pytest.fixture(scope="module")
def clean(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    for path in pictures.iterdir():
        shutil.copyfile(path, folder / f"digit{path.name}")
    return folder


@pytest.mark.thorough
def test_a_folder_is_restored_and_resumed(clean, digits, tmp_path):
    result = done(clean, "--degrade", "--operator", BOX, "--method", "null-space", "-o", tmp_path / "out", "--zoom", 2)
    panel = load_png(tmp_path / "out" / "digit0.png")
    assert panel.shape == (32, 2 * 16 * (1 + 3 + 2 + 1), 3)   # measurement, samples, mean, deviation, clean
    first = load_png(clean / "digit0.png")
    np.testing.assert_array_equal(panel[::2, -32::2], first)
    y = parse_operator(BOX).A((first / 255).astype(np.float32).transpose(2, 0, 1)[None])[0]
    np.testing.assert_array_equal(panel[::2, :32:2], to_uint8(y[None])[0])
    restored = load_png(tmp_path / "out" / "digit1" / "000002.png")
    second = (load_png(clean / "digit1.png") / 255).astype(np.float32).transpose(2, 0, 1)
    expected = sde_onnx.restore(digits, parse_operator(BOX).A(second[None])[0], BOX, [0, 1, 2], 6,
                                solver="sde-dpmpp-2m", method="null-space")
    np.testing.assert_array_equal(restored, to_uint8(expected)[2])
    assert "6 images, null-space damping 1.0, sde-dpmpp-2m, 6 steps, nfe 6, cpu fp32" in result.output
    assert "dB" in result.output
    (tmp_path / "out" / "digit1" / "000001.png").unlink()
    again = done(clean, "--degrade", "--operator", BOX, "--method", "null-space", "-o", tmp_path / "out")
    assert "5 of 6 images were there already" in again.output and "1 image," in again.output
    edited = tmp_path / "mask.png"
    for box, ends in (((4, 4, 9, 9), None), ((0, 0, 3, 3), "its operator_files is")):
        picture = Image.new("L", (16, 16), 255)
        picture.paste(0, box)
        picture.save(edited)
        arguments = ("restore", clean / "digit0.png", "--degrade", "--operator", f"mask:{edited}", "--steps", 3,
                     "--seeds", 0, "-o", tmp_path / "masked", "--provider", "cpu")
        _ = commands.done(*arguments) if ends is None else commands.refuses(ends, *arguments)
    refused = commands.refuses("its operator is", "restore", clean, "--degrade", "--operator", "gray", "--method",
                               "null-space", "--seeds", "0-2", "--steps", 6, "--solver", "sde-dpmpp-2m", "-o",
                               tmp_path / "out", "--provider", "cpu")
    assert "--force" in refused.output


def test_a_measurement_is_restored_with_the_bundled_gradient(clean, tmp_path):
    with Image.open(clean / "digit0.png") as picture:
        picture.resize((8, 8), Image.Resampling.BOX).save(tmp_path / "small.png")
    result = done(tmp_path / "small.png", "--operator", "down:2", "-o", tmp_path / "out")
    assert "posterior iterations 2" in result.output and "with 2 products an evaluation" in result.output
    assert "clean" not in result.output
    assert load_png(tmp_path / "out" / "small.png").shape == (16, 16 * 6, 3)


def test_a_measurement_of_floats_may_lie_outside_of_images(tmp_path, digits):
    """Noise leads there; and what a mask hides is not read."""
    y = sde_onnx.sample(digits, [100, 101], 8) + np.float32(0.5) * np.random.default_rng(0).standard_normal(
        (2, 3, 16, 16)).astype(np.float32)
    assert y.min() < 0 and y.max() > 1
    y[:, :, 5:11, 5:11] = np.nan
    np.savez(tmp_path / "y.npz", images=y)
    done(tmp_path / "y.npz", "--operator", BOX, "--noise", "0.5", "-o", tmp_path / "out")
    expected = sde_onnx.restore(digits, y[1], BOX, [2], 6, noise=0.5, solver="sde-dpmpp-2m",
                                gradient=sde_onnx.load(sde_onnx.bundled_gradient(), "cpu"))
    restored = load_png(tmp_path / "out" / "y-000001" / "000002.png").transpose(2, 0, 1)
    np.testing.assert_allclose(restored / 255, expected[0], atol=1.5 / 255)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--operator", "sharpen"], "unknown operator 'sharpen'"),
    (["--operator", "down:3", "--degrade"], "16 rows cannot be divided by 3"),
    (["--operator", "gray"], "digit0.png"),
    (["--operator", "down:2"], "digit0.png is 16x16, measurements by down:2 are 8x8"),
    (["--operator", "mask:missing.png", "--degrade"], "missing.png cannot be read"),
    (["--operator", BOX, "--method", "null-space", "--zeta", "1"], "option zeta belongs to dps"),
    (["--operator", BOX, "--degrade", "-o", "."], ""),
])
def test_bad_input_is_one_line(arguments, said, clean, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments[-1] == ".":
        monkeypatch.chdir(clean)
        said = "is where pictures are read from: choose another folder"
    refuses(said, clean, *arguments)


def test_help_names_the_methods():
    assert "null-space|posterior|dps|daps|replacement" in commands.run("restore", "--help").output.replace("\n", "")
    refuses("Missing option '--operator'", "x.png", status=2)


@pytest.mark.parametrize(("method", "has_export", "made"), [
    ("posterior", True, True), ("dps", True, True), ("posterior", False, False), ("null-space", True, False),
    (None, True, False),
])
def test_a_gradient_is_made_where_the_method_needs_one(method, has_export, made, model_file, clean, tmp_path,
                                                       monkeypatch):
    asked = []

    def cached_gradient(model):
        asked.append(model)
        return sde_onnx.bundled_gradient()

    monkeypatch.setattr("sde_onnx.extras.has_export", lambda: has_export)
    monkeypatch.setattr("sde_onnx.export.cache.cached_gradient", cached_gradient)
    how = ["--degrade", "--operator", "gray", "--provider", "cpu", "--seeds", "0", "--steps", 2]
    chosen = ["--method", method] if method else []
    result = commands.run("restore", model_file, clean, *how, *chosen, "-o", tmp_path / "out")
    assert asked == [model_file] * made
    if made:
        assert "is the gradient of another model" in result.output
    else:
        assert result.exit_code == (method == "posterior"), result.output

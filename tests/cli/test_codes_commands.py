"""``sde-onnx encode``, ``decode``, ``interpolate`` and ``edit``."""

import json

import commands
import numpy as np
import pytest
from PIL import Image

import sde_onnx
from sde_onnx.files import sha256
from sde_onnx.images import load_png, save_png, to_uint8


def done(*arguments):
    return commands.done(*arguments, "--provider", "cpu")


def refuses(message, *arguments, status=1):
    return commands.refuses(message, *arguments, "--provider", "cpu", status=status)


def test_pictures_go_to_codes_and_back(pictures, codes, digits, tmp_path):
    with np.load(codes) as saved:
        assert saved["names"].tolist() == ["0", "1"]
        _, images = sde_onnx.read_images([pictures], (3, 16, 16))
        np.testing.assert_array_equal(saved["latents"], sde_onnx.encode(digits, images, steps=12))
        settings = json.loads(str(saved["settings"]))
    assert settings == {"model": sha256(digits.path), "precision": "fp32", "rtol": None, "atol": None, "steps": 12,
                        "labels": None}
    result = done("decode", codes, "--steps", 12, "-o", tmp_path / "again")
    assert "2 images" in result.output
    assert "Note" not in result.output
    for name in ("0.png", "1.png"):
        difference = load_png(tmp_path / "again" / name).astype(int) - load_png(pictures / name)
        assert np.abs(difference).mean() < 3


def test_codes_of_another_model_are_named(codes, model_file, tmp_path):
    result = done("decode", model_file, codes, "--steps", 1, "-o", tmp_path / "again")
    assert "was not encoded with" in result.stderr


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_strip_has_its_frames(suffix, pictures, tmp_path):
    path = tmp_path / f"s.{suffix}"
    done("interpolate", "--from", pictures / "0.png", "--to", 4, "--frames", 3, "--steps", 8, "--zoom", 2, "-o", path)
    with Image.open(path) as strip:
        assert (strip.size, getattr(strip, "n_frames", 1)) == (((96, 32), 1) if suffix == "png" else ((32, 32), 3))
        if suffix == "png":
            difference = np.asarray(strip).astype(int)[::2, :32:2] - load_png(pictures / "0.png")
            assert np.abs(difference).mean() < 5


def test_an_edit_has_a_picture_for_each_seed(pictures, digits, tmp_path):
    done("edit", pictures, "--sigma", 0.5, "--seeds", "3,5", "--solver", "heun", "--steps", 4, "--rho", 5, "-o",
         tmp_path / "out")
    names = ["0-000003", "0-000005", "1-000003", "1-000005"]
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == names
    _, images = sde_onnx.read_images([pictures], (3, 16, 16))
    edited = to_uint8(sde_onnx.edit(digits, images.repeat(2, axis=0), [3, 5, 3, 5], 4, sigma=0.5, solver="heun", rho=5))
    for name, picture in zip(names, edited, strict=True):
        np.testing.assert_array_equal(load_png(tmp_path / "out" / f"{name}.png"), picture)


def test_outputs_are_kept_and_inputs_never_replaced(pictures, codes, tmp_path):
    before = {path: path.read_bytes() for path in (*pictures.iterdir(), codes)}
    refuses("exists already", "encode", pictures, "-o", codes)
    refuses("is also another file", "encode", codes, "-o", codes, "--force")
    refuses("exists already", "decode", codes, "-o", pictures)
    refuses("is also another file", "interpolate", "--from", pictures / "0.png", "--to", 1, "-o", pictures / "0.png",
            "--force")
    save_png(tmp_path / "0-000000.png", load_png(pictures / "0.png"))
    save_png(tmp_path / "0.png", load_png(pictures / "0.png"))
    np.savez(tmp_path / "more.npz", images=np.zeros((1, 16, 16, 3), np.uint8))
    refuses("is also another file", "encode", tmp_path, "-o", tmp_path / "more.npz", "--force")
    refuses("is also another file", "edit", tmp_path / "0-000000.png", tmp_path / "0.png", "--sigma", 0.5, "-o",
            tmp_path, "--force")
    refuses("is where pictures are read from", "edit", tmp_path, "--sigma", 0.5, "-o", tmp_path, "--force")
    assert before == {path: path.read_bytes() for path in before}


def test_bad_input_is_refused_in_one_line(pictures, codes, tmp_path):
    out = tmp_path / "out"
    save_png(tmp_path / "wide.png", np.zeros((16, 20, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.npz").write_bytes(b"PK")
    refuses("is 20x16, the model's images are 16x16: --resize", "encode", tmp_path / "wide.png", "-o", out / "c.npz")
    refuses("holds no pictures", "edit", tmp_path / "empty", "--sigma", 1, "-o", out)
    refuses("cannot be read as codes", "decode", tmp_path / "other.npz", "-o", out)
    with np.load(codes) as saved:
        held = dict(saved)
    for changed, message in (({"names": held["names"][:1]}, "1 names for 2 latents"),
                             ({"settings": "[1]"}, "its settings are no JSON object")):
        np.savez(tmp_path / "odd.npz", **(held | changed))
        refuses(message, "decode", tmp_path / "odd.npz", "-o", out)
    others = [f"other{index}" for index in range(1, len(held["names"]))]
    for first, message in (("a\0b", "is no name for a file"), ("a\x1b[2Jb", "is no name for a file"),
                           ("\ud800", "is no name for a file"),
                           ("", "is no name for a file"), ("x" * 300, "cannot be written: File name too long")):
        np.savez(tmp_path / "odd.npz", **(held | {"names": np.array([first, *others])}))
        refuses(message, "decode", tmp_path / "odd.npz", "-o", out)
    np.savez(tmp_path / "odd.npz", **(held | {"names": np.arange(len(held["names"]))}))
    refuses("its names are no list of texts", "decode", tmp_path / "odd.npz", "-o", out)
    assert not out.exists()
    refuses("missing", "interpolate", "--from", tmp_path / "none.png", "--to", 1, "-o", tmp_path / "s.png")
    refuses("two pictures are named 0-000000", "edit", pictures / "0.png", pictures / "0.png", "--sigma", 1, "-o", out)
    refuses("two pictures are named 0", "encode", pictures / "0.png", pictures / "0.png", "-o", out / "c.npz")
    refuses("sigma is 99, expected more than 0.01 and at most 20", "edit", pictures, "--sigma", 99, "-o", out)
    refuses("has no labels", "encode", pictures, "--label", "1,2", "-o", out / "c.npz")
    refuses("is no list of labels", "encode", pictures, "--label", "x", "-o", out / "c.npz", status=2)
    model = sde_onnx.bundled_model()
    refuses("is a model: give the files as well", "encode", model, "-o", out / "c.npz", status=2)
    refuses("digits.onnx is a model: put it first", "encode", out, model, "-o", out / "c.npz", status=2)
    refuses("digits.onnx is a second model: give one", "encode", model, model, "-o", out / "c.npz", status=2)
    refuses("expected a .npz", "encode", pictures, "-o", out / "c.png", status=2)
    refuses("Missing option '-o' / '--output'", "edit", pictures, "--sigma", 1, status=2)
    refuses("1 is not in the range x>=2", "interpolate", "--from", 1, "--to", 2, "--frames", 1, "-o", out / "c.png",
            status=2)
    refuses("Missing option '--to'", "interpolate", "--from", 1, "-o", out / "c.png", status=2)
    refuses("Missing option '--from'", "interpolate", "--to", 1, "-o", out / "c.png", status=2)
    refuses("expected a .png or a .gif", "interpolate", "--from", 1, "--to", 2, "-o", out / "c.jpg", status=2)
    refuses("holds 2 pictures, expected one", "interpolate", "--from", pictures, "--to", 2, "-o", out / "c.png",
            status=2)
    refuses("2 files of codes, expected one", "decode", codes, codes, "-o", out, status=2)
    assert not out.exists()
    done("encode", tmp_path / "wide.png", "--resize", "--steps", 1, "-o", out / "c.npz")

"""``sde-onnx gradient`` and ``sde-onnx likelihood`` as a user types them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from commands import done, refuses, run
from onnx import parser

import sde_onnx
from sde_onnx import images as pictures
from sde_onnx.cli import likelihood as likelihood_module
from sde_onnx.models import bundled_gradient
from sde_onnx.runtime import score_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """Three digits as PNGs."""
    folder = tmp_path_factory.mktemp("digits")
    for seed, picture in enumerate(pictures.to_uint8(sde_onnx.sample(digits, range(3), quality="fast"))):
        pictures.save_png(folder / f"{seed:06d}.png", picture)
    return folder


@pytest.mark.thorough
def test_each_picture_and_the_mean(folder, tmp_path):
    result = run("likelihood", folder, "--steps", 2, "-o", tmp_path / "l.csv", "--plot", tmp_path / "l.png")
    assert result.exit_code == 0, result.output
    with (tmp_path / "l.csv").open() as file:
        *rows, mean = csv.DictReader(file)
    names, images = sde_onnx.read_images([folder], (3, 16, 16))
    expected = sde_onnx.log_likelihood(sde_onnx.load(bundled_gradient(), "cpu"), images, steps=2)
    assert [row["name"] for row in rows] == names
    np.testing.assert_allclose([float(row["bits_per_dim"]) for row in rows], expected.bits_per_dim, rtol=1e-9)
    assert mean["name"] == "mean"
    assert float(mean["bits_per_dim"]) == pytest.approx(expected.bits_per_dim.mean())
    assert float(mean["standard_error"]) == pytest.approx(expected.bits_per_dim.std(ddof=1) / 3**0.5)
    assert "at least 2.68" in result.output and "at least 3.40" in result.output
    assert pictures.load_png(tmp_path / "l.png").shape[2] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.csv", "l.png"]
    refuses("exists already", "likelihood", folder, "-o", tmp_path / "l.csv")


def test_json_says_how_it_was_measured(folder, tmp_path):
    result = run("likelihood", folder, "--steps", 1, "--probes", 1, "--seed", 5, "-o", tmp_path / "l.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "l.json").read_text())
    assert found["settings"]["probes"] == found["settings"]["steps"] == 1
    assert len(found["settings"]["model"]) == 64
    assert [image["seed"] for image in found["images"]] == [5, 6, 7]
    assert found["images"][0]["standard_error"] is None   # of one estimate
    assert set(found["floors"]) == {"of the density's peak", "of noise of sigma_min, on average"}


@pytest.mark.thorough
def test_a_run_that_was_stopped_goes_on(folder, tmp_path, monkeypatch):
    whole = run("likelihood", folder, "--steps", 2, "--batch-size", 1, "-o", tmp_path / "whole.json")
    assert whole.exit_code == 0, whole.output
    calls = []
    original = score_model.ScoreModel.vjp

    def stopped(self, *arguments):
        calls.append(1)
        if len(calls) > 30:   # a picture takes 2 steps of 6 evaluations of 2 probes
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(score_model.ScoreModel, "vjp", stopped)
    arguments = "likelihood", folder, "--steps", 2, "--batch-size", 1, "-o", tmp_path / "l.json"
    assert run(*arguments).exit_code != 0
    assert not (tmp_path / "l.json").exists()
    monkeypatch.setattr(score_model.ScoreModel, "vjp", original)
    refuses("was begun with other settings or pictures", *arguments, "--probes", 3)
    again = run(*arguments)
    assert again.exit_code == 0 and "1 of 3 images were measured already" in again.output
    assert json.loads((tmp_path / "l.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.thorough
def test_a_model_without_gradient_gets_one_in_the_cache(folder, model_file, tmp_path, monkeypatch):
    monkeypatch.setenv("SDE_ONNX_CACHE", str(tmp_path / "cache"))
    for name in "ab":
        result = run("likelihood", model_file, folder, "--steps", 1, "-o", tmp_path / f"{name}.json")
        assert result.exit_code == 0, result.output
    kept, = (tmp_path / "cache").glob("*.onnx")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-100_000] + bytes(100_000))   # which ONNX Runtime would run
    done("likelihood", model_file, folder, "--steps", 1, "-o", tmp_path / "mended.json")
    assert kept.read_bytes() == whole
    monkeypatch.setattr(likelihood_module, "has_export", lambda: False)
    refuses(f"has no gradient: `sde-onnx gradient {model_file} -o FILE` makes", "likelihood", model_file, folder,
            "-o", tmp_path / "c.json")


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
@pytest.mark.parametrize("output", [b"l.csv", b"n" * 251 + b".csv"], ids=["bytes", "long"])
def test_any_name_of_a_file_is_one(output, folder, tmp_path):
    name = os.fsdecode(b"bad\xff.png")
    shutil.copyfile(folder / "000000.png", tmp_path / name)
    output = tmp_path / os.fsdecode(output)
    done("likelihood", tmp_path / name, "--steps", 1, "-o", output)
    assert output.read_bytes().splitlines()[1].startswith(b"bad\xff,0,")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / name, output])
    if len(output.name) > 200:   # what is unfinished has another name
        done("likelihood", tmp_path / name, "--steps", 1, "-o", output, "--force")
    else:
        done("restore", tmp_path / name, "--degrade", "--operator", "gray", "--steps", 2, "--seeds", 0, "--solver",
             "heun", "--method", "null-space", "-o", tmp_path / "r")


def test_what_likelihood_refuses(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    refuses("holds no pictures", "likelihood", empty, "-o", tmp_path / "l.csv")
    refuses("does not end in .csv, .json", "likelihood", folder, "-o", tmp_path / "l.txt", status=2)
    refuses("does not end in .png, .svg, .pdf", "likelihood", folder, "-o", tmp_path / "l.csv", "--plot",
            tmp_path / "l.txt", status=2)
    refuses("exclude each other", "likelihood", folder, "--steps", 3, "--rtol", 0.1, "-o", tmp_path / "l.csv")
    refuses("3 labels for 1 pictures: give one, or one for each", "likelihood", folder / "000000.png", "--label",
            "3,4,5", "-o", tmp_path / "l.csv", status=2)
    picture = folder / "000000.png"
    refuses("is also another file of this command", "likelihood", folder, "-o", tmp_path / "l.csv", "--plot", picture,
            "--force")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


@pytest.mark.thorough
def test_export_makes_both_in_one_go(checkpoint16, tmp_path):
    result = run("export", checkpoint16, "-o", tmp_path / "m.onnx", "--gradient", tmp_path / "g.onnx")
    assert result.exit_code == 0, result.output
    assert "of vjp sigma 0.01 batch 3" in result.output
    assert sde_onnx.read_metadata(tmp_path / "g.onnx").gradient
    assert not sde_onnx.read_metadata(tmp_path / "m.onnx").gradient
    text = run("info", tmp_path / "g.onnx").stdout
    assert "at export; " in text and "of vjp, relative to torch's" in text and "gradient   vjp" in text
    refuses("is also another file of this command", "export", checkpoint16, "-o", tmp_path / "n.onnx", "--gradient",
            tmp_path / "n.onnx")


@pytest.mark.thorough
def test_a_graph_for_cuda_gets_the_gradient_of_the_plain_one(checkpoint16, tmp_path):
    result = run("export", checkpoint16, "-o", tmp_path / "m.onnx", "--target", "cuda", "--gradient",
                 tmp_path / "g.onnx")
    assert result.exit_code == 0, result.output
    metadata = sde_onnx.read_metadata(tmp_path / "g.onnx")
    assert metadata.gradient and metadata.target == "any"


def test_any_graph(tmp_path, rng):
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[N, 4] image) => (float[N, 4] logits)
    { a = Exp(image)  logits = Mul(a, image) }"""
    onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
    result = run("gradient", tmp_path / "m.onnx", "-o", tmp_path / "g.onnx", "--of", "logits", "--at", "image")
    assert result.exit_code == 0 and "input v like logits, output vjp like image" in result.output
    x, v = (rng.standard_normal((3, 4), np.float32) for _ in range(2))
    session = ort.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["vjp"], {"image": x, "v": v})[0], v * np.exp(x) * (1 + x), rtol=1e-5,
                               atol=1e-6)
    refuses("--of and --at go together", "gradient", tmp_path / "m.onnx", "-o", tmp_path / "h.onnx", "--of", "logits",
            status=2)
    refuses("has no output 'logit'", "gradient", tmp_path / "m.onnx", "-o", tmp_path / "h.onnx", "--of", "logit",
            "--at", "image")
    refuses("a value 'v' already", "gradient", tmp_path / "g.onnx", "-o", tmp_path / "h.onnx", "--of", "logits",
            "--at", "image")
    refuses("is no model file of sde-onnx: name the output", "gradient", tmp_path / "m.onnx", "-o", tmp_path / "h.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    refuses("is not an ONNX file that can be read", "gradient", tmp_path / "broken.onnx", "-o", tmp_path / "h.onnx",
            "--of", "a", "--at", "b")
    assert not (tmp_path / "h.onnx").exists()

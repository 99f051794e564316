"""The page in headless Chromium against `sde-onnx sample`. `make web-test` builds it and runs this."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

import sde_onnx
from sde_onnx.export import export, from_edm
from sde_onnx.export.embedding.loop import embed
from sde_onnx.images import grid, to_uint8

BUILT = os.environ.get("SDE_ONNX_WEB")
pytestmark = pytest.mark.skipif(BUILT is None, reason="the page is not built: make web-test")
DRIVER = Path(__file__).parents[2] / "examples" / "web" / "drive.js"


@pytest.fixture(scope="module")
def labelled(golden, shared):
    """EDM's recorded network of ten labels, one of which may be left out."""
    return shared("cifar10_cond_ve.onnx",
                  lambda path: export(from_edm(golden / "edm" / "cifar10_cond_ve" / "network.pkl"), path))


@pytest.fixture(scope="module")
def folder(for_cuda, labelled, tmp_path_factory):
    """The built page, and files beside the good ones that are not."""
    folder = tmp_path_factory.mktemp("web") / "page"
    shutil.copytree(BUILT, folder)
    choices = json.loads((folder / "samplers.json").read_text())
    good = folder / choices[0]["file"]
    (folder / "truncated.onnx").write_bytes(good.read_bytes()[:100_000])
    shutil.copy(sde_onnx.bundled_model(), folder / "score.onnx")
    sampling = sde_onnx.resolve(sde_onnx.read_metadata(for_cuda), steps=12)
    embed(for_cuda, folder / "cuda.onnx", sampling, max_steps=12, kind="evaluation")
    for file in ("truncated.onnx", "score.onnx", "missing.onnx", "cuda.onnx"):
        choices.append(choices[0] | {"file": file})
    metadata = sde_onnx.read_metadata(labelled)
    embed(labelled, folder / "labelled.onnx", sde_onnx.resolve(metadata, steps=12), max_steps=12, kind="evaluation")
    choices.append({"file": "labelled.onnx", "solver": "labelled", "min_steps": 2, "steps": 12, "max_steps": 12,
                    "labels": metadata.labels, "label_optional": metadata.label_optional})
    (folder / "samplers.json").write_text(json.dumps(choices))
    return folder


@pytest.fixture(scope="module")
def drive(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"

    def drive(*fields):
        result = subprocess.run(["node", DRIVER, f"{url}index.html", *fields], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        output = json.loads(result.stdout)
        assert all(request.startswith((url, "blob:", "data:")) for request in output["requests"])   # nothing leaves
        return output["shown"]

    yield drive
    server.shutdown()


@pytest.mark.parametrize(("solver", "typed", "steps"), [("sde-dpmpp-2m", "", 25), ("sde-dpmpp-2m", "12", 12),
                                                        ("pc", "", 100), ("pc", "200", 200)])
def test_pictures_are_those_of_the_command(solver, typed, steps, drive):
    seeds = [*range(8), 2**64 - 1]
    [shown] = drive(f"0-7,{2**64 - 1}", f"{solver}.onnx", typed, "")
    assert not shown["error"]
    model = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    evaluations = sde_onnx.resolve(model.metadata, solver=solver, steps=steps).evaluations
    assert f"evaluation {evaluations} of {evaluations}" in shown["message"]
    assert "ms each" in shown["message"]
    expected = grid(to_uint8(sde_onnx.sample(model, seeds, steps, solver=solver)))
    pixels = np.array(shown["pixels"], np.uint8).reshape(shown["height"], shown["width"], 4)
    difference = np.abs(pixels[..., :3].astype(int) - expected)
    print(f"{solver}, {steps} steps: {100 * (difference == 0).mean():.4f}% equal, largest {difference.max()}; "
          f"{shown['message']}")
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999


def test_a_label_chooses_the_class(labelled, drive):
    model = sde_onnx.load(labelled, "cpu")
    fields = [("3", "labelled.onnx", "", "7"), ("3", "labelled.onnx", "", "10")]
    shown, refused = drive(*(word for case in fields for word in case))
    expected = grid(to_uint8(sde_onnx.sample(model, [3], 12, labels=7)))
    pixels = np.array(shown["pixels"], np.uint8).reshape(shown["height"], shown["width"], 4)
    assert np.abs(pixels[..., :3].astype(int) - expected).max() <= 1
    assert 'label is "10", expected a whole number from 0 to 9' in refused["message"]


def test_bad_input_is_one_line(drive):
    good = "sde-dpmpp-2m.onnx"
    cases = [
        ("one", good, "", '"one" is no seed'),
        ("-1", good, "", '"-1" is no seed'),
        (str(2**64), good, "", "does not fit 64 bits"),
        ("0-99", good, "", "more than 64 images"),
        *(("0", good, steps, f'steps is "{steps}", expected a whole number from 2 to 100')
          for steps in ("0", "1", "101", "-3", "2.5", "many")),
        ("0", "truncated.onnx", "", "truncated.onnx is damaged"),
        ("0", "cuda.onnx", "", "cuda.onnx is for CUDA or another device, not for a browser"),
        ("0", "score.onnx", "", "score.onnx is no evaluation file"),
        ("0", "missing.onnx", "", "missing.onnx cannot be loaded: 404"),
    ]
    for shown, (*_, message) in zip(drive(*(word for case in cases for word in (*case[:3], ""))), cases, strict=True):
        assert shown["error"]
        assert message in shown["message"]
        assert "\n" not in shown["message"]

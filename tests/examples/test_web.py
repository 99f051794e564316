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
from sde_onnx import operators
from sde_onnx.export import export, from_edm
from sde_onnx.export.embedding.loop import embed
from sde_onnx.guidance.measurement import Measurement
from sde_onnx.guidance.null_space import null_space
from sde_onnx.images import grid, to_uint8
from sde_onnx.solvers.noise import PortableNoise

BUILT = os.environ.get("SDE_ONNX_WEB")
pytestmark = pytest.mark.skipif(BUILT is None, reason="the page is not built: make web-test")
DRIVER = Path(__file__).parents[2] / "examples" / "web" / "drive.js"


@pytest.fixture(scope="module")
def labelled(golden, shared):
    """EDM's recorded network of ten labels, one of which may be left out."""
    return shared("cifar10_cond_ve.onnx",
                  lambda path: export(from_edm(golden / "edm" / "cifar10_cond_ve" / "network.pkl"), path))


@pytest.fixture(scope="module")
def folder(for_cuda, labelled, half, tmp_path_factory):
    """The built page, and files beside the good ones that are not."""
    folder = tmp_path_factory.mktemp("web") / "page"
    shutil.copytree(BUILT, folder)
    choices = json.loads((folder / "samplers.json").read_text())
    good = folder / choices[0]["file"]
    (folder / "truncated.onnx").write_bytes(good.read_bytes()[:100_000])
    shutil.copy(sde_onnx.bundled_model(), folder / "score.onnx")
    sampling = sde_onnx.resolve(sde_onnx.read_metadata(for_cuda), steps=12)
    embed(for_cuda, folder / "cuda.onnx", sampling, max_steps=12, kind="evaluation")
    sampling = sde_onnx.resolve(sde_onnx.read_metadata(half), solver="sde-dpmpp-2m", steps=12)
    embed(half, folder / "half.onnx", sampling, max_steps=12, kind="evaluation", operator="mask")
    for file in ("truncated.onnx", "score.onnx", "missing.onnx", "cuda.onnx", "half.onnx"):
        choices.append(choices[0] | {"file": file})
    metadata = sde_onnx.read_metadata(labelled)
    sampling = sde_onnx.resolve(metadata, solver="sde-dpmpp-2m", steps=12)
    embed(labelled, folder / "labelled.onnx", sampling, max_steps=12, kind="evaluation", operator="mask")
    choices.append({"file": "labelled.onnx", "solver": "labelled", "min_steps": 2, "steps": 12, "max_steps": 12,
                    "operator": "mask", "labels": metadata.labels, "label_optional": metadata.label_optional})
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

    def drive(*cases, query="", webgpu=""):
        command = ["node", DRIVER, f"{url}index.html{query}", json.dumps(cases)]
        result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"WEBGPU": webgpu})
        assert result.returncode == 0, result.stderr
        output = json.loads(result.stdout)
        assert all(request.startswith((url, "blob:", "data:")) for request in output["requests"])   # nothing leaves
        return output["shown"] if cases else output["loaded"]

    yield drive
    server.shutdown()


def pixels_of(canvas):
    return np.array(canvas["pixels"], np.uint8).reshape(canvas["height"], canvas["width"], 4)


def compare(what, pixels, expected, shown):
    difference = np.abs(pixels[..., :3].astype(int) - expected)
    print(f"{what}: {100 * (difference == 0).mean():.4f}% equal, largest {difference.max()}; {shown['message']}")
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999


@pytest.mark.parametrize(("solver", "typed", "steps"), [("sde-dpmpp-2m", "", 25), ("sde-dpmpp-2m", "12", 12),
                                                        ("pc", "", 100), ("pc", "200", 200)])
def test_pictures_are_those_of_the_command(solver, typed, steps, drive):
    seeds = [*range(8), 2**64 - 1]
    [shown] = drive({"seeds": f"0-7,{2**64 - 1}", "file": f"{solver}.onnx", "steps": typed})
    assert not shown["error"]
    model = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    evaluations = sde_onnx.resolve(model.metadata, solver=solver, steps=steps).evaluations
    assert shown["where"] == "on one core (WebAssembly)"
    assert f"evaluation {evaluations} of {evaluations}" in shown["message"]
    assert "ms each" in shown["message"]
    expected = grid(to_uint8(sde_onnx.sample(model, seeds, steps, solver=solver)))
    compare(f"{solver}, {steps} steps", pixels_of(shown), expected, shown)


@pytest.mark.skipif("SDE_ONNX_WEBGPU" not in os.environ, reason="takes a minute: make webgpu-test")
def test_pictures_on_a_gpu_are_those_of_the_command(drive):
    [shown] = drive({"seeds": "0-3", "file": "sde-dpmpp-2m.onnx", "steps": "4"}, query="?provider=webgpu",
                    webgpu="software" if os.environ.get("VK_DRIVER_FILES") else "gpu")
    assert not shown["error"], shown["message"]
    assert shown["where"] == "on the GPU (WebGPU)"
    model = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    expected = grid(to_uint8(sde_onnx.sample(model, range(4), 4, solver="sde-dpmpp-2m")))
    difference = np.abs(pixels_of(shown)[..., :3].astype(int) - expected)
    print(f"WebGPU: {100 * (difference == 0).mean():.2f}% equal, largest {difference.max()}; {shown['message']}")
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.99


def test_a_browser_without_webgpu_says_so_when_it_is_asked_for(drive):
    loaded = drive(query="?provider=webgpu")
    assert loaded["error"]
    assert loaded["message"] == "this browser offers no WebGPU: leave ?provider=webgpu out"


def test_software_is_not_taken_for_a_gpu(drive):
    """WebAssembly is faster than a GPU in software."""
    assert drive(webgpu="software")["where"] == "on one core (WebAssembly)"


def restorations(model, torn, seeds, steps, *, solver="sde-dpmpp-2m", label=None):
    """What the host makes of a picture ``[H, W, 4]`` whose missing pixels have alpha 0."""
    y = (torn[..., :3] / 255).astype(np.float32).transpose(2, 0, 1)[None].repeat(len(seeds), axis=0)
    score = model if label is None else functools.partial(model, label=np.full(len(seeds), label))
    score = null_space(score, Measurement(y, operators.mask(torn[..., 3] > 0), 0.0), damping=1.0)
    sampling = sde_onnx.resolve(model.metadata, solver=solver, steps=steps)
    *_, last = sampling.run(score, PortableNoise(seeds, model.metadata.image_shape))
    return to_uint8(last.x_mean)


def test_weights_in_float16_make_the_pictures_of_the_command(half, drive):
    [shown] = drive({"seeds": "0-3", "file": "half.onnx", "steps": "12"})
    assert not shown["error"]
    model = sde_onnx.load(half, "cpu")
    compare("weights in float16", pixels_of(shown),
            grid(to_uint8(sde_onnx.sample(model, range(4), 12, solver="sde-dpmpp-2m"))), shown)


@pytest.mark.parametrize(("solver", "steps"), [("sde-dpmpp-2m", 25), ("pc", 100)])
def test_what_the_pointer_rubs_out_comes_back_as_the_host_restores_it(solver, steps, drive):
    [shown] = drive({"seeds": "0-3", "file": f"{solver}.onnx", "rub": [[4, 4], [12, 12], [20, 4], [20, 20]],
                     "fill": "16-19"})
    assert not shown["error"]
    model = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    torn = pixels_of(shown)
    known = torn[..., 3] > 0
    parts = [np.s_[:16, :16], np.s_[:16, 16:], np.s_[16:, :16], np.s_[16:, 16:]]
    assert [bool(known[part].all()) for part in parts] == [False, False, True, False]
    assert 0.5 < known.mean() < 0.95
    compare(f"{solver}, what is known", torn[known][:, :3], grid(to_uint8(sde_onnx.sample(
        model, range(4), steps, solver=solver)))[known], shown)
    expected = [restorations(model, torn[part], [seed], steps, solver=solver)[0] for part, seed in
                zip(parts, range(16, 20), strict=True)]
    compare(f"{solver}, restored", pixels_of(shown["restored"]), grid(np.stack(expected)), shown)


def test_one_picture_has_several_restorations_and_several_have_one_each(drive):
    case = {"file": "sde-dpmpp-2m.onnx", "steps": "12", "rub": [[4, 8], [12, 8]]}
    shown, refused = drive(case | {"seeds": "5", "fill": "1-4"}, case | {"seeds": "5-7", "fill": "1-4"})
    model = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    expected = grid(restorations(model, pixels_of(shown), range(1, 5), 12))
    compare("of one picture", pixels_of(shown["restored"]), expected, shown)
    assert refused["error"]
    assert "3 pictures, 4 seeds to restore them with: give one for each" in refused["message"]


def test_pictures_are_proposed_seeds_to_fill_them(drive):
    [shown] = drive({"file": "sde-dpmpp-2m.onnx", "steps": "4", "rub": [[4, 8]], "seeds": "0-1"})
    assert not shown["error"]   # as many seeds as pictures
    assert (shown["restored"]["width"], shown["restored"]["height"]) == (32, 16)


def test_a_label_chooses_what_fills_the_gap(labelled, drive):
    [shown] = drive({"seeds": "3", "file": "labelled.onnx", "label": "7", "rub": [[4, 8], [12, 8]], "fill": "4"})
    model = sde_onnx.load(labelled, "cpu")
    expected = grid(restorations(model, pixels_of(shown), [4], 12, label=7))
    pixels = pixels_of(shown["restored"])
    assert np.abs(pixels[..., :3].astype(int) - expected).max() <= 1
    assert (pixels_of(shown)[..., 3] == 0).any()


def test_a_label_chooses_the_class(labelled, drive):
    model = sde_onnx.load(labelled, "cpu")
    shown, refused = drive(*({"seeds": "3", "file": "labelled.onnx", "label": label} for label in ("7", "10")))
    expected = grid(to_uint8(sde_onnx.sample(model, [3], 12, solver="sde-dpmpp-2m", labels=7)))
    assert np.abs(pixels_of(shown)[..., :3].astype(int) - expected).max() <= 1
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
    fields = [dict(zip(("seeds", "file", "steps"), case, strict=False)) for case in cases]
    for shown, (*_, message) in zip(drive(*fields), cases, strict=True):
        assert shown["error"]
        assert message in shown["message"]
        assert "\n" not in shown["message"]

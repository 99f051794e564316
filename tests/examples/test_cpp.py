"""The C++ programs against `sde-onnx sample`. `make cpp` builds them and runs this."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import sde_onnx
from sde_onnx import operators
from sde_onnx.export import export, from_edm
from sde_onnx.export.embedding.loop import embed
from sde_onnx.guidance.measurement import Measurement
from sde_onnx.guidance.null_space import null_space
from sde_onnx.images import to_uint8
from sde_onnx.runtime.metadata import SAMPLER_KEY
from sde_onnx.solvers.noise import PortableNoise

FOLDER = os.environ.get("SDE_ONNX_CPP")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="the C++ programs are not built: make cpp")
FILES = {"sample": "sampler.onnx", "evaluate": "evaluation.onnx"}   # what each program runs
SEEDS = [*range(16), 2**64 - 1]


@pytest.fixture(scope="module", params=[("sde-dpmpp-2m", 25), ("pc", 20)], ids=["sde-dpmpp-2m", "pc"])
def solver(request):
    return request.param


@pytest.fixture(scope="module")
def files(solver, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    name, steps = solver
    for kind in ("sampler", "evaluation"):
        embed_as(folder / f"{kind}.onnx", name, steps, kind=kind)
        embed_as(folder / f"any-{kind}.onnx", name, 12, max_steps=25, kind=kind)
    return folder


def embed_as(path, solver, steps, model=None, **how):
    model = model or sde_onnx.bundled_model()
    embed(model, path, sde_onnx.resolve(sde_onnx.read_metadata(model), solver=solver, steps=steps), **how)


def run(program, *arguments):
    return subprocess.run([Path(FOLDER) / program, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("program", ["sample", "evaluate"])
@pytest.mark.parametrize(("prefix", "asks"), [("", False), ("", True), ("any-", True)])
def test_pictures_are_those_of_the_command(program, prefix, asks, files, solver, tmp_path):
    steps = ["--steps", solver[1]] if asks else []
    result = run(program, *steps, files / (prefix + FILES[program]), f"{tmp_path}/", *SEEDS)
    assert result.returncode == 0, result.stderr
    model = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    expected = to_uint8(sde_onnx.sample(model, SEEDS, solver[1], solver=solver[0]))
    pictures = np.stack([np.asarray(Image.open(tmp_path / f"{seed:06d}.ppm")) for seed in SEEDS])
    difference = np.abs(pictures.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999


@pytest.mark.parametrize(("program", "kind"), [("sample", "sampler"), ("evaluate", "evaluation")])
def test_weights_in_float16_make_the_pictures_of_the_command(program, kind, half, tmp_path):
    embed_as(tmp_path / "s.onnx", "sde-dpmpp-2m", 12, half, kind=kind)
    result = run(program, tmp_path / "s.onnx", f"{tmp_path}/", 3)
    assert result.returncode == 0, result.stderr
    [expected] = to_uint8(sde_onnx.sample(sde_onnx.load(half, "cpu"), [3], 12, solver="sde-dpmpp-2m"))
    difference = np.abs(np.asarray(Image.open(tmp_path / "000003.ppm")).astype(int) - expected)
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999


@pytest.mark.parametrize(("program", "kind"), [("sample", "sampler"), ("evaluate", "evaluation")])
def test_labels_are_those_of_the_command(program, kind, golden, shared, tmp_path):
    model_path = shared("cifar10_cond_ve.onnx",
                        lambda path: export(from_edm(golden / "edm" / "cifar10_cond_ve" / "network.pkl"), path))
    embed_as(tmp_path / "s.onnx", "sde-dpmpp-2m", 6, model_path, kind=kind)
    model = sde_onnx.load(model_path, "cpu")
    for label in (None, 7):
        asked = [] if label is None else ["--label", label]
        result = run(program, *asked, tmp_path / "s.onnx", f"{tmp_path}/", 3)
        assert result.returncode == 0, result.stderr
        [expected] = to_uint8(sde_onnx.sample(model, [3], 6, solver="sde-dpmpp-2m", labels=label))
        assert np.abs(np.asarray(Image.open(tmp_path / "000003.ppm")).astype(int) - expected).max() <= 1
    for label in ("10", "-1", "x"):
        result = run(program, "--label", label, tmp_path / "s.onnx", f"{tmp_path}/", 3)
        assert result.returncode == 1
        assert f"label is '{label}', expected 0 to 9" in result.stderr
    embed_as(tmp_path / "plain.onnx", "sde-dpmpp-2m", 6, kind=kind)
    result = run(program, "--label", 3, tmp_path / "plain.onnx", f"{tmp_path}/", 3)
    assert "the file has no labels" in result.stderr


@pytest.mark.parametrize("program", ["sample", "evaluate"])
def test_a_digit_with_a_rubbed_out_part_is_restored(program, files, solver, tmp_path):
    """As the host does it, of a picture that the program wrote; a mask may be of one channel or of the picture's."""
    restoring = tmp_path / "restore.onnx"
    embed_as(restoring, *solver, kind=FILES[program].removesuffix(".onnx"), operator="mask")
    assert run(program, files / FILES[program], f"{tmp_path}/", 100).returncode == 0
    digit = np.asarray(Image.open(tmp_path / "000100.ppm"))
    known = np.ones((16, 16), bool)
    known[3:10, 4:13] = False
    Image.fromarray(np.where(known[..., None], digit, np.uint8(77))).save(tmp_path / "torn.ppm")
    Image.fromarray(known.astype(np.uint8) * 255).save(tmp_path / "known.pgm")
    Image.fromarray(known.astype(np.uint8)[..., None].repeat(3, axis=2) * 255).save(tmp_path / "known.ppm")
    model, seeds = sde_onnx.load(sde_onnx.bundled_model(), "cpu"), range(16)
    y = (digit / 255).astype(np.float32).transpose(2, 0, 1)[None].repeat(len(seeds), axis=0)
    sampling = sde_onnx.resolve(model.metadata, solver=solver[0], steps=solver[1])
    *_, last = sampling.run(null_space(model, Measurement(y, operators.mask(known), 0.0), damping=1.0),
                            PortableNoise(seeds, (3, 16, 16)))
    expected = to_uint8(last.x_mean)
    for mask in ("known.pgm", "known.ppm"):
        result = run(program, "--mask", tmp_path / mask, "--measurement", tmp_path / "torn.ppm", restoring,
                     f"{tmp_path}/", *seeds)
        assert result.returncode == 0, result.stderr
        pictures = np.stack([np.asarray(Image.open(tmp_path / f"{seed:06d}.ppm")) for seed in seeds])
        difference = np.abs(pictures.astype(int) - expected)
        print(f"{program}, {solver[0]}: {100 * (difference == 0).mean():.4f}% equal, largest {difference.max()}")
        assert difference.max() <= 1
        assert (difference == 0).mean() >= 0.999
    (tmp_path / "commented.ppm").write_bytes(b"P6\n# by hand\n16 16\n# of 8 bits\n255\n" + digit.tobytes())
    (tmp_path / "short.ppm").write_bytes(b"P6 16 16 255\n" + digit.tobytes()[:-1])
    (tmp_path / "text.ppm").write_text("no picture")
    Image.fromarray(digit[:8]).save(tmp_path / "small.ppm")
    Image.fromarray(digit[..., 0]).save(tmp_path / "gray.pgm")
    mask = tmp_path / "known.pgm"
    assert run(program, "--measurement", tmp_path / "commented.ppm", "--mask", mask, restoring, f"{tmp_path}/",
               1).returncode == 0
    for options, file, message in [
        ([], restoring, "the file restores pictures: give --mask FILE and --measurement FILE"),
        (["--mask", mask], restoring, "the file restores pictures: give --mask FILE and --measurement FILE"),
        (["--mask", mask], files / FILES[program], "the file restores nothing: make one with `sde-onnx embed"),
        (["--mask", mask, "--measurement", tmp_path / "none.ppm"], restoring, "none.ppm cannot be read"),
        (["--mask", mask, "--measurement", tmp_path / "short.ppm"], restoring, "short.ppm ends too early"),
        (["--mask", mask, "--measurement", tmp_path / "text.ppm"], restoring, "text.ppm is no binary .pgm or .ppm"),
        (["--mask", mask, "--measurement", tmp_path / "small.ppm"], restoring,
         "small.ppm has size [C, H, W] 3, 8, 16, the file takes 3, 16, 16"),
        (["--mask", mask, "--measurement", tmp_path / "gray.pgm"], restoring,
         "gray.pgm has size [C, H, W] 1, 16, 16, the file takes 3, 16, 16"),
    ]:
        result = run(program, *options, file, f"{tmp_path}/", 1)
        assert result.returncode == 1
        assert result.stderr.startswith("Error: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_ctrl_c_keeps_what_there_is(tmp_path):
    embed_as(tmp_path / "evaluation.onnx", "pc", 5000, kind="evaluation")
    process = subprocess.Popen([Path(FOLDER) / "evaluate", tmp_path / "evaluation.onnx", f"{tmp_path}/", "3"],
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "of 10000" in told
    assert "stopped after evaluation" in told
    assert Image.open(tmp_path / "000003-unfinished.ppm").size == (16, 16)
    assert not (tmp_path / "000003.ppm").exists()   # a name of finished pictures


def test_many_images_take_the_memory_of_a_batch(files, tmp_path):
    """And show how many there are; on as many threads as asked for."""
    def most_memory(count, *batch):
        program = [Path(FOLDER) / "sample", "--threads", "1", *batch, files / FILES["sample"], f"{tmp_path}/",
                   *map(str, range(count))]
        # Run by a small process, since a program's peak begins with that of the process that it was forked from.
        small = "import resource as r, subprocess, sys; subprocess.run(sys.argv[1:], check=True); " \
                "print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss)"
        result = subprocess.run([sys.executable, "-c", small, *program], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        *listed, peak = result.stdout.splitlines()
        return int(peak), listed, result.stderr

    few, *_ = most_memory(64)
    many, listed, told = most_memory(150)
    print(f"64 images take {few / 1024:.0f} MB, 150 take {many / 1024:.0f} MB")
    assert many <= 1.1 * few
    assert told.endswith("150 of 150 images\n")
    assert sum(line.endswith(".ppm") for line in listed) == 150
    one_by_one, *_ = most_memory(20, "--batch", "1")
    assert one_by_one < few


@pytest.mark.parametrize(("program", "other"), [("sample", "evaluation.onnx"), ("evaluate", "sampler.onnx")])
def test_bad_input_is_one_line(program, other, files, for_cuda, solver, tmp_path):
    right, any_steps = files / FILES[program], files / f"any-{FILES[program]}"
    least = 1 if solver[0] == "pc" else 2
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(right.read_bytes()[:100_000])
    kind = FILES[program].removesuffix(".onnx")
    embed_as(tmp_path / "cuda.onnx", solver[0], 12, for_cuda, kind=kind)
    older = onnx.load(right)
    about = {item.key: item.value for item in older.metadata_props}
    onnx.helper.set_model_props(older, about | {SAMPLER_KEY: about[SAMPLER_KEY].replace('"format": 2', '"format": 1')})
    onnx.save(older, tmp_path / "older.onnx")
    for arguments, message in [
        ([right, tmp_path, "one"], "seed 'one' is not a whole number"),
        ([right, tmp_path, "-1"], "seed '-1' is not a whole number"),
        ([right, tmp_path, 2**64], "does not fit 64 bits"),
        ([tmp_path / "missing.onnx", tmp_path, 1], "File doesn't exist"),
        ([truncated, tmp_path, 1], "failed"),
        ([tmp_path / "cuda.onnx", tmp_path, 1], "cuda.onnx is for CUDA or another device, not for this one"),
        ([files / other, tmp_path, 1], "the file is no "),
        ([tmp_path / "older.onnx", tmp_path, 1], "the file has sampler format 1, this program knows 2 and 3: make it"),
        ([right, tmp_path / "no" / "folder", 1], "cannot be written"),
        (["--steps", 7, right, tmp_path, 1], f"the file makes {solver[1]} steps, no other number"),
        *((["--steps", steps, any_steps, tmp_path, 1], f"steps is '{steps}', expected {least} to 25")
          for steps in (0, 26, -1, "many")),
        *((["--threads", threads, right, tmp_path, 1], f"threads is '{threads}', expected 0 to 1024")
          for threads in (-1, 1025, "all")),
    ]:
        result = run(program, *arguments)
        assert result.returncode == 1
        lines = result.stderr.replace("\r", "\n").strip().splitlines()
        assert message in lines[-1], result.stderr
        assert lines[-1].startswith("Error: ")
        assert len(lines) == 1 or (program, message) == ("evaluate", "cannot be written")   # after its progress
    assert run(program).returncode == 2


def test_the_listing_in_the_documentation_compiles_and_runs(files, solver, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text(encoding="utf-8")
    [listing] = re.findall(r"```cpp\n(.*?)```", text, re.DOTALL)
    assert listing.count("\n") <= 30
    (tmp_path / "listing.cpp").write_text(listing)
    cache = (Path(FOLDER) / "CMakeCache.txt").read_text()
    include, library = (re.search(rf"^ONNXRUNTIME_{name}:\w+=(.*)$", cache, re.MULTILINE)[1]
                        for name in ("INCLUDE_DIR", "LIBRARY"))
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Werror", f"-isystem{include}", "listing.cpp", library,
                    f"-Wl,-rpath,{Path(library).parent}", "-o", "listing"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "listing", files / "sampler.onnx", str(2**64 - 1), tmp_path / "a.ppm"], check=True)
    model = sde_onnx.load(sde_onnx.bundled_model(), "cpu")
    [expected] = to_uint8(sde_onnx.sample(model, [2**64 - 1], solver[1], solver=solver[0]))
    assert np.abs(np.asarray(Image.open(tmp_path / "a.ppm")).astype(int) - expected).max() <= 1

import dataclasses
import json
import os
import subprocess
import sys
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from commands import done, refuses, run
from PIL import Image

import sde_onnx
from sde_onnx.cli import main
from sde_onnx.cli.info import _lines
from sde_onnx.cli.options import notes
from sde_onnx.errors import BatchSizeWarning, InputError, OutputError
from sde_onnx.files import check_room
from sde_onnx.generate.seeds import format_seeds


def sample(*arguments):
    return done("sample", *arguments, "--provider", "cpu")


def test_every_command_and_option_says_what_it_does():
    for command in main.commands.values():
        assert "Example: sde-onnx" in command.help
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help


def test_a_png_of_several_seeds_is_a_grid(model_file, model, tmp_path):
    result = sample(model_file, "--seeds", "0-2,7", "--steps", 3, "-o", tmp_path / "s.png", "--zoom", 2)
    picture = np.asarray(Image.open(tmp_path / "s.png"))
    assert picture.shape == (64, 64, 3)
    expected = sde_onnx.images.to_uint8(sde_onnx.sample(model, seeds=[0, 1, 2, 7], steps=3))
    np.testing.assert_array_equal(picture[32::2, 32::2], expected[3])
    assert "4 images, seeds 0-2,7, restart, 3 steps with 0 restarts, nfe 3, cpu fp32" in result.stdout
    assert result.stderr == ""   # no progress bar without a terminal


def test_npz_holds_floats_and_seeds(model_file, model, tmp_path):
    sample(model_file, "--seeds", "5,3", "--steps", 3, "-o", tmp_path / "s.npz")
    saved = np.load(tmp_path / "s.npz")
    assert saved["seeds"].tolist() == [5, 3]
    np.testing.assert_array_equal(saved["images"], sde_onnx.sample(model, seeds=[5, 3], steps=3))


def test_a_folder_holds_a_picture_a_seed(model_file, tmp_path):
    sample(model_file, "--seeds", "8-10", "--steps", 2, "--batch-size", 2, "-o", tmp_path / "out", "--grid",
           "--gif", tmp_path / "d.gif")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000008.png", "000009.png", "000010.png",
                                                                         "run.json"]   # what an FID tool collects
    assert Image.open(tmp_path / "out.png").size == (32, 32)
    animation = Image.open(tmp_path / "d.gif")
    assert (animation.n_frames, animation.size) == (2, (32, 32))


def test_an_animation_shows_every_image_though_batches_take_other_steps(tmp_path):
    sample("--seeds", "0-3", "--batch-size", 1, "--solver", "adaptive-sde", "--rtol", 0.5, "--atol", 0.1,
           "-o", tmp_path / "s.png", "--gif", tmp_path / "s.gif")
    with Image.open(tmp_path / "s.gif") as animation, Image.open(tmp_path / "s.png") as picture:
        animation.seek(animation.n_frames - 1)
        assert animation.size == picture.size == (32, 32)
        difference = np.asarray(animation.convert("RGB")).astype(int) - np.asarray(picture)
    assert np.abs(difference).mean() < 12   # a palette of 256 colours


def test_the_options_of_the_sampler_reach_it(model_file, model, tmp_path):
    sample(model_file, "--seeds", "1-2", "--solver", "pc", "--steps", 3, "--snr", 0.3, "--corrector-steps", 2,
           "--langevin-norm", "batch", "-o", tmp_path / "s.npz")
    expected = sde_onnx.sample(model, seeds=[1, 2], steps=3, solver="pc", snr=0.3, n_corrector=2,
                               langevin_norm="batch")
    np.testing.assert_array_equal(np.load(tmp_path / "s.npz")["images"], expected)


def test_the_options_of_solvers_are_those_of_their_table():
    from sde_onnx.runtime.providers import PROVIDERS
    from sde_onnx.solvers.catalogue import QUALITIES, SOLVERS
    from sde_onnx.solvers.options import OPTIONS
    from sde_onnx.solvers.predictor_corrector import PREDICTORS

    assert {name for solver in SOLVERS.values() for name in solver.options} == set(OPTIONS)
    assert OPTIONS["predictor"].choices == tuple(PREDICTORS)
    for command in ("sample", "embed"):
        parameters = {parameter.name: parameter for parameter in main.commands[command].params}
        assert set(OPTIONS) <= set(parameters)
        assert tuple(parameters["solver"].type.choices) == tuple(SOLVERS)
        assert tuple(parameters["quality"].type.choices) == tuple(QUALITIES)
    [provider] = [parameter for parameter in main.commands["sample"].params if parameter.name == "provider"]
    assert tuple(provider.type.choices) == ("auto", *PROVIDERS)


def test_help_says_whose_an_option_is_and_its_default():
    text = " ".join(run("sample", "--help").output.split())
    assert "How much noise; 0 is none, 1 the reverse diffusion's. [sde-dpmpp-2m, sde-dpmpp-3m, restart]" in text
    assert "[default: (1; 2 of sde-dpmpp-2m); x>=0.0]" in text
    assert "[default: (the model's); x>0.0]" in text


def test_a_solver_and_its_options_reach_the_sampler(model_file, model, tmp_path):
    sample(model_file, "--seeds", "1-2", "--solver", "sde-dpmpp-2m", "--steps", 4, "--eta", 0.5, "--schedule",
           "geometric", "-o", tmp_path / "s.npz")
    expected = sde_onnx.sample(model, [1, 2], 4, solver="sde-dpmpp-2m", eta=0.5, schedule="geometric")
    np.testing.assert_array_equal(np.load(tmp_path / "s.npz")["images"], expected)


@pytest.mark.parametrize(("arguments", "missing"), [
    (["export", "checkpoint"], "--output"), (["embed"], "--output"), (["gradient", "m.onnx"], "--output"),
    (["decode", "c.npz"], "--output"), (["edit", "p.png", "-o", "o"], "--sigma"),
    (["interpolate", "--to", "1", "-o", "s.png"], "--from"), (["interpolate", "--from", "1", "-o", "s.png"], "--to"),
    (["restore", "p.png", "-o", "o"], "--operator"),
], ids=" ".join)
def test_what_a_command_needs_is_named(arguments, missing):
    output = refuses("Missing option", *arguments, status=2).output
    assert f"Missing option '{missing}'" in output.replace("'-o' / ", "")


@pytest.mark.parametrize("command", [
    ["embed", "-o"], ["embed", "-o", "s.onnx", "--golden"], ["export", "checkpoint", "-o"],
    ["export", "checkpoint", "-o", "m.onnx", "--gradient"], ["gradient", "m.onnx", "-o"], ["encode", "p.png", "-o"],
    ["interpolate", "--from", "1", "--to", "2", "-o"], ["likelihood", "p.png", "-o"], ["likelihood", "p.png", "--plot"],
    ["sample", "--gif"], ["sample", "--classifier"],
], ids=" ".join)
def test_a_file_is_no_folder(command, tmp_path):
    refuses("is a directory", *command, tmp_path, status=2)


@pytest.mark.parametrize("command", [
    ["decode", "c.npz", "-o"], ["edit", "p.png", "--sigma", "1", "-o"],
    ["restore", "p.png", "--operator", "gray", "-o"], ["embed", "-o", "s.onnx", "--triton"],
], ids=" ".join)
def test_a_folder_is_no_file(command, tmp_path):
    (tmp_path / "file").touch()
    refuses("is a file", *command, tmp_path / "file", status=2)


BALANCED = "restart, 25 steps with 2 restarts"


@pytest.mark.parametrize(("arguments", "chosen"), [
    (("--quality", "fast"), "sde-dpmpp-2m eta 1.0, 12 steps"), (("--quality", "balanced"), BALANCED),
    (("--quality", "fast", "--eta", 0.7), "sde-dpmpp-2m eta 0.7, 12 steps"),
    (("--quality", "reference"), "pc snr 0.16 n_corrector 1, 2000 steps"), ((), BALANCED),
    (("--steps", 7), "restart, 7 steps with 0 restarts"),
    (("--rho", 4), "restart rho 4.0, 25 steps with 2 restarts"), (("--solver", "restart"), BALANCED),
    (("--quality", "fine"), "restart eta 2.0, 50 steps with 4 restarts"),
    (("--solver", "sde-dpmpp-2m"), "sde-dpmpp-2m, 25 steps"),
    (("--restarts", 3), "restart restarts 3, 25 steps"),
    (("--steps", 1, "--solver", "pc"), "pc snr 0.16 n_corrector 1, 1 step"),
    (("--solver", "heun"), "heun, 18 steps"), (("--solver", "adaptive-sde"), "adaptive-sde, adaptive steps"),
])
def test_a_quality_is_a_solver_and_its_steps(arguments, chosen, model_file, monkeypatch, tmp_path):
    def stop(model, seeds, *, sampling, **others):
        raise InputError(f"asked for {sampling}")

    monkeypatch.setattr("sde_onnx.generate.sample.sample_batches", stop)
    refuses(f"asked for {chosen}\n", "sample", model_file, *arguments, "-o", tmp_path / "s.png")


def test_the_default_does_not_depend_on_whether_it_is_typed(model_file, tmp_path):
    typed = [(), ("--steps", 25), ("--solver", "restart"), ("--quality", "balanced"), ("--rho", 7, "--eta", 1)]
    for index, arguments in enumerate(typed):
        sample(model_file, "--seeds", "1", *arguments, "-o", tmp_path / f"{index}.npz")
    first, *others = (np.load(tmp_path / f"{index}.npz")["images"] for index in range(len(typed)))
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_quality_leaves_no_choice_of_solver_or_steps(model_file, tmp_path):
    for option in (("--solver", "heun"), ("--steps", 5)):
        refuses("a quality chooses the solver and its steps, fast has solver sde-dpmpp-2m, 12 steps, eta 1.0: leave "
                "out solver and steps, or the quality", "sample", model_file, "--quality", "fast", *option, "-o",
                tmp_path / "s.png")


def test_an_option_of_another_solver_is_refused(model_file, tmp_path):
    refuses("solver pc has snr, n_corrector (--corrector-steps), predictor", "sample", model_file, "--quality",
            "reference", "--eta", 1, "-o", tmp_path / "s.png")
    refuses("option churn belongs to stochastic-heun; solver heun has schedule, rho", "sample", model_file, "--solver",
            "heun", "--churn", 3, "-o", tmp_path / "s.png")


def test_existing_outputs_are_kept_unless_forced(model_file, tmp_path):
    path = tmp_path / "s.png"
    path.write_text("precious")
    refuses("exists already: choose another name, or --force", "sample", model_file, "--steps", 2, "-o", path)
    assert path.read_text() == "precious"
    sample(model_file, "--seeds", 0, "--steps", 2, "-o", path, "--force")
    assert Image.open(path).size == (16, 16)


def test_the_model_is_never_an_output(model_file, tmp_path):
    model = tmp_path / "m.png"
    model.write_bytes(model_file.read_bytes())
    refuses("is also another file of this command", "sample", model, "-o", model, "--force")
    assert model.read_bytes() == model_file.read_bytes()


def test_nothing_is_left_behind_by_a_run_that_fails(model_file, tmp_path):
    result = run("sample", model_file, "--seeds", "0", "--solver", "pc", "--steps", 5, "--snr", 1e30,
                 "-o", tmp_path / "s.png", "--gif", tmp_path / "s.gif")
    assert result.exit_code == 1
    assert "NaN or infinity at step 1 of 5" in result.output
    assert result.output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "message", "status"), [
    (["--steps", "0"], "0 is not in the range x>=1", 2),
    (["--seeds", ""], "neither a whole number nor a range", 2),
    (["--seeds", "9-3"], "runs backwards", 2),
    (["--seeds", "1,0-3"], "named twice", 2),
    (["--seeds", "0-18446744073709551616"], "does not fit 64 bits", 2),
    (["--seeds", "0-18446744073709551615"], "more than 10,000,000 seeds", 2),
    (["--seeds", "9" * 5000], "neither a whole number nor a range", 2),
    (["--seeds", "-1"], "neither a whole number nor a range", 2),
    (["-o", "s.jpg"], "expected a .png, a .npz or a folder, got .jpg", 2),
    (["-o", "s.npz", "--grid"], "--grid goes with a folder", 2),
    (["--gif", "s.png"], "expected a .gif", 2),
    (["-o", "/dev/null/s.png"], "cannot be written", 1),
    (["--solver", "pc", "--snr", "nan"], "snr is nan", 1),
    (["--batch-size", "0"], "0 is not in the range", 2),
])
def test_bad_options_are_refused(arguments, message, status, model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuses(message, "sample", model_file, *arguments, status=status)
    assert list(tmp_path.iterdir()) == []


def test_bad_files_are_refused_in_one_line(tmp_path):
    refuses("m.onnx is missing", "info", tmp_path / "m.onnx")
    refuses("m.onnx is missing", "sample", tmp_path / "m.onnx", "-o", tmp_path / "s.png")
    refuses("is a folder", "info", tmp_path)
    refuses("config.json is missing", "export", tmp_path, "-o", tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_info_is_for_people(model_file, for_cuda):
    lines = run("info", model_file).stdout.splitlines()
    assert 10 <= len(lines) <= 15
    text = "\n".join(lines)
    megabytes = f"random16.onnx, {model_file.stat().st_size / 1e6:.1f} MB, "
    for expected in (megabytes, "fp32, for any provider", "NCSN++, ", "million parameters", "16x16, RGB",
                     "labels     none", "0.01 to 50, for data in [0, 1]", "relative to the network, at export",
                     "--quality balanced: restart, 25 steps with 2 restarts, 25 evaluations an image",
                     "--quality reference: pc snr 0.16 n_corrector 1, 2000 steps, 4000 evaluations an image"):
        assert expected in text
    assert "fp16, for cuda alone" in run("info", for_cuda).stdout


@pytest.mark.parametrize(("channels", "colours"), [(1, "gray"), (2, "gray and alpha"), (3, "RGB"), (4, "RGBA")])
def test_info_names_the_colours(channels, colours, model_file):
    metadata = dataclasses.replace(sde_onnx.read_metadata(model_file), image_shape=(channels, 16, 16))
    assert dict(_lines(model_file, metadata))["images"] == f"16x16, {colours}"


def test_info_prints_the_metadata(model_file):
    result = run("info", model_file, "--json")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert result.stdout == json.dumps(values, indent=2) + "\n"
    assert values["format"] == 1
    assert values["schedule"]["sigma_max"] == 50.0


@pytest.mark.thorough
def test_export(checkpoint16, tmp_path):
    path = tmp_path / "m.onnx"
    result = run("export", checkpoint16, "-o", path, "--sigma-max", 40, "--sigma-min", 0.02, "--snr", 0.1)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("relative error") == 6
    assert "sigma 0.02 to 40, snr 0.1" in result.stdout
    metadata = sde_onnx.read_metadata(path)
    assert (metadata.schedule.sigma_min, metadata.schedule.sigma_max, metadata.snr) == (0.02, 40.0, 0.1)
    refuses("exists already", "export", checkpoint16, "-o", path)


def test_export_without_the_extra_names_the_line_that_installs_it(checkpoint16, tmp_path, monkeypatch):
    monkeypatch.setattr("sde_onnx.extras.find_spec", lambda name: None)
    refuses("pip install 'sde-onnx[export]'", "export", checkpoint16, "-o", tmp_path / "m.onnx")


def test_the_bundled_digits_are_the_default(tmp_path):
    result = sample("--steps", 2, "--seeds", 0, "-o", tmp_path / "s.png")
    assert "1 image, seeds 0, restart, 2 steps with 0 restarts, nfe 2" in result.stdout
    assert Image.open(tmp_path / "s.png").size == (16, 16)


def test_sampling_imports_neither_torch_nor_onnx(model_file, tmp_path):
    code = (
        "import sys, sde_onnx\n"
        "model = sde_onnx.load(sys.argv[1], provider='cpu')\n"
        "sde_onnx.sample(model, seeds=[0], steps=2)\n"
        "sde_onnx.ScoreSdeVePipeline(model)(num_inference_steps=1, generator=0)\n"
        "from sde_onnx.cli import main\n"
        "main(['sample', sys.argv[1], '--steps', '2', '--seeds', '0', '-o', sys.argv[2]], standalone_mode=False)\n"
        "assert not {'torch', 'onnx', 'diffusers'} & sys.modules.keys(), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code, model_file, tmp_path / "s.png"], check=True)
    assert (tmp_path / "s.png").is_file()


def test_help_is_quick():
    code = "import sys; from sde_onnx.cli import main; main(['--help'], standalone_mode=False)"
    seconds = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.3   # of the process itself (0 on Windows): others may be at work on the machine
    modules = subprocess.run([sys.executable, "-c", f"{code}; print(*sys.modules)"], check=True, text=True,
                             capture_output=True).stdout
    assert not {"numpy", "onnxruntime"} & set(modules.split())


def test_a_suffix_in_capitals_is_the_same_kind(model_file, tmp_path):
    sample(model_file, "--seeds", 0, "--steps", 2, "-o", tmp_path / "s.NPZ")
    assert [path.name for path in tmp_path.iterdir()] == ["s.NPZ"]
    assert np.load(tmp_path / "s.NPZ")["seeds"] == [0]


def test_refused_runs_make_no_folders(model_file, tmp_path):
    refuses("m.onnx is missing", "sample", tmp_path / "m.onnx", "-o", tmp_path / "new" / "s.png")
    refuses("config.json is missing", "export", tmp_path, "-o", tmp_path / "new" / "m.onnx")
    refuses("cannot be written: File name too long", "sample", model_file, "-o", tmp_path / f"{'x' * 300}.png")
    refuses("does not end in .onnx", "export", tmp_path, "-o", tmp_path / "m.json")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    refuses("exists already", "sample", model_file, "-o", tmp_path / "link.png")
    assert [path.name for path in tmp_path.iterdir()] == ["link.png"]
    sample(model_file, "--seeds", 0, "--steps", 2, "-o", tmp_path / "new" / "deep" / "s.png")


@pytest.mark.parametrize(("seeds", "text"), [([0], "0"), ([0, 1, 2, 5], "0-2,5"), ([5, 3, 4], "5,3-4")])
def test_seeds_are_written_as_they_are_read(seeds, text):
    assert format_seeds(seeds) == text


def test_an_archive_of_bytes_is_that_of_adm(model_file, tmp_path):
    sample(model_file, "--seeds", "0-2", "--steps", 3, "-o", tmp_path / "s.npz")
    sample(model_file, "--seeds", "0-2", "--steps", 3, "--uint8", "-o", tmp_path / "b.npz")
    with np.load(tmp_path / "s.npz") as floats, np.load(tmp_path / "b.npz") as held:
        assert held.files == ["arr_0"]
        np.testing.assert_array_equal(held["arr_0"], sde_onnx.images.to_uint8(floats["images"]))
    refuses("--uint8 goes with a .npz", "sample", model_file, "--uint8", "-o", tmp_path / "s.png", status=2)


def test_an_archive_without_room_is_refused_before_the_work(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    check_room(tmp_path / "s.npz", 100)
    with pytest.raises(OutputError, match="s.npz needs 0.1 kB"):
        check_room(tmp_path / "s.npz", 101)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10_000))
    refuses("s.npz needs 3.1 MB, its disk has 10.0 kB free", "sample", model_file, "--seeds", "0-999", "-o",
            tmp_path / "s.npz")
    sample(model_file, "--seeds", "0-2", "--steps", 2, "--uint8", "-o", tmp_path / "b.npz")


@pytest.mark.parametrize(("error", "said"), [
    (MemoryError("Unable to allocate 9 TiB for an array"), "memory for this: Unable to allocate 9 TiB"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried\nand so on"), "you tried"),
])
def test_want_of_memory_is_one_line(error, said, model_file, monkeypatch):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr("sde_onnx.runtime.load.read_metadata", fails)
    refuses(said, "info", model_file)
    monkeypatch.setattr("sde_onnx.runtime.load.read_metadata", lambda *arguments: fails.missing)
    with pytest.raises(AttributeError):   # a fault of ours is none of these
        CliRunner().invoke(main, ["info", str(model_file)], catch_exceptions=False)


def test_what_another_library_leaves_open_is_no_note(capsys):
    """numpy leaves a damaged archive open, and Python tells of it whenever it is collected."""
    with notes():
        warnings.warn("unclosed file <_io.FileIO name='a.npz'>", ResourceWarning, stacklevel=1)
        warnings.warn("5 images do not fit", BatchSizeWarning, stacklevel=1)
    assert capsys.readouterr().err == "Note: 5 images do not fit\n"


@pytest.mark.parametrize("arguments", [("sample",), ("restore", "x.png", "--operator", "gray"), ("decode", "x.npz"),
                                       ("edit", "x.png", "--sigma", 1)], ids=lambda arguments: arguments[0])
def test_an_empty_name_is_no_output(arguments):
    refuses("Invalid value for '-o' / '--output': the name is empty", *arguments, "-o", "", status=2)


def test_a_member_of_an_archive_that_is_no_array_is_refused(model_file, tmp_path):
    """numpy gives its bytes, and no error."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("seed", "latent", "x_first", "x_last", "image", "images", "names", "latents", "settings"):
            archive.writestr(f"{name}.npy", b"no array")
    done("embed", model_file, "--steps", 2, "-o", tmp_path / "s.onnx")
    for arguments in (("verify", tmp_path / "s.onnx", tmp_path / "a.npz"), ("decode", model_file, tmp_path / "a.npz"),
                      ("encode", model_file, tmp_path / "a.npz", "-o", tmp_path / "c.npz")):
        refuses("is no array", *arguments, *(["-o", tmp_path / "out"] if arguments[0] == "decode" else []))


def test_an_error_of_usage_quotes_what_was_typed_in_one_line():
    refused = refuses("expected a .png, a .npz or a folder", "sample", "-o", "a.b\x1b[2J\x85c", status=2)
    assert refused.output.splitlines()[-1].startswith(r"Error: --output a.b\x1b[2J\x85c: expected a .png")

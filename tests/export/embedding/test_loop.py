"""Sampler files against the host's loop, from the seeds to the images."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

import sde_onnx
from sde_onnx import operators
from sde_onnx.cli import main
from sde_onnx.errors import BatchSizeWarning, InputError, OutputError
from sde_onnx.export import export, from_diffusers, from_edm
from sde_onnx.export.embedding.loop import embed
from sde_onnx.export.embedding.noise import key_words, normals
from sde_onnx.export.graph.nodes import Nodes
from sde_onnx.golden import Comparison, write_golden
from sde_onnx.guidance.measurement import Measurement
from sde_onnx.guidance.null_space import null_space
from sde_onnx.images import to_uint8
from sde_onnx.runtime.machine import image_memory
from sde_onnx.runtime.metadata import NOISE_KEY
from sde_onnx.solvers.noise import PortableNoise
from sde_onnx.solvers.plan import run_evaluations

from random_unets import random_unet, save_pipeline

SEEDS = np.array([0, 7, -1, 2**63 - 1, -(2**63)])   # int64: the 64 bits of a seed


def unsigned(seeds):
    return [int(seed) % 2**64 for seed in seeds]


def open_session(path, threads=1):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 2
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def embed_model(model, path, *, max_steps=None, kind="sampler", every=None, operator=None, force=False, **request):
    steps, solver = request.pop("steps", None), request.pop("solver", None)
    sampling = sde_onnx.resolve(sde_onnx.read_metadata(model), solver=solver, steps=steps, options=request)
    embed(model, path, sampling, max_steps=max_steps, kind=kind, every=every, operator=operator, force=force)


def embed_digits(path, **request):
    embed_model(sde_onnx.bundled_model(), path, **request)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 5, 5)])
def test_the_noise_is_the_portable_noise(shape):
    """To the rounding of logarithm, sine and cosine; the words themselves would differ by whole numbers."""
    nodes = Nodes("noise")
    z = normals(nodes, key_words(nodes, "seed"), "draw", shape)
    graph = onnx.helper.make_graph(
        nodes.nodes, "noise", [onnx.helper.make_tensor_value_info("seed", onnx.TensorProto.INT64, ["N"]),
                               onnx.helper.make_tensor_value_info("draw", onnx.TensorProto.INT64, [1])],
        [onnx.helper.make_tensor_value_info(z, onnx.TensorProto.FLOAT, None)], list(nodes.constants.values()))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    [result] = ort.InferenceSession(model.SerializeToString()).run(None, {"seed": SEEDS, "draw": np.array([4])})
    noise = PortableNoise(unsigned(SEEDS), shape)
    expected = [noise() for _ in range(5)][4]
    assert result.shape == (5, *shape)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["sampler", "evaluation"])
@pytest.mark.parametrize(("solver", "steps", "options"), [
    ("pc", 10, []),
    ("pc", 6, ["--predictor", "ancestral", "--corrector-steps", "2"]),
    ("pc", 6, ["--predictor", "euler_maruyama", "--corrector", "ald"]),
    ("pc", 6, ["--predictor", "none"]),
    ("pc", 6, ["--probability-flow", "--corrector", "none"]),
    ("sde-dpmpp-2m", None, []),
    ("sde-dpmpp-3m", 8, ["--eta", "0.5"]),
    ("dpmpp-2m", 8, ["--schedule", "geometric"]),
    ("ancestral", 8, []),
    ("restart", 12, []),
    ("restart-heun", 8, ["--restart-steps", "2"]),
    ("heun", 6, []),
    ("stochastic-heun", 6, ["--churn", "10"]),
    ("stochastic-heun", 6, ["--churn-min", "0.1", "--churn-max", "5"]),
])
def test_a_sampler_gives_the_images_of_the_hosts_loop(kind, solver, steps, options, tmp_path):
    path, golden = tmp_path / "sampler.onnx", tmp_path / "golden.npz"
    arguments = ["--solver", solver, *(["--steps", str(steps)] if steps else []), *options]
    made = CliRunner().invoke(main, ["embed", "-o", str(path), "--kind", kind, "--golden", str(golden), *arguments])
    assert made.exit_code == 0, made.output
    result = CliRunner().invoke(main, ["verify", str(path), str(golden)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("solver", "steps"), [
    ("sde-dpmpp-2m", 25), pytest.param("pc", 200, marks=pytest.mark.slow),
])
def test_seeds_0_to_15_give_the_digits_of_the_command_in_every_batch(solver, steps, digits, tmp_path):
    embed_digits(tmp_path / "s.onnx", solver=solver, steps=steps)
    session = open_session(tmp_path / "s.onnx")
    seeds = np.arange(16)
    images, samples = session.run(["image", "sample"], {"seed": seeds})
    expected = to_uint8(sde_onnx.sample(digits, seeds, steps, solver=solver))
    difference = np.abs(images.astype(int) - expected)
    print(f"{solver}, {steps} steps: {100 * (difference == 0).mean():.4f}% equal, largest {difference.max()}")
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999
    np.testing.assert_array_equal(to_uint8(samples), images)
    [alone] = session.run(["image"], {"seed": seeds[5:6]})
    assert np.abs(alone[0].astype(int) - images[5]).max() <= 1


KNOWN = np.ones((16, 16), bool)   # all but a box in the middle
KNOWN[4:12, 5:14] = False
RESTORED_SEEDS = np.arange(16)


def restored(model, measurement, known, seeds, *, solver=None, steps=None, label=None):
    """What the host's loop makes of a measurement, ``[N, C, H, W]``."""
    score = model if label is None else lambda x, sigma: model(x, sigma, label=label)
    score = null_space(score, Measurement(measurement, operators.mask(known), 0.0), damping=1.0)
    sampling = sde_onnx.resolve(model.metadata, solver=solver, steps=steps)
    *_, last = sampling.run(score, PortableNoise(unsigned(seeds), model.metadata.image_shape))
    return to_uint8(last.x_mean)


def masked_session(folder: Path, **request: object) -> ort.InferenceSession:
    """A sampler file with the operator mask."""
    embed_digits(folder / "s.onnx", operator="mask", **request)
    return open_session(folder / "s.onnx")


def inputs_of(measurement: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of a file with the operator mask; pixels that it hides are NaN."""
    hidden = np.where(KNOWN, measurement, np.float32("nan"))
    return {"seed": RESTORED_SEEDS, "measurement": hidden, "mask": KNOWN[None, None].astype(np.float32)}


@pytest.mark.parametrize(("solver", "steps"), [(None, None), ("pc", 8), ("heun", 8)])
def test_a_mask_restores_as_the_hosts_loop_does(solver, steps, digits, tmp_path):
    """Without reading what it hides."""
    session = masked_session(tmp_path, solver=solver, steps=steps)
    measurement = sde_onnx.sample(digits, range(100, 116))
    expected = restored(digits, measurement, KNOWN, RESTORED_SEEDS, solver=solver, steps=steps)
    [images] = session.run(["image"], inputs_of(measurement))
    difference = np.abs(images.astype(int) - expected)
    print(f"{solver}, {steps} steps: {100 * (difference == 0).mean():.4f}% equal, largest {difference.max()}")
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999
    assert np.abs(images.astype(int) - to_uint8(measurement))[:, KNOWN].max() <= 1


def test_masks_and_measurements_may_be_of_one_image_or_all_and_masks_of_one_channel_or_all(digits, tmp_path):
    session, measurement = masked_session(tmp_path, solver="heun", steps=8), sde_onnx.sample(digits, range(100, 116))
    feeds = inputs_of(measurement)
    [images] = session.run(["image"], feeds)
    for shape in ((16, 1, 16, 16), (1, 3, 16, 16), (16, 3, 16, 16)):
        mask = np.broadcast_to(feeds["mask"], shape).astype(np.float32)
        np.testing.assert_array_equal(session.run(["image"], feeds | {"mask": mask})[0], images)
    [of_one] = session.run(["image"], inputs_of(measurement[3:4]))   # one measurement, 16 restorations
    assert np.abs(of_one[3].astype(int) - images[3]).max() <= 1
    assert (of_one[:, KNOWN] == of_one[:1, KNOWN]).mean() > 0.99
    assert (of_one[:, ~KNOWN] != of_one[:1, ~KNOWN])[1:].mean() > 0.05


@pytest.mark.parametrize("kind", ["sampler", "evaluation"])
@pytest.mark.parametrize("arguments", [[], ["--solver", "pc", "--steps", "10", "--max-steps", "12"],
                                       ["--solver", "heun", "--steps", "6"]])
def test_golden_values_of_a_file_with_an_operator_hold_a_measurement(kind, arguments, digits, tmp_path):
    path, golden, plain = tmp_path / "s.onnx", tmp_path / "g.npz", tmp_path / "plain.npz"
    how = ["--kind", kind, *arguments]
    made = CliRunner().invoke(main, ["embed", "-o", str(path), "--operator", "mask", "--golden", str(golden), *how])
    assert made.exit_code == 0, made.output
    assert "operator mask" in made.output
    about = json.loads(open_session(path).get_modelmeta().custom_metadata_map["sde_onnx_sampler"])
    assert (about["format"], about["operator"]) == (3, "mask")
    result = CliRunner().invoke(main, ["verify", str(path), str(golden)])
    assert result.exit_code == 0, result.output
    held = np.load(golden)
    assert (held["format"], held["mask"].shape, held["measurement"].shape) == (3, (1, 1, 16, 16), (1, 3, 16, 16))
    known = held["mask"][0, 0] == 1
    assert 0 < known.mean() < 1
    assert np.abs(held["sample"] - held["measurement"])[:, :, known].max() < 0.1   # pc leaves sigma_min's noise
    made = CliRunner().invoke(main, ["embed", "-o", str(tmp_path / "p.onnx"), "--golden", str(plain), *how])
    assert made.exit_code == 0, made.output
    assert np.load(plain)["format"] == 2   # older versions read it
    refuses("has an input mask", "verify", path, plain)
    refuses("has no input mask", "verify", tmp_path / "p.onnx", golden)


def test_where_nothing_is_known_the_images_are_those_without_a_measurement(tmp_path):
    for solver, steps in ((None, None), ("pc", 10)):
        for name, operator in (("plain", None), ("masked", "mask")):
            embed_digits(tmp_path / f"{name}.onnx", solver=solver, steps=steps, operator=operator, force=True)
        plain, masked = (open_session(tmp_path / f"{name}.onnx") for name in ("plain", "masked"))
        nothing = {"mask": np.zeros((1, 1, 16, 16), np.float32), "measurement": np.zeros((1, 3, 16, 16), np.float32)}
        [expected] = plain.run(["sample"], {"seed": SEEDS})
        [samples] = masked.run(["sample"], {"seed": SEEDS} | nothing)
        np.testing.assert_allclose(samples, expected, atol=1e-5)


def test_a_restored_image_has_the_label_that_is_asked_for(golden, shared, tmp_path):
    """Beside frames, a number of steps and a label, in one file."""
    path = shared("cifar10_cond_ve.onnx",
                  lambda path: export(from_edm(golden / "edm" / "cifar10_cond_ve" / "network.pkl"), path))
    embed_model(path, tmp_path / "s.onnx", steps=3, max_steps=4, every=1, operator="mask")
    model = sde_onnx.load(path, "cpu")
    measurement = np.broadcast_to(np.linspace(0, 1, 16, dtype=np.float32), (2, 3, 16, 16))
    feeds = {"seed": np.arange(2), "label": np.array([3, 7]), "mask": KNOWN[None, None].astype(np.float32),
             "measurement": measurement[:1]}
    for steps in (3, 4):
        image, frames = open_session(tmp_path / "s.onnx").run(["image", "frames"], feeds | {"steps": np.array([steps])})
        expected = restored(model, measurement, KNOWN, np.arange(2), steps=steps, label=np.array([3, 7]))
        assert np.abs(image.astype(int) - expected).max() <= 1
        np.testing.assert_array_equal(frames[-1], image)
        assert len(frames) == steps


def test_frames_are_the_images_of_every_so_many_steps(digits, tmp_path):
    embed_digits(tmp_path / "s.onnx", solver="heun", steps=10, every=4)
    image, frames = open_session(tmp_path / "s.onnx").run(["image", "frames"], {"seed": np.arange(2)})
    [batch] = sde_onnx.sample_batches(digits, range(2), 10, solver="heun")
    expected = np.stack([to_uint8(step.x_mean) for step in batch.steps])[1::4]   # the last is the tenth
    assert frames.shape == (3, 2, 16, 16, 3)
    assert np.abs(frames.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(frames[-1], image)


@pytest.mark.parametrize(("solver", "steps", "least"), [("sde-dpmpp-3m", 8, 3), ("pc", 5, 1), ("heun", 6, 2),
                                                        ("restart", 12, 2)])
def test_the_number_of_steps_can_be_an_input(solver, steps, least, digits, tmp_path):
    for kind in ("sampler", "evaluation"):
        embed_digits(tmp_path / f"{kind}.onnx", solver=solver, steps=steps, max_steps=12, kind=kind)
    sampler, evaluation = open_session(tmp_path / "sampler.onnx"), open_session(tmp_path / "evaluation.onnx")
    about = json.loads(sampler.get_modelmeta().custom_metadata_map["sde_onnx_sampler"])
    assert (about["min_steps"], about["steps"], about["max_steps"]) == (least, steps, 12)
    seeds, states = np.arange(3), [item.name for item in evaluation.get_inputs() if item.shape[1:] == [3, 16, 16]]
    other = least + 1
    with pytest.raises(ValueError, match="Required inputs.*steps"):   # and not the default of some host alone
        sampler.run(["image"], {"seed": seeds})
    for count in (least, other, 12):
        asked = {"steps": np.array([count])}
        sampling = sde_onnx.resolve(digits.metadata, solver=solver, steps=count)
        expected = to_uint8(sde_onnx.sample(digits, range(3), count, solver=solver))
        [images] = sampler.run(["image"], {"seed": seeds} | asked)
        assert np.abs(images.astype(int) - expected).max() <= 1
        assert (images == expected).mean() >= 0.999
        values = dict.fromkeys(states, np.zeros((3, 3, 16, 16), np.float32))
        for index in range(sampling.evaluations):
            *following, x_mean, remaining = evaluation.run(
                None, values | {"index": np.array([index]), "seed": seeds} | asked)
            values = dict(zip(states, following, strict=True))
            assert remaining == [sampling.evaluations - 1 - index]
        assert np.abs(to_uint8(x_mean).astype(int) - expected).max() <= 1
    beyond = sde_onnx.resolve(digits.metadata, solver=solver, steps=other).evaluations
    for session, feeds in [(sampler, {"steps": count}) for count in (least - 1, 0, -1, 13)] + [
            (evaluation, {"steps": other, "index": index} | dict.fromkeys(states)) for index in (-1, beyond)]:
        feeds = {name: np.zeros((3, 3, 16, 16), np.float32) if value is None else np.array([value])
                 for name, value in feeds.items()}
        with pytest.raises(Exception, match="out of data bounds"):
            session.run(None, feeds | {"seed": seeds})


def test_no_seeds_give_no_images(tmp_path):
    embed_digits(tmp_path / "s.onnx", steps=3, every=1)
    image, sample, _ = open_session(tmp_path / "s.onnx").run(None, {"seed": np.zeros(0, np.int64)})
    assert (image.shape, sample.shape) == ((0, 16, 16, 3), (0, 3, 16, 16))


@pytest.mark.parametrize(("solver", "arrays"), [("pc", 0), ("ancestral", 0), ("sde-dpmpp-2m", 1), ("sde-dpmpp-3m", 2),
                                                ("heun", 2)])
def test_nothing_is_carried_that_is_not_remembered(solver, arrays, tmp_path):
    embed_digits(tmp_path / "e.onnx", solver=solver, steps=5, kind="evaluation")
    names = [item.name for item in open_session(tmp_path / "e.onnx").get_inputs()]
    assert names == ["x", *(f"memory{place}" for place in range(arrays)), "index", "seed"]


def test_a_request_for_another_model_is_refused(model_file, tmp_path):
    other = sde_onnx.resolve(sde_onnx.read_metadata(sde_onnx.bundled_model()))
    with pytest.raises(InputError, match="the request was resolved for a model of .*sigma_max=20.0"):
        embed(model_file, tmp_path / "s.onnx", other)


def test_rows_for_many_numbers_of_steps_stay_small(tmp_path):
    for name, most in (("one", None), ("many", 200)):
        embed_digits(tmp_path / f"{name}.onnx", solver="pc", steps=200, max_steps=most)
    added = (tmp_path / "many.onnx").stat().st_size - (tmp_path / "one.onnx").stat().st_size
    print(f"--max-steps 200 adds {added:,} bytes")
    assert added < 1_000_000


@pytest.mark.parametrize(("solver", "options"), [
    ("heun", {}), ("stochastic-heun", {}), ("sde-dpmpp-3m", {}), ("pc", {"n_corrector": 2}),
])
def test_every_evaluation_is_that_of_the_hosts_loop(solver, options, digits, tmp_path):
    embed_digits(tmp_path / "e.onnx", solver=solver, steps=6, kind="evaluation", **options)
    session = open_session(tmp_path / "e.onnx")
    states = [item.name for item in session.get_inputs() if item.shape[1:] == [3, 16, 16]]
    values = dict.fromkeys(states, np.zeros((2, 3, 16, 16), np.float32))
    plan = sde_onnx.resolve(digits.metadata, solver=solver, steps=6, options=options).plan
    noise = PortableNoise(unsigned(SEEDS[:2]), (3, 16, 16))
    for index, (_, x, x_mean) in enumerate(run_evaluations(plan, digits, noise)):
        *following, image, [remaining] = session.run(None, values | {"index": np.array([index]), "seed": SEEDS[:2]})
        values = dict(zip(states, following, strict=True))
        for got, expected in ((values["x"], x), (image, x_mean)):
            assert np.linalg.norm(got - expected) <= 1e-4 * np.linalg.norm(expected)
    assert remaining == 0


def test_frames_follow_the_number_of_steps(digits, tmp_path):
    embed_digits(tmp_path / "s.onnx", solver="heun", steps=10, max_steps=10, every=4)
    image, frames = open_session(tmp_path / "s.onnx").run(["image", "frames"], {"seed": np.arange(2),
                                                                              "steps": np.array([7])})
    [batch] = sde_onnx.sample_batches(digits, range(2), 7, solver="heun")
    expected = np.stack([to_uint8(step.x_mean) for step in batch.steps])[2::4]
    assert np.abs(frames.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(frames[-1], image)


@pytest.mark.parametrize("kind", ["sampler", "evaluation"])
def test_a_file_for_cuda_becomes_a_sampler_for_cuda(kind, for_cuda, model_file, tmp_path):
    """Its network alone, without the loop's update; emulated it gives the pictures of the file for any provider."""
    from sde_onnx.export.rewrites.emulation import emulated

    arguments = ["--solver", "heun", "--steps", "4", "--kind", kind, "--golden", str(tmp_path / "g.npz")]
    made = CliRunner().invoke(main, ["embed", str(model_file), "-o", str(tmp_path / "any.onnx"), *arguments])
    assert made.exit_code == 0, made.output
    embed_model(for_cuda, tmp_path / "cuda.onnx", solver="heun", steps=4, kind=kind)
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "cuda.onnx"), str(tmp_path / "g.npz")])
    assert result.exit_code == 1
    assert "Could not find an implementation for NhwcConv" in result.output
    assert result.output.count("\n") == 1
    if kind == "evaluation":   # the loop's body is out of the emulation's reach
        onnx.save(emulated(onnx.load(tmp_path / "cuda.onnx")), tmp_path / "emulated.onnx")
        golden = np.load(tmp_path / "g.npz")
        states = dict.fromkeys(("x", "memory0", "memory1"), np.zeros_like(golden["latent"]))
        emulation = open_session(tmp_path / "emulated.onnx")
        for index in range(7):
            *following, x_mean, _ = emulation.run(None, states | {"index": np.array([index]), "seed": golden["seed"]})
            states = dict(zip(states, following, strict=True))
        assert np.abs(x_mean.clip(0, 1) - golden["sample"]).mean() < 0.01


def test_a_file_names_the_nodes_that_draw_its_noise(tmp_path):
    """A GPU through WebGPU leaves them to the CPU: docs/providers.md."""
    def nodes_of(graph):
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from nodes_of(attribute.g)

    path = tmp_path / "sampler.onnx"
    embed(sde_onnx.bundled_model(), path, sde_onnx.resolve(sde_onnx.read_metadata(sde_onnx.bundled_model()), steps=3))
    model = onnx.load(path)
    named = {item.key: item.value for item in model.metadata_props}[NOISE_KEY].splitlines()
    assert len(named) == len(set(named))
    all_nodes = list(nodes_of(model.graph))
    assert set(named) < {node.name for node in all_nodes}
    rounded = [node.name for node in all_nodes if node.op_type in ("Log", "Cos", "Sin", "BitwiseAnd")]
    assert {name for name in rounded if name not in named} == {f"network/node_{name}" for name in ("log", "cos", "sin")}
    assert not any(name.startswith("network/") for name in named)


def test_what_a_sampler_says_of_itself(tmp_path):
    embed_digits(tmp_path / "s.onnx", solver="pc", steps=3, snr=0.2)
    properties = {item.key: item.value for item in onnx.load(tmp_path / "s.onnx").metadata_props}
    assert '"solver": "pc"' in properties["sde_onnx_sampler"]
    assert '"steps": 3' in properties["sde_onnx_sampler"]
    assert '"sigma_max": 20.0' in properties["sde_onnx"]


@pytest.mark.parametrize("kind", ["sampler", "evaluation"])
def test_verify_notices_a_sampler_that_is_off(kind, tmp_path):
    made = CliRunner().invoke(main, ["embed", "-o", str(tmp_path / "s.onnx"), "--steps", "8", "--golden",
                                     str(tmp_path / "g.npz")])
    assert made.exit_code == 0, made.output
    for changed in ({"steps": 9}, {"eta": 0.9}):
        embed_digits(tmp_path / "other.onnx", kind=kind, force=True, **{"steps": 8} | changed)
        result = CliRunner().invoke(main, ["verify", str(tmp_path / "other.onnx"), str(tmp_path / "g.npz")])
        assert result.exit_code == 1
        assert "does not reproduce" in result.output


def test_an_evaluation_whose_states_are_off_does_not_pass():
    assert Comparison(same=1.0, largest=0, x_error=1e-6).passed
    assert not Comparison(same=1.0, largest=0, x_error=1e-2).passed
    assert not Comparison(same=0.998, largest=1, x_error=None).passed
    assert not Comparison(same=0.9999, largest=2, x_error=None).passed


def test_golden_values_do_not_need_one_batch(digits, monkeypatch, tmp_path):
    heun = sde_onnx.resolve(digits.metadata, solver="heun", steps=3)
    write_golden(digits, tmp_path / "a.npz", heun)
    monkeypatch.setattr(sde_onnx.generate.sample, "available_memory", lambda: image_memory(digits.metadata) * 3 // 2)
    with pytest.warns(BatchSizeWarning):
        write_golden(digits, tmp_path / "b.npz", heun)
    a, b = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    for name in a.files:
        np.testing.assert_allclose(a[name].astype(float), b[name].astype(float), rtol=1e-3, atol=1)


def test_no_path_of_this_machine_is_left_in_it(tmp_path):
    embed_digits(tmp_path / "s.onnx", steps=3)
    assert b"pkg.torch" not in (tmp_path / "s.onnx").read_bytes()


def refuses(message, *arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1


def test_an_existing_file_is_kept(model, model_file, tmp_path):
    (tmp_path / "s.onnx").write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        embed(model_file, tmp_path / "s.onnx", sde_onnx.resolve(model.metadata))
    assert (tmp_path / "s.onnx").read_text() == "precious"


def test_bad_input_is_refused_in_one_line(model_file, tmp_path):
    path = tmp_path / "s.onnx"
    refuses("Error: rk45 cannot be embedded; what can is pc, ancestral", "embed", "-o", path, "--solver", "rk45")
    refuses("heun with these options cannot be embedded", "embed", "-o", path, "--solver", "heun", "--measure-noise")
    refuses("cannot be embedded", "embed", "-o", path, "--solver", "pc", "--langevin-norm", "batch")
    refuses("steps is 2, expected a whole number of 3 to 20000 for solver sde-dpmpp-3m", "embed", "-o", path,
            "--solver", "sde-dpmpp-3m", "--steps", 2)
    refuses("option snr belongs to pc", "embed", "-o", path, "--snr", 0.1)
    refuses("every is 9, expected 1 to the number of steps, 8", "embed", "-o", path, "--steps", 8, "--every", 9)
    refuses("max_steps is 7, expected a whole number of 8 to 2000, which is at least the steps", "embed", "-o", path,
            "--steps", 8, "--max-steps", 7)
    refuses("operator is 'blur:2', expected one of: mask; its values are inputs of the file", "embed", "-o", path,
            "--operator", "blur:2")
    refuses("operator is 'mask:known.png', expected one of: mask", "embed", "-o", path, "--operator", "mask:known.png")
    refuses("every is for samplers", "embed", "-o", path, "--kind", "evaluation", "--every", 2)
    refuses("does not end in .onnx", "embed", "-o", tmp_path / "s.bin")
    refuses("m.onnx is missing", "embed", tmp_path / "m.onnx", "-o", path)
    assert list(tmp_path.iterdir()) == []
    for content, said in ((b"no numbers", "it holds no arrays"), (b"", "No data left")):
        (tmp_path / "g.npz").write_bytes(content)
        refuses(f"cannot be read as golden values: {said}", "verify", model_file, tmp_path / "g.npz")
    np.savez(tmp_path / "g.npz", format=3, latent=np.zeros(3))
    refuses("it holds no array `seed`", "verify", model_file, tmp_path / "g.npz")
    refuses("exists already", "embed", "-o", path, "--golden", tmp_path / "g.npz")
    refuses("exists already", "embed", "-o", model_file)
    refuses("is also another file of this command", "embed", model_file, "-o", model_file, "--force")
    result = CliRunner().invoke(main, ["embed", "-o", str(path), "--golden", str(tmp_path / "g.onnx")])
    assert result.exit_code == 2
    assert "g.onnx: expected a .npz" in result.output
    with pytest.raises(InputError, match="steps is 0"):
        embed_model(model_file, path, solver="pc", steps=0)


def test_golden_values_never_replace_the_model(model_file, tmp_path):
    """Though it has their suffix and --force is given."""
    model = tmp_path / "model.npz"
    model.write_bytes(model_file.read_bytes())
    refuses("is also another file of this command", "embed", model, "-o", tmp_path / "s.onnx", "--golden", model,
            "--force")
    assert model.read_bytes() == model_file.read_bytes()


def test_files_that_are_not_what_they_should_be_are_refused_in_one_line(digits, model_file, model8, tmp_path):
    for kind in ("sampler", "evaluation"):
        embed_model(model8, tmp_path / f"{kind}.onnx", steps=3, kind=kind)
    write_golden(digits, tmp_path / "g.npz", sde_onnx.resolve(digits.metadata, solver="heun", steps=3))
    for kind in ("sampler", "evaluation"):
        refuses("makes images", "verify", tmp_path / f"{kind}.onnx", tmp_path / "g.npz")
        refuses("is a sampler that `sde-onnx embed` made", "info", tmp_path / f"{kind}.onnx")
    refuses("is no sampler", "verify", model_file, tmp_path / "g.npz")
    damaged = onnx.load(tmp_path / "evaluation.onnx")
    onnx.helper.set_model_props(damaged, {"sde_onnx_sampler": "{}"})
    onnx.save(damaged, tmp_path / "damaged.onnx")
    refuses("metadata is damaged", "verify", tmp_path / "damaged.onnx", tmp_path / "g.npz")
    onnx.helper.set_model_props(damaged, {"sde_onnx_sampler": '{"format": 99, "kind": "step", "steps": 3}'})
    onnx.save(damaged, tmp_path / "newer.onnx")
    refuses("has sampler format 99", "verify", tmp_path / "newer.onnx", tmp_path / "g.npz")
    onnx.helper.set_model_props(damaged, {"sde_onnx_sampler": '{"format": 1, "kind": "step", "steps": 3}'})
    onnx.save(damaged, tmp_path / "older.onnx")
    refuses("has sampler format 1, this sde-onnx reads 2 to 3: make it again with `sde-onnx embed`", "verify",
            tmp_path / "older.onnx", tmp_path / "g.npz")
    golden = dict(np.load(tmp_path / "g.npz"))
    np.savez(tmp_path / "older.npz", **{name: value for name, value in golden.items() if name != "format"})
    refuses("has golden format 1, this sde-onnx reads 2 to 3: write it again", "verify",
            tmp_path / "evaluation.onnx", tmp_path / "older.npz")
    np.savez(tmp_path / "newer.npz", **golden | {"format": 4})
    refuses("has golden format 4, this sde-onnx reads 2 to 3: upgrade sde-onnx", "verify",
            tmp_path / "evaluation.onnx", tmp_path / "newer.npz")


@pytest.fixture(scope="module")
def model8(tmp_path_factory):
    """A model of 8x8 images."""
    folder = tmp_path_factory.mktemp("model8")
    save_pipeline(folder / "checkpoint", random_unet(8, (32, 64), seed=1), sigma_max=50.0, snr=0.16)
    export(from_diffusers(str(folder / "checkpoint")), folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("operator", [[], ["--operator", "mask"]])
def test_a_triton_repository_fits_tritons_schema(operator, tmp_path):
    path, repository = tmp_path / "digits.onnx", tmp_path / "models"
    arguments = ["embed", "-o", str(path), "--steps", "3", "--triton", str(repository), *operator]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    config = text_format.Parse((repository / "digits" / "config.pbtxt").read_text(), ModelConfig())
    assert (repository / "digits" / "1" / "model.onnx").read_bytes() == path.read_bytes()
    assert (config.name, config.platform, config.max_batch_size) == ("digits", "onnxruntime_onnx", 64)
    assert config.HasField("dynamic_batching")
    types = {"tensor(int64)": "TYPE_INT64", "tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}
    session = open_session(path)
    for declared, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [item.name for item in declared] == [item.name for item in real]
        for mine, graph in zip(declared, real, strict=True):
            dims = list(mine.reshape.shape) if mine.HasField("reshape") else list(mine.dims)
            assert dims == [size if isinstance(size, int) else -1 for size in graph.shape[1:]]
            assert DataType.Name(mine.data_type) == types[graph.type]
    path.unlink()
    refuses("config.pbtxt exists already", *arguments)
    (tmp_path / "file").write_text("x")
    arguments[arguments.index("--triton") + 1] = str(tmp_path / "file" / "below")
    refuses("config.pbtxt cannot be written", *arguments)
    assert not path.exists()   # refused before the work

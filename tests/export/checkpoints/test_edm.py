"""EDM's recorded networks and runs, through the exported file."""

import json
import os
import pickle
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch

import sde_onnx
from sde_onnx.errors import CheckpointError, InputError
from sde_onnx.export import export, from_edm
from sde_onnx.solvers import heun
from sde_onnx.solvers.plan import run

NAMES = ["cifar10_uncond_ve", "cifar10_cond_ve", "baseline_uncond_ve", "cifar10_uncond_vp"]


@pytest.fixture(scope="session")
def edm(golden):
    return golden / "edm"


@pytest.fixture(scope="session")
def exported(edm, shared):
    """The file of a recorded network, made once."""
    return lambda name: sde_onnx.load(
        shared(f"{name}.onnx", lambda path: export(from_edm(edm / name / "network.pkl"), path)), "cpu")


def units(score, x01, sigma01, kind):
    """What EDM calls F and D, from our score."""
    each = sigma01[:, None, None, None]
    x, sigma = 2 * x01 - 1, 2 * each
    product = each * score
    denoised = x + sigma * product
    if kind == "VEPrecond":
        return product, denoised
    variance = sigma**2 + 0.25
    return (product + sigma * x / variance) * variance**0.5 / 0.5, denoised


def relative(a, b):
    return np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_gives_what_edm_gives(name, edm, exported):
    recorded, config = np.load(edm / name / "io.npz"), json.loads((edm / name / "config.json").read_text())
    model, kind = exported(name), config["precond"]["class_name"]
    x01, sigma01 = (recorded["x"] + 1) / 2, recorded["sigma"] / 2
    conditional = "class_labels" in recorded
    cases = [("denoised", recorded["class_labels"].argmax(axis=1) if conditional else None)]
    if conditional:
        cases.append(("denoised_unlabelled", None))
    for key, label in cases:
        score = model(x01.astype(np.float32), sigma01.astype(np.float32), label)
        output, denoised = units(score.astype(np.float64), x01, sigma01, kind)
        assert relative(denoised, recorded[key]) < 2e-5
        if key == "denoised":
            errors = [relative(output[index], recorded["network_output"][index]) for index in range(3)]
            print(f"{name}: F within {max(errors):.1e}, D within {relative(denoised, recorded[key]):.1e}")
            assert max(errors) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_plain_tensors_are_the_same_network(name, edm, tmp_path):
    """A dict with a config, and deepinv's form: no prefix, no config."""
    pickled = from_edm(edm / name / "network.pkl")
    # Half of what EDM's sampler takes of data in [-1, 1]: section 5 and table 1 of the paper, and its generate.py.
    least, most = {"EDMPrecond": (0.001, 40), "VEPrecond": (0.01, 50)}[pickled.network.preconditioning]
    assert (pickled.schedule.sigma_min, pickled.schedule.sigma_max) == (least, most)
    plain = from_edm(edm / name / "network.pt", str(edm / name / "config.json"))
    weights = torch.load(edm / name / "network.pt", weights_only=True)
    torch.save({key.removeprefix("model."): value for key, value in weights.items()}, tmp_path / "deepinv.pt")
    short = from_edm(tmp_path / "deepinv.pt", pickled.network.preconditioning)
    for other in (plain, short):
        assert other.schedule == pickled.schedule
        assert other.network.summary() == pickled.network.summary()
        for key, value in pickled.network.state_dict().items():
            assert torch.equal(other.network.state_dict()[key], value)


@pytest.mark.parametrize("sampler", ["heun", "stochastic_heun"])
def test_recorded_runs_of_edms_sampler(sampler, edm, exported):
    recorded, model = np.load(edm / "cifar10_uncond_ve" / f"{sampler}.npz"), exported("cifar10_uncond_ve")
    sigmas = recorded["sigmas"] / 2
    schedule = sde_onnx.VeSchedule(float(sigmas[-2]), float(sigmas[0]))
    churn = {} if sampler == "heun" else {"churn": 40.0, "churn_min": 0.05 / 2, "churn_max": 50 / 2,
                                          "churn_noise": 1.003}
    plan = heun.plan(schedule, len(sigmas) - 1, **churn)
    # EDM draws for every step; where gamma is 0 the draw has no effect, and here none is made.
    churned = [True, *(item > 0 for item in deviations(plan, schedule, len(sigmas) - 1, churn))]
    noise = iter([z for z, used in zip(recorded["noise"], churned, strict=True) if used])
    offset = iter([-0.5 / sigmas[0]])   # x01 = (x + 1) / 2: latents around 0 are around 1/2 here

    def draw():
        return next(noise).astype(np.float32) - np.float32(next(offset, 0))

    def score(x, sigma):
        return model(x.astype(np.float32), sigma.astype(np.float32))

    *_, last = run(plan, score, draw)
    result = 2 * last.x_mean - 1
    print(f"{sampler}: {relative(result, recorded['result']):.1e}")
    assert relative(result, recorded["result"]) < 1e-4


def deviations(plan, schedule, steps, churn):
    levels = heun.churned_levels(list(pairwise(schedule.karras(steps))), churn.get("churn", 0.0),
                                 churn.get("churn_min", 0.0), churn.get("churn_max", np.inf),
                                 churn.get("churn_noise", 1.0))
    return [deviation for _, deviation, _ in levels]


class Evil:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize(("function", "named"), [(os.system, "system"), (os.rmdir, "rmdir"), (eval, "eval")])
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(suffix, function, named, checkpoint16, tmp_path):
    trap = tmp_path / "trap"
    trap.mkdir()
    sprung = str(trap / "sprung")
    argument = {"system": f"touch {sprung}", "rmdir": str(trap), "eval": f"open({sprung!r}, 'w')"}[named]
    contents = {"ema": Evil(function, argument), "model": Evil(function, argument)}
    path = tmp_path / f"network{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path)
    with pytest.raises(CheckpointError) as caught:
        read(path, suffix, checkpoint16, tmp_path)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(trap.iterdir()) == []


def read(path, suffix, checkpoint16, tmp_path):
    """As a user would read a file of that suffix."""
    if suffix in (".pkl", ".pt"):
        return from_edm(path, None if suffix == ".pkl" else "EDMPrecond")
    if suffix == ".pth":
        return sde_onnx.export.from_score_sde(path, "cifar10_ncsnpp_continuous")
    import shutil

    folder = shutil.copytree(checkpoint16, tmp_path / "checkpoint")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copy(path, folder / "unet" / "diffusion_pytorch_model.bin")
    return sde_onnx.export.from_diffusers(str(folder))


def test_the_blob_of_a_tensor_runs_nothing_either(edm, tmp_path):
    """EDM's pickles hold each tensor as a file of its own, which torch would read without restriction."""
    trap = tmp_path / "sprung"
    inner = tmp_path / "inner.pt"
    torch.save(Evil(os.system, f"touch {trap}"), inner, _use_new_zipfile_serialization=False)
    contents = {"ema": Evil(torch.storage._load_from_bytes, inner.read_bytes())}
    (tmp_path / "network.pkl").write_bytes(pickle.dumps(contents))
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint of EDM"):
        from_edm(tmp_path / "network.pkl")
    assert not trap.exists()


@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_refused(part, edm, tmp_path):
    content = (edm / "cifar10_uncond_ve" / "network.pkl").read_bytes()
    (tmp_path / "network.pkl").write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint of EDM") as caught:
        from_edm(tmp_path / "network.pkl")
    assert "\n" not in str(caught.value)


def test_what_is_missing_or_of_another_kind_is_named(edm, tmp_path):
    folder = edm / "cifar10_uncond_ve"
    for arguments, message in [
        ((tmp_path / "network.pkl",), "network.pkl is missing"),
        ((folder,), "is a folder"),
        ((folder / "network.pt",), "holds weights alone: say how they are used with --config EDMPrecond or VEPrecond"),
        ((folder / "network.pt", str(folder / "nothing.json")), "cannot be read as JSON"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            from_edm(*arguments)
    (tmp_path / "vp.json").write_text(json.dumps({"precond": {"class_name": "VPPrecond", "init_kwargs": {}}}))
    with pytest.raises(CheckpointError, match="is of VPPrecond, expected EDMPrecond or VEPrecond"):
        from_edm(folder / "network.pt", str(tmp_path / "vp.json"))
    weights = torch.load(folder / "network.pt", weights_only=True)
    for change, message in [({"model.enc.32x32_block0.conv1.weight": None}, "1 missing: enc.32x32_block0.conv1.weight"),
                            ({"model.extra": torch.zeros(1)}, "1 not known: extra"),
                            ({"model.enc.8x8_aux_skip.weight": torch.zeros(1)}, "aux_skip.weight: an encoder or"),
                            ({"model.map_layer0.weight": torch.zeros(7, 24)}, "map_layer0 has 7 channels")]:
        changed = {key: value for key, value in (weights | change).items() if value is not None}
        torch.save(changed, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match=message):
            from_edm(tmp_path / "m.pt", "EDMPrecond")


def test_labels_are_checked(exported):
    model = exported("cifar10_cond_ve")
    x, sigma = np.zeros((2, 3, 16, 16), np.float32), np.ones(2, np.float32)
    assert np.isfinite(model(x, sigma, 3)).all()
    np.testing.assert_array_equal(model(x, sigma, np.array([3, 3])), model(x, sigma, 3))
    assert not np.array_equal(model(x, sigma, 3), model(x, sigma))
    np.testing.assert_array_equal(model(torch.from_numpy(x), torch.from_numpy(sigma), 3).numpy(), model(x, sigma, 3))
    for label, message in [(10, "label 10 is out of range: .* has 0 to 9"), (-2, "label -2 is out of range"),
                           ([1, 2, 3], r"label is int64 \[3\], expected whole numbers \[2\]"),
                           (0.5, "labels is 0.5, expected a whole number or a list of them")]:
        with pytest.raises(InputError, match=message):
            model(x, sigma, label)
    with pytest.raises(InputError, match="has no labels: leave the label out"):
        exported("cifar10_uncond_ve")(np.zeros((1, 3, 32, 32), np.float32), np.ones(1, np.float32), 3)


def test_a_zip_is_not_taken_for_a_pickle(tmp_path):
    with zipfile.ZipFile(tmp_path / "network.pkl", "w") as file:
        file.writestr("a", "b")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint of EDM"):
        from_edm(tmp_path / "network.pkl")

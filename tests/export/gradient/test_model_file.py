"""Gradient files of model files: against torch's reverse mode on the network itself, through the loaded file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

import sde_onnx
from sde_onnx.errors import InputError, ModelFileError, OutputError, ParityError
from sde_onnx.export import export, from_diffusers, from_edm, from_score_sde
from sde_onnx.export.gradient import model_file as model_file_module
from sde_onnx.export.gradient.model_file import export_gradient

from networks import noisy_images, worst_relative_error
from random_unets import NETWORKS, random_unet, save_pipeline


@pytest.fixture(scope="module")
def gradient_file(model_file, shared) -> Path:
    return shared("random16-gradient.onnx", lambda path: export_gradient(model_file, path))


def check_products(checkpoint, folder: Path, tolerance: float, rng, *, batches=(1, 3)) -> float:
    """Exports a checkpoint and its gradient, and compares products with torch's on the checkpoint's network."""
    export(checkpoint, folder / "m.onnx")
    export_gradient(folder / "m.onnx", folder / "g.onnx")
    model, network = sde_onnx.load(folder / "g.onnx", provider="cpu"), checkpoint.network
    schedule = model.metadata.schedule
    worst = 0.0
    for sigma in (schedule.sigma_min, (schedule.sigma_min * schedule.sigma_max) ** 0.5, schedule.sigma_max):
        for batch in batches:
            x, sigmas = noisy_images(rng, [sigma] * batch, network.image_shape)
            v = rng.standard_normal(x.shape, np.float32)
            label = rng.integers(0, network.labels, batch) if network.labels else None
            given = torch.from_numpy(x).requires_grad_()
            labels = [] if label is None else [torch.from_numpy(label)]
            result = network(given, torch.from_numpy(sigmas), *labels)
            expected, = torch.autograd.grad(result, given, torch.from_numpy(v))
            score, got = model.vjp(x, sigmas, v, label)
            np.testing.assert_array_equal(score, model(x, sigmas, label))
            worst = max(worst, worst_relative_error(got, expected))
    assert worst <= tolerance
    return worst


GOLDEN = ("cifar10_ncsnpp_continuous", "cifar10_ncsnpp", "church_ncsnpp_continuous", "ffhq_ncsnpp_continuous",
          "cifar10_ddpm")


@pytest.mark.parametrize("name", GOLDEN)
def test_the_original_networks(name, golden, tmp_path):
    rng = np.random.default_rng(0)   # the same inputs each time: both sides round, and one draw in a hundred is 5.3e-6
    folder = golden / "score_sde" / name
    checkpoint = from_score_sde(str(folder / "checkpoint.pth"), str(folder / "config.json"))
    print(name, check_products(checkpoint, tmp_path, 5e-6, rng))


@pytest.mark.parametrize("name", ["cifar10_uncond_ve", "cifar10_cond_ve", "baseline_uncond_ve", "cifar10_uncond_vp"])
def test_edm_networks(name, golden, tmp_path, rng):
    print(name, check_products(from_edm(golden / "edm" / name / "network.pkl"), tmp_path, 1e-4, rng))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["32", "plain32", "256"])
def test_networks_of_full_size(name, tmp_path, rng):
    network = NETWORKS[name]
    unet = random_unet(network.size, network.channels, layers=network.layers, attention=network.attention,
                       kind=network.kind)
    save_pipeline(tmp_path / "checkpoint", unet, sigma_max=network.sigma_max, snr=0.075)
    checkpoint = from_diffusers(str(tmp_path / "checkpoint"))
    print(name, check_products(checkpoint, tmp_path, 5e-6, rng, batches=(1,) if network.size > 64 else (1, 3)))


def test_the_file_says_what_it_is(model_file, gradient_file, model):
    given = sde_onnx.load(gradient_file, provider="cpu")
    assert given.metadata.gradient and not model.metadata.gradient
    assert given.metadata.source == model.metadata.source
    products = {case: error for case, error in given.metadata.parity.items() if case.startswith("vjp ")}
    assert len(products) == 6 and max(products.values()) <= 1e-5
    properties = {item.key: item.value for item in onnx.load(gradient_file).metadata_props}
    assert json.loads(properties["sde_onnx"])["format"] == 3
    assert gradient_file.stat().st_size < 1.1 * model_file.stat().st_size + 300_000   # weights are there once


def test_torch_tensors_are_answered_in_kind(gradient_file, rng):
    model = sde_onnx.load(gradient_file, provider="cpu")
    x, sigma = noisy_images(rng, [0.1, 3.0], model.metadata.image_shape)
    v = rng.standard_normal(x.shape, np.float32)
    expected = model.vjp(x, sigma, v)
    got = model.vjp(*map(torch.from_numpy, (x, sigma, v)))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a.numpy(), b)
    np.testing.assert_array_equal(model(torch.from_numpy(x), torch.from_numpy(sigma)).numpy(), expected[0])


def test_wrong_vectors_are_refused(gradient_file, model, rng):
    given = sde_onnx.load(gradient_file, provider="cpu")
    x, sigma = noisy_images(rng, [0.1, 3.0], given.metadata.image_shape)
    with pytest.raises(InputError, match=r"v is float64 \[2, 3, 16, 16\], expected float32 \[2, 3, 16, 16\], as x is"):
        given.vjp(x, sigma, x.astype(np.float64))
    with pytest.raises(InputError, match="expected a tensor beside x"):
        given.vjp(torch.from_numpy(x), torch.from_numpy(sigma), x)
    with pytest.raises(InputError, match=r"has no gradient: `sde-onnx gradient .*random16.onnx -o FILE` makes"):
        model.vjp(x, sigma, x)


def test_what_has_no_gradient_is_refused(gradient_file, model_file, for_cuda, tmp_path):
    path = tmp_path / "new.onnx"
    with pytest.raises(ModelFileError, match="has a gradient already"):
        export_gradient(gradient_file, path)
    with pytest.raises(ModelFileError, match="was exported for cuda, a gradient is made of what was not: `sde-onnx "
                                             "export CHECKPOINT -o MODEL --target cuda --gradient FILE` makes both"):
        export_gradient(for_cuda, path)
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[4] x) => (float[4] y) { y = Exp(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "foreign.onnx")
    with pytest.raises(ModelFileError, match="foreign.onnx is no model file of sde-onnx: name the output and the "
                                             "input of such a graph, --of OUTPUT --at INPUT"):
        export_gradient(tmp_path / "foreign.onnx", path)
    with pytest.raises(OutputError, match="is also another file of this command"):
        export_gradient(model_file, model_file, force=True)
    assert not path.exists()


def test_a_gradient_that_is_wrong_is_not_written(model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(model_file_module, "TOLERANCE", 1e-9)
    with pytest.raises(ParityError, match=r"differs from torch's by .* relative at sigma .*was not written"):
        export_gradient(model_file, tmp_path / "new.onnx")
    assert not (tmp_path / "new.onnx").exists()

import collections
import dataclasses

import numpy as np
import onnx
import pytest
import torch

import sde_onnx
from sde_onnx.errors import ConfigError, OutputError, ParityError
from sde_onnx.export import export, from_diffusers, to_onnx
from sde_onnx.export.network.ncsnpp import NCSNpp, NCSNppConfig

from networks import noisy_images, worst_relative_error
from random_unets import random_unet, save_pipeline

PARITY = 2e-6   # rounding: some 60 float32 layers in another order


@pytest.fixture(scope="module")
def graph(model_file):
    return onnx.load(model_file).graph


def unet_score(unet, x, sigma):
    with torch.no_grad():
        return unet(torch.tensor(x), torch.tensor(sigma)).sample.numpy()


def test_the_file_equals_the_recorded_reference(golden, tmp_path):
    folders = sorted((golden / "hub").iterdir())
    assert folders
    for folder in folders:
        recorded = np.load(folder / "io.npz")
        export(from_diffusers(str(folder)), tmp_path / f"{folder.name}.onnx")
        model = sde_onnx.load(tmp_path / f"{folder.name}.onnx", provider="cpu")
        error = worst_relative_error(model(recorded["x"], recorded["sigma"]), recorded["score"])
        print(f"{folder.name}: {error:.2e}")
        assert error < PARITY


@pytest.mark.parametrize("batch", [1, 4])
def test_the_file_equals_diffusers_16(batch, model, rng):
    unet = random_unet(16, (32, 64), seed=1)   # the checkpoint16 fixture's
    for sigma in (0.01, 0.7, 50.0):
        x, sigmas = noisy_images(rng, [sigma] * batch, (3, 16, 16))
        assert worst_relative_error(model(x, sigmas), unet_score(unet, x, sigmas)) < PARITY


def test_the_file_equals_diffusers_32(tmp_path, rng):
    unet = random_unet(32, (32, 64, 64), seed=5, layers=2)
    save_pipeline(tmp_path / "checkpoint", unet, sigma_max=50.0, snr=0.16)
    export(from_diffusers(str(tmp_path / "checkpoint")), tmp_path / "m.onnx")
    model = sde_onnx.load(tmp_path / "m.onnx", "cpu")
    drawn = [noisy_images(rng, (0.01, 0.7, 50.0), (3, 32, 32)) for _ in range(6)]
    errors = [worst_relative_error(model(*inputs), unet_score(unet, *inputs)) for inputs in drawn]
    assert np.mean(errors) < PARITY
    assert max(errors) < 1.2 * PARITY   # they scatter by 6%


def test_whole_numbers_in_a_schedule_are_exported(tmp_path):
    """A scheduler's config may write 50 where it means 50.0."""
    save_pipeline(tmp_path / "checkpoint", random_unet(8, (32,), seed=1, attention=0), sigma_min=1, sigma_max=50)
    metadata = export(from_diffusers(str(tmp_path / "checkpoint")), tmp_path / "m.onnx")
    assert type(metadata.schedule.sigma_max) is float
    assert sde_onnx.read_metadata(tmp_path / "m.onnx").schedule == metadata.schedule


@pytest.mark.slow
@pytest.mark.parametrize(("size", "channels", "layers", "attention", "sigma_max"), [
    (256, (128, 128, 256, 256, 256, 256, 256), 2, 4, 348.0),
    (1024, (16, 32, 64, 128, 256, 512, 512, 512), 1, 6, 1348.0),
])
def test_the_file_equals_diffusers_at_the_hubs_sizes(size, channels, layers, attention, sigma_max, tmp_path, rng):
    unet = random_unet(size, channels, seed=6, layers=layers, attention=attention)
    save_pipeline(tmp_path / "checkpoint", unet, sigma_max=sigma_max, snr=0.075)
    export(from_diffusers(str(tmp_path / "checkpoint")), tmp_path / "m.onnx")
    model = sde_onnx.load(tmp_path / "m.onnx", "cpu")
    for sigma in (0.01, (0.01 * sigma_max) ** 0.5, sigma_max):
        x, sigmas = noisy_images(rng, [sigma], (3, size, size))
        error = worst_relative_error(model(x, sigmas), unet_score(unet, x, sigmas))
        print(f"{size}, sigma {sigma:.4g}: {error:.2e}")
        assert error < 5e-6


def test_no_node_of_the_graph_comes_from_resampling_by_padding(graph):
    kinds = collections.Counter(node.op_type for node in graph.node)
    assert kinds["Pad"] == kinds["Slice"] == 0
    assert kinds["Softmax"] == 3   # attention in the encoder, in the middle, in the decoder
    assert kinds["Transpose"] == 3 * kinds["Softmax"]   # attention alone: image to tokens, the keys, and back


def test_the_contract_of_the_file(graph, model_file):
    model = onnx.load(model_file)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    shapes = {value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
              for value in (*graph.input, *graph.output)}
    assert shapes == {"x": ["N", 3, 16, 16], "sigma": ["N"], "score": ["N", 3, 16, 16]}
    types = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert types == {onnx.TensorProto.FLOAT}


def test_the_metadata_tell_everything_that_sampling_needs(model_file, checkpoint16):
    metadata = sde_onnx.read_metadata(model_file)
    assert metadata.schedule == sde_onnx.VeSchedule(0.01, 50.0, 2000, 1e-5)
    assert (metadata.snr, metadata.n_corrector, metadata.image_shape) == (0.16, 1, (3, 16, 16))
    assert metadata.data_range == (0.0, 1.0)
    assert metadata.source == {"name": checkpoint16.name, "sha256": from_diffusers(str(checkpoint16)).sha256}
    assert metadata.versions["opset"] == "20"
    assert len(metadata.parity) == 6
    assert max(metadata.parity.values()) < PARITY
    assert metadata.architecture["channels"] == [32, 64]


def test_the_file_names_no_path_of_the_machine_that_made_it(model_file):
    content = model_file.read_bytes()
    assert b"site-packages" not in content
    assert str(to_onnx.__file__).encode() not in content
    assert b"ncsnpp.py" not in content


def test_a_graph_that_differs_is_not_written(checkpoint16, model_file, tmp_path, monkeypatch):
    def build_wrong(network, **options):
        model = onnx.load(model_file)
        kernel = next(item for item in model.graph.initializer if item.name == "conv_in.weight")
        kernel.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(kernel) * 1.0001, kernel.name))
        return model

    monkeypatch.setattr(to_onnx, "build_model", build_wrong)
    with pytest.raises(ParityError, match="differs from the network by .* above 1e-05; .* was not written"):
        export(from_diffusers(str(checkpoint16)), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_differs_by_as_much_as_it_may_is_written(checkpoint16, tmp_path, monkeypatch):
    most = to_onnx.TOLERANCES["fp32"]
    checkpoint = from_diffusers(str(checkpoint16))
    monkeypatch.setattr(to_onnx, "measure_parity", lambda *_: {"sigma 1": most})
    export(checkpoint, tmp_path / "m.onnx")
    monkeypatch.setattr(to_onnx, "measure_parity", lambda *_: {"sigma 1": np.nextafter(most, 1)})
    with pytest.raises(ParityError, match="differs from the network by 1.00e-05 relative at sigma 1, above 1e-05"):
        export(checkpoint, tmp_path / "n.onnx")


def test_nan_is_not_parity(checkpoint16, model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "build_model", lambda network, **_: onnx.load(model_file))
    checkpoint = from_diffusers(str(checkpoint16))
    with torch.no_grad():
        checkpoint.network.conv_in.bias[0] = float("nan")
    with pytest.raises(ParityError, match="differs from the network by nan"):
        export(checkpoint, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_near_to_zeros_but_zeros():
    zeros = np.zeros((2, 3), np.float32)
    assert to_onnx.relative_error(zeros, zeros) == 0
    assert to_onnx.relative_error(zeros + np.float32(1e-20), zeros) == np.inf


def test_an_existing_file_is_kept(checkpoint16, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        export(from_diffusers(str(checkpoint16)), path)
    assert path.read_text() == "precious"
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        export(from_diffusers(str(checkpoint16)), tmp_path / "folder.onnx")
    with pytest.raises(OutputError, match="does not end in .onnx"):
        export(from_diffusers(str(checkpoint16)), tmp_path / "m.json")


def test_networks_beyond_one_file_are_refused():
    with torch.device("meta"):
        network = NCSNpp(NCSNppConfig(16, (32, 32), attn_resolutions=()))
        held = sum(parameter.numel() for parameter in network.parameters())
        network.register_parameter("more", torch.nn.Parameter(torch.empty(2**29 - held)))   # 2 GB of float32, in all
    with pytest.raises(ConfigError, match="pass 2 GB"):
        to_onnx.build_model(network)


def test_a_schedule_can_be_replaced_in_the_file(checkpoint16, model_file, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "build_model", lambda network, **_: onnx.load(model_file))   # the network stays
    checkpoint = from_diffusers(str(checkpoint16), sigma_max=40.0)
    export(dataclasses.replace(checkpoint, name="renamed"), tmp_path / "m.onnx")
    assert sde_onnx.read_metadata(tmp_path / "m.onnx").schedule.sigma_max == 40.0
    assert sde_onnx.read_metadata(tmp_path / "m.onnx").source["name"] == "renamed"

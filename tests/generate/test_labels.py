"""Models with labels: sampled, resumed, embedded."""

import json

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

import sde_onnx
from sde_onnx.cli import main
from sde_onnx.errors import ConfigError, InputError
from sde_onnx.export import export, from_edm
from sde_onnx.generate.sample import label_of

pytestmark = pytest.mark.thorough   # its network is exported first


@pytest.fixture(scope="module")
def labelled(labelled_file):
    return sde_onnx.load(labelled_file, "cpu")


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_seed_takes_its_label_whatever_stands_beside_it():
    assert label_of(range(8, 13), range(10)).tolist() == [8, 9, 0, 1, 2]
    assert label_of([12], range(10)).tolist() == [2]
    assert label_of([2**64 - 1, 5], 3).tolist() == [3, 3]
    assert label_of([1], None) is None
    for labels in ([], [[1]], 0.5, "3", [1, [2, 3]], 2**63, [1, 2**64]):
        with pytest.raises(InputError, match="labels is .*, expected a whole number or a list of them"):
            label_of([1], labels)


def test_labels_reach_the_network(labelled):
    images = {label: sde_onnx.sample(labelled, [4], 8, labels=label) for label in (None, 2, 7)}
    assert not np.allclose(images[2], images[7], atol=1e-3)
    assert not np.allclose(images[2], images[None], atol=1e-3)
    together = sde_onnx.sample(labelled, [2, 7], 8, labels=range(10))
    np.testing.assert_allclose(together[0], sde_onnx.sample(labelled, [2], 8, labels=2)[0], atol=1e-3)
    for labels, message in (([0, 10], "label 10 is out of range"), (-2, "label -2 is out of range")):
        with pytest.raises(InputError, match=message):
            sde_onnx.sample(labelled, [0, 1], 8, labels=labels)


def test_a_model_without_labels_refuses_them(digits):
    with pytest.raises(InputError, match="has no labels"):
        sde_onnx.sample_batches(digits, [0], 8, labels=3)


def test_the_command_and_its_folders(labelled_file, labelled, tmp_path):
    out = tmp_path / "out"
    first = run("sample", labelled_file, "--seeds", "0-3", "--label", "0-9", "--steps", 4, "--provider", "cpu", "-o",
                out)
    assert first.exit_code == 0, first.output
    assert json.loads((out / "run.json").read_text())["settings"]["labels"] == "0-9"
    other = run("sample", labelled_file, "--seeds", "0-3", "--label", "3", "--steps", 4, "--provider", "cpu", "-o", out)
    assert other.exit_code == 1
    assert "its labels is '0-9', here it is '3'" in other.output
    without = run("sample", labelled_file, "--seeds", "0-3", "--steps", 4, "--provider", "cpu", "-o", out)
    assert "its labels is '0-9', here it is None" in without.output
    again = tmp_path / "again"
    run("sample", labelled_file, "--seeds", "0-2", "--label", "3,3,5", "--steps", 4, "--provider", "cpu", "-o", again)
    assert json.loads((again / "run.json").read_text())["settings"]["labels"] == "3,3,5"
    saved = run("sample", labelled_file, "--seeds", "1-2", "--label", "0-9", "--steps", 4, "--provider", "cpu", "-o",
                tmp_path / "s.npz")
    assert saved.exit_code == 0, saved.output
    np.testing.assert_allclose(np.load(tmp_path / "s.npz")["images"],
                               sde_onnx.sample(labelled, [1, 2], 4, labels=range(10)), atol=1e-3)
    for label, message in (("10", "label 10 is out of range"), ("x", "neither a whole number nor a range")):
        result = run("sample", labelled_file, "--label", label, "--provider", "cpu", "-o", tmp_path / "x.png")
        assert result.exit_code != 0
        assert message in result.output


def test_a_triton_repository_asks_for_the_label(labelled_file, tmp_path):
    made = run("embed", labelled_file, "-o", tmp_path / "s.onnx", "--steps", 3, "--triton", tmp_path / "models")
    assert made.exit_code == 0, made.output
    config = text_format.Parse((tmp_path / "models" / "s" / "config.pbtxt").read_text(), ModelConfig())
    session = ort.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    assert [item.name for item in config.input] == [item.name for item in session.get_inputs()] == ["seed", "label"]
    assert [list(item.dims) for item in config.input] == [[1], [1]]


def test_no_loop_on_a_device_takes_labels(golden, tmp_path, monkeypatch):
    monkeypatch.setattr("sde_onnx.export.to_onnx.build_model", None)   # refused before the work
    with pytest.raises(ConfigError, match="a network with labels has no loop on a device yet"):
        export(from_edm(golden / "edm" / "cifar10_cond_ve" / "network.pkl"), tmp_path / "m.onnx", target="cuda")


@pytest.mark.parametrize("kind", ["sampler", "evaluation"])
def test_an_embedded_sampler_takes_labels(kind, labelled_file, tmp_path):
    made = run("embed", labelled_file, "-o", tmp_path / "s.onnx", "--steps", 5, "--kind", kind, "--golden",
               tmp_path / "g.npz")
    assert made.exit_code == 0, made.output
    assert "label" in np.load(tmp_path / "g.npz")
    result = run("verify", tmp_path / "s.onnx", tmp_path / "g.npz")
    assert result.exit_code == 0, result.output
    session = ort.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    shapes = {item.name: [1 if size == "N" else size for size in item.shape] for item in session.get_inputs()}
    feeds = {name: np.zeros(shape, np.int64 if name in ("index", "seed", "label") else np.float32)
             for name, shape in shapes.items()}
    session.run(None, feeds | {"label": np.array([-1])})   # which is none
    for label in (10, -2):
        with pytest.raises(Exception, match="out of data bounds"):
            session.run(None, feeds | {"label": np.array([label])})

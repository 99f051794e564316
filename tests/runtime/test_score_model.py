import json
import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import sde_onnx
from sde_onnx.errors import InputError, ModelFileError, ProviderError
from sde_onnx.runtime.metadata import KEY
from sde_onnx.runtime.providers import ORT_ERRORS, usable_providers


def rewritten(model_file, path, **metadata):
    """A copy of the model with other metadata; ``None`` removes a field."""
    model = onnx.load(model_file)
    values = {**json.loads(model.metadata_props[0].value), **metadata}
    onnx.helper.set_model_props(model, {KEY: json.dumps({k: v for k, v in values.items() if v is not None})})
    onnx.save(model, path)
    return path


def test_a_model_is_a_score_function(model, rng):
    x = rng.random((2, 3, 16, 16), np.float32)
    score = model(x, np.array([0.1, 3], np.float32))
    assert score.shape == x.shape
    assert score.dtype == np.float32
    assert model.provider == "cpu"


@pytest.mark.parametrize(("x", "message"), [
    (np.zeros((1, 3, 16), np.float32), r"x is float32 \[1, 3, 16\], expected float32 \[N, 3, 16, 16\]"),
    (np.zeros((1, 1, 16, 16), np.float32), r"x is float32 \[1, 1, 16, 16\]"),
    (np.zeros((1, 3, 32, 32), np.float32), r"x is float32 \[1, 3, 32, 32\]"),
    (np.zeros((1, 3, 16, 16)), "x is float64"),
    (np.zeros((0, 3, 16, 16), np.float32), r"x is float32 \[0, 3, 16, 16\], expected .* with N >= 1"),
    ([[0.0]], "x is list"),
])
def test_a_wrong_x_is_refused(x, message, model):
    with pytest.raises(InputError, match=message):
        model(x, np.ones(1, np.float32))


@pytest.mark.parametrize(("sigma", "message"), [
    (np.ones(2, np.float32), r"sigma is float32 \[2\], expected float32 \[1\]"),
    (np.ones(1), "sigma is float64"),
    (1.0, "sigma is float,"),
    (np.zeros(1, np.float32), "sigma holds 0, expected"),
    (np.full(1, np.nan, np.float32), "sigma holds nan, expected"),
])
def test_a_wrong_sigma_is_refused(sigma, message, model):
    with pytest.raises(InputError, match=message):
        model(np.zeros((1, 3, 16, 16), np.float32), sigma)


@pytest.mark.parametrize("read", [sde_onnx.load, sde_onnx.read_metadata])
class TestFilesThatAreNotOurs:
    def refuses(self, read, path, message):
        with pytest.raises(ModelFileError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)

    def test_missing(self, read, tmp_path):
        self.refuses(read, tmp_path / "m.onnx", "is missing, expected an .onnx file")

    def test_folder(self, read, tmp_path):
        self.refuses(read, tmp_path, "is a folder, expected an .onnx file")

    @pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 16], ids=len)
    def test_not_onnx(self, content, read, tmp_path):
        (tmp_path / "m.onnx").write_bytes(content)
        self.refuses(read, tmp_path / "m.onnx", "is not an ONNX file")

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
    def test_truncated(self, part, read, tmp_path, model_file):
        content = model_file.read_bytes()
        (tmp_path / "m.onnx").write_bytes(content[: int(part * len(content))])
        self.refuses(read, tmp_path / "m.onnx", "or it is truncated")

    @pytest.mark.parametrize("is_there", [True, False])
    def test_weights_in_another_file(self, is_there, read, tmp_path, model_file):
        """The hash of a file would say nothing of them."""
        onnx.save(onnx.load(model_file), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin",
                  size_threshold=1024)
        if not is_there:
            (tmp_path / "w.bin").unlink()
        self.refuses(read, tmp_path / "m.onnx", "keeps weights in another file, expected all in one")

    def test_a_location_in_metadata_is_none_of_weights(self, read, tmp_path, model_file):
        model = onnx.load(model_file)
        for place in (model, model.graph, model.graph.node[0]):
            place.metadata_props.add(key="location", value="j" * 200)
        onnx.save(model, tmp_path / "m.onnx")
        read(tmp_path / "m.onnx")

    def test_without_metadata(self, read, tmp_path, model_file):
        model = onnx.load(model_file)
        del model.metadata_props[:]
        onnx.save(model, tmp_path / "m.onnx")
        self.refuses(read, tmp_path / "m.onnx", "an ONNX file without sde_onnx metadata")

    @pytest.mark.parametrize("text", [100_000 * "[", "{", "[1]", '"x"', "1" * 5000], ids=lambda text: text[:5])
    def test_metadata_that_are_no_object(self, text, read, tmp_path, model_file):
        model = onnx.load(model_file)
        onnx.helper.set_model_props(model, {"sde_onnx": text})
        onnx.save(model, tmp_path / "m.onnx")
        self.refuses(read, tmp_path / "m.onnx", "is not JSON|names no format")

    def test_texts_that_are_none(self, read, tmp_path, model_file):
        content = model_file.read_bytes()
        (tmp_path / "m.onnx").write_bytes(content.replace(b'"sigma_min"', b'"sigm\xff_min"'))
        self.refuses(read, tmp_path / "m.onnx", "it holds texts that are none")

    def test_newer_format(self, read, tmp_path, model_file):
        path = rewritten(model_file, tmp_path / "m.onnx", format=4, snr=None)   # whatever else it may hold
        self.refuses(read, path, "has metadata format 4, this sde-onnx reads up to 3: upgrade sde-onnx")

    @pytest.mark.parametrize("damage", [{"format": None}, {"snr": None}, {"schedule": {"sigma_min": 1}},
                                        {"schedule": {"sigma_min": 2, "sigma_max": 1}}, {"snr": "0.16"}, {"snr": -1},
                                        {"schedule": {"sigma_min": 1, "sigma_max": 2, "num_scales": 1.5}},
                                        {"n_corrector": 1.5}, {"image_shape": [3, 16]}, {"image_shape": "abc"},
                                        {"source": 5}, {"gradient": 3}, {"labels": 2**63}, {"precision": []},
                                        {"n_corrector": 2**63}, {"schedule": {"sigma_min": 1, "sigma_max": 10**400}},
                                        {"image_shape": [3, 10**9, 10**9]}, {"architecture": {"channels": 8}},
                                        {"architecture": {"widest": "x"}}, {"architecture": {"depth": math.inf}},
                                        {"schedule": {"sigma_min": 1, "sigma_max": 1e30}}, {"parity": {"a": None}},
                                        {"data_range": [0, "1"]}], ids=lambda damage: str(damage)[:50])
    def test_damaged_metadata(self, damage, read, tmp_path, model_file):
        path = rewritten(model_file, tmp_path / "m.onnx", **damage)
        self.refuses(read, path, "metadata (names no format|is damaged)")

    def test_metadata_of_another_size(self, read, tmp_path, model_file):
        path = rewritten(model_file, tmp_path / "m.onnx", image_shape=[3, 32, 32])
        self.refuses(read, path, r"takes images \(3, 16, 16\), its metadata say \(3, 32, 32\)")

    def test_other_inputs(self, read, tmp_path, model_file):
        model = onnx.load(model_file)
        for node in model.graph.node:
            node.input[:] = ["t" if name == "sigma" else name for name in node.input]
        model.graph.input[1].name = "t"
        onnx.save(model, tmp_path / "m.onnx")
        self.refuses(read, tmp_path / "m.onnx", r"maps \('x', 't'\) to \('score',\), expected")


def test_a_failure_while_running_is_told_in_one_line(model_file, monkeypatch):
    model = sde_onnx.load(model_file, provider="cpu")

    class OutOfMemory:
        def run(self, *args):
            raise ORT_ERRORS[0]("Failed to allocate memory\nand more")

    monkeypatch.setattr(model, "_open_for", lambda batch: OutOfMemory())
    with pytest.raises(ProviderError, match="cpu failed on 1 images, fewer at a time .* Failed to allocate memory$"):
        model(np.zeros((1, 3, 16, 16), np.float32), np.ones(1, np.float32))


def test_metadata_that_are_not_json(model_file, tmp_path):
    model = onnx.load(model_file)
    onnx.helper.set_model_props(model, {KEY: "{"})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match="is not JSON"):
        sde_onnx.read_metadata(tmp_path / "m.onnx")


def test_a_provider_that_cannot_run_is_an_error(model_file):
    if "cuda" in usable_providers():
        pytest.skip("CUDA runs here")
    with pytest.raises(ProviderError, match=r"provider cuda cannot run here \(.*\); usable: .*cpu"):
        sde_onnx.load(model_file, provider="cuda")


def test_session_options_are_made_for_each_batch_size(model_file, model, rng):
    made = []

    def options():
        made.append(ort.SessionOptions())
        return made[-1]

    own = sde_onnx.load(model_file, "cpu", session_options=options)
    for count in (1, 2, 1):
        x, sigma = rng.random((count, 3, 16, 16), np.float32), np.full(count, 0.3, np.float32)
        np.testing.assert_allclose(own(x, sigma), model(x, sigma), rtol=1e-4, atol=1e-4)
    assert len(made) == 2
    with pytest.raises(InputError, match="session_options is SessionOptions, expected a function that makes them"):
        sde_onnx.load(model_file, "cpu", session_options=ort.SessionOptions())


def test_under_another_provider_everything_else_stays(model_file):
    model = sde_onnx.load(model_file, "cpu", threads=1).under("cpu")
    assert model._open_for(1).get_session_options().intra_op_num_threads == 1


def test_a_graph_whose_score_has_another_shape_is_refused(model_file, tmp_path):
    """Which the file does not say before it runs."""
    other = onnx.load(model_file)
    for node in other.graph.node:
        node.output[:] = ["whole" if name == "score" else name for name in node.output]
        node.input[:] = ["whole" if name == "score" else name for name in node.input]
    other.graph.node.append(onnx.helper.make_node("ReduceMax", ["whole", "axes"], ["score"], keepdims=0))
    other.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2, 3]), "axes"))
    del other.graph.output[:]
    other.graph.output.append(onnx.helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, None))
    onnx.save(other, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=r"m.onnx gives a score float32 \[2\] for x float32 \[2, 3, 16, 16\]"):
        sde_onnx.sample(sde_onnx.load(tmp_path / "m.onnx", "cpu"), range(2), 2)

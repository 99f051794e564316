"""Arguments of wrong kinds: the library says what it expected."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

import sde_onnx
from sde_onnx import operators
from sde_onnx.benchmark import benchmark
from sde_onnx.errors import InputError
from sde_onnx.runtime.score_model import as_labels

SHAPE = (3, 16, 16)
LABELLED = SimpleNamespace(metadata=SimpleNamespace(labels=3, label_optional=False), path=Path("m.onnx"))


@pytest.mark.parametrize(("call", "said"), [
    (lambda model: sde_onnx.sample("m.onnx", [0]), "model is 'm.onnx', expected what sde_onnx.load returns"),
    (lambda model: sde_onnx.sample_batches(Path("m.onnx"), [0]), "expected what sde_onnx.load returns"),
    (lambda model: sde_onnx.encode("m.onnx", None), "model is 'm.onnx'"),
    (lambda model: sde_onnx.decode("m.onnx", None), "model is 'm.onnx'"),
    (lambda model: sde_onnx.interpolate("m.onnx", 1, 2, 3), "model is 'm.onnx'"),
    (lambda model: sde_onnx.edit("m.onnx", None, [0], sigma=1.0), "model is 'm.onnx'"),
    (lambda model: sde_onnx.restore("m.onnx", None, "gray", [0]), "model is 'm.onnx'"),
    (lambda model: sde_onnx.log_likelihood("m.onnx", None), "model is 'm.onnx'"),
    (lambda model: sde_onnx.resolve(model), "expected a model's metadata: of a loaded one `.metadata`"),
    (lambda model: sde_onnx.resolve(None), "model is None, expected a model's metadata"),
    (lambda model: sde_onnx.resolve(model.metadata, options={"rho": 1e300}), "rho is 1e+300, expected a number"),
    (lambda model: sde_onnx.encode(model, np.ma.zeros((1, *SHAPE), np.float32)), "images is MaskedArray, expected a"),
    (lambda model: sde_onnx.sample(model, [0], latents=np.ma.zeros((1, *SHAPE), np.float32)), "latents is MaskedArray"),
    (lambda model: sde_onnx.restore(model, np.ma.zeros((1, 16, 16), np.float32), "gray", [0]),
     "the measurement is MaskedArray, expected a numpy array"),
    (lambda model: benchmark("m.onnx"), "model is 'm.onnx', expected what sde_onnx.load returns"),
    (lambda model: sde_onnx.restore(model, np.zeros((1, 16, 16), np.float32), "gray", [0], gradient="g.onnx"),
     "gradient is 'g.onnx', expected what sde_onnx.load returns"),
    (lambda model: sde_onnx.restore(model, np.zeros((1, 16, 16), np.float32), "gray", [0], restoration="posterior"),
     "restoration is 'posterior', expected what resolve_restoration returns"),
    (lambda model: type(model).labels_for(LABELLED, [[1], [1, 2]], 2), "labels is [[1], [1, 2]], expected a whole"),
    (lambda model: as_labels([[1], [1, 2]]), "labels is [[1], [1, 2]], expected a whole number or a list"),
    (lambda model: sde_onnx.interpolate(model, [1, 2], 3, 3), "an end is [1, 2], expected an image as a numpy array"),
    (lambda model: sde_onnx.interpolate(model, 1, 3.5, 3), "an end is 3.5, expected"),
    (lambda model: sde_onnx.interpolate(model, 1, np.zeros((1, *model.metadata.image_shape), np.uint8), 3),
     "an end is an image [1, 3, 16, 16], expected [3, 16, 16]"),
    (lambda model: sde_onnx.interpolate(model, True, 3, 3), "an end is True, expected"),
    (lambda model: sde_onnx.read_images("p.png", SHAPE), "paths is 'p.png', expected a list of files"),
    (lambda model: sde_onnx.read_images([3], SHAPE), "a path is 3, expected the name of a file"),
    (lambda model: sde_onnx.read_images(["missing.png"], SHAPE), "missing.png is missing"),
    (lambda model: sde_onnx.read_images(["p.png"], (3,)), "image_shape is (3,), expected three whole numbers"),
    (lambda model: sde_onnx.read_images(["p.png"], (3, 16.0, 16)), "expected three whole numbers"),
    (lambda model: sde_onnx.read_images(["p.png"], None), "image_shape is None"),
    (lambda model: operators.box("a", 1, 2, 3), "the box is 'a',1,2,3, expected x and y of at least 0"),
    (lambda model: operators.box(None, None, None, None), "the box is None,None,None,None"),
    (lambda model: sde_onnx.ScoreSdeVePipeline.from_pretrained(3), "source is 3, expected the name of a file"),
    (lambda model: sde_onnx.ScoreSdeVePipeline(model)(batch_size="2"), "batch_size is '2', expected a whole number"),
    (lambda model: sde_onnx.ScoreSdeVePipeline(model)(batch_size=1.5), "batch_size is 1.5, expected a whole number"),
    (lambda model: sde_onnx.ScoreSdeVePipeline(model).save_pretrained(3), "save_directory is 3"),
    (lambda model: sde_onnx.sample(sde_onnx.load(model.path, "cpu", session_options=lambda: None), [0]),
     "session_options made None, expected ONNX Runtime's SessionOptions"),
    (lambda model: sde_onnx.load(sde_onnx.bundled_gradient(), "cpu").vjp(None, None, None), "v is None"),
])
def test_what_was_expected_is_said(call, said, model):
    with pytest.raises(InputError) as error:
        call(model)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_options_that_are_right_are_taken(model):
    again = sde_onnx.load(model.path, "cpu", session_options=ort.SessionOptions)
    assert sde_onnx.sample(again, [0], 2).shape == (1, *SHAPE)

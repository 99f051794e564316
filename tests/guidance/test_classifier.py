"""Classifier guidance: Bayes' rule for Gaussian classes, and the bundled classifier."""

import commands
import numpy as np
import onnx
import pytest
from onnx import parser

import sde_onnx
from sde_onnx.errors import InputError, ModelFileError
from sde_onnx.guidance.classifier import classifier_guided
from sde_onnx.images import load_png, to_uint8
from sde_onnx.runtime.classifier import load_classifier
from sde_onnx.solvers.catalogue import resolve
from sde_onnx.solvers.noise import NumpyNoise
from sde_onnx.solvers.schedule import VeSchedule

from closed_forms import MEAN, STD, last, mixture_score


def class_gradient(x, sigma, label):
    """Of the two halves of :func:`mixture_score`, which is right for images of one value: grad log p(label given x)."""
    variance = STD**2 + sigma[:, None, None, None] ** 2
    sign = np.where(label == 1, 1, -1)[:, None, None, None]
    return sign / (2 * variance) * (1 - sign * np.tanh(0.5 * (x - MEAN) / variance))


class Data:
    schedule = VeSchedule(0.01, 20.0)

    @property
    def solver_options(self):
        return {"snr": 0.16, "n_corrector": 1}


def test_weight_1_is_bayes_rule(rng):
    """A mixture of two Gaussians becomes the one that was asked for, mean and deviation."""
    count = 4000
    label = np.arange(count) % 2
    sampling = resolve(Data(), solver="sde-dpmpp-2m", steps=200, options={"eta": 1.0})
    score = classifier_guided(mixture_score, class_gradient, label, weight=1.0)
    samples = last(sampling.run(score, NumpyNoise(rng, (count, 1, 1, 1)))).x_mean.reshape(-1)
    for value, mean in ((0, MEAN - 0.5), (1, MEAN + 0.5)):
        own = samples[label == value]
        assert own.mean() == pytest.approx(mean, abs=5 * STD / len(own) ** 0.5)
        assert own.std() == pytest.approx(STD, rel=0.06)   # four standard errors


@pytest.fixture(scope="module")
def classifier():
    return load_classifier(sde_onnx.bundled_classifier(), "cpu", image_shape=(3, 16, 16))


def test_the_gradient_is_that_of_the_label(classifier, rng):
    x = rng.random((3, 3, 16, 16), np.float32)
    sigma, label = np.array([0.1, 1, 5], np.float32), np.array([3, 0, 9])
    gradient = classifier.gradient(x, sigma, label)

    def log_p(x):
        logits = classifier(x, sigma).astype(np.float64)
        return logits[np.arange(3), label] - np.log(np.exp(logits).sum(axis=1))

    step = 1e-2 * np.sqrt(np.prod(x.shape[1:])) * gradient / np.linalg.norm(
        gradient.reshape(3, -1), axis=1)[:, None, None, None]
    step = step.astype(np.float32) / 16
    measured = (log_p(x + step) - log_p(x - step)) / 2
    np.testing.assert_allclose(measured, (gradient * step).sum(axis=(1, 2, 3)), rtol=0.02)


def test_weight_0_leaves_the_images_as_they_are(digits, classifier):
    plain = sde_onnx.sample(digits, range(2), 8)
    unguided = sde_onnx.sample(digits, range(2), 8, labels=3, classifier=classifier, guidance=0)
    np.testing.assert_array_equal(unguided, plain)
    guided = sde_onnx.sample(digits, range(2), 8, labels=3, classifier=classifier)
    assert np.abs(guided - plain).max() > 0.05


def test_an_image_does_not_depend_on_its_batch(digits, classifier):
    together = sde_onnx.sample(digits, range(4), 6, labels=[3, 5], classifier=classifier)
    alone = sde_onnx.sample(digits, [3], 6, labels=[3, 5], classifier=classifier)
    np.testing.assert_allclose(together[3:], alone, atol=2e-3)


def test_the_asked_class_comes(digits, classifier):
    images = sde_onnx.sample(digits, range(20), labels=range(10), classifier=classifier)
    found = classifier(images, np.full(20, 0.02, np.float32)).argmax(axis=1)
    assert (found == np.arange(20) % 10).mean() >= 0.9   # unguided, a tenth


def test_the_command_takes_the_bundled_classifier(digits, classifier, tmp_path):
    arguments = ("sample", "--label", "3,7", "--steps", 6, "--seeds", "0-3", "--provider", "cpu")
    commands.done(*arguments, "-o", tmp_path / "out")
    expected = to_uint8(sde_onnx.sample(digits, range(4), 6, labels=[3, 7], classifier=classifier))
    np.testing.assert_array_equal(load_png(tmp_path / "out" / "000003.png"), expected[3])
    commands.refuses("guidance is", *arguments, "--guidance", 2, "-o", tmp_path / "out")
    commands.refuses("--guidance weighs a classifier", "sample", "--guidance", 2, "-o", tmp_path / "x.png", status=2)
    commands.refuses("has no labels", "sample", sde_onnx.bundled_model(), "--label", 3, "-o", tmp_path / "x.png")
    commands.refuses("label 12 is out of range: digits_classifier.onnx has 0 to 9", "sample", "--label", "12", "-o",
                     tmp_path / "x.png", "--provider", "cpu")


@pytest.mark.parametrize(("arguments", "said"), [
    ({"labels": None}, "a classifier guides to a label: give labels, 0 to 9"),
    ({"labels": -1}, "label -1 is out of range"), ({"labels": 10}, "label 10 is out of range"),
    ({"labels": 3, "guidance": -1.0}, "guidance is -1.0"), ({"labels": 3, "guidance": float("nan")}, "guidance is nan"),
])
def test_bad_input_is_refused(arguments, said, digits, classifier):
    with pytest.raises(InputError) as error:
        sde_onnx.sample(digits, range(2), classifier=classifier, **arguments)
    assert said in str(error.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match=r"expected x, sigma, v to logits, vjp: `sde-onnx gradient CLASSIFIER"):
        load_classifier(sde_onnx.bundled_model(), "cpu")
    with pytest.raises(ModelFileError, match=r"classifies images \[3, 16, 16\], the model's are \[3, 32, 32\]"):
        load_classifier(sde_onnx.bundled_classifier(), "cpu", image_shape=(3, 32, 32))
    with pytest.raises(ModelFileError, match="is missing"):
        load_classifier(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelFileError, match="is not an ONNX file"):
        load_classifier(tmp_path / "broken.onnx", "cpu")
    free = parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N,3,H,W] x, float[N] sigma, float[N,10] v) => (float[N,10] logits, float[N,3,H,W] vjp) {
            logits = Identity (v)
            vjp = Identity (x)
        }""")
    onnx.save(free, tmp_path / "free.onnx")
    with pytest.raises(ModelFileError, match="expected sizes that are fixed"):
        load_classifier(tmp_path / "free.onnx", "cpu")

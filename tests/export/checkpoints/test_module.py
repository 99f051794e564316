"""Torch modules of a user's own, through the exported file."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import sde_onnx
from sde_onnx.errors import ConfigError, InputError
from sde_onnx.export import export, from_diffusers
from sde_onnx.export.gradient.model_file import export_gradient
from sde_onnx.solvers.schedule import VeSchedule

from closed_forms import MEAN, STD
from networks import noisy_images, worst_relative_error

SHAPE = (1, 24, 40)
SCHEDULE = VeSchedule(0.01, 20.0)


class ExactNoise(nn.Module):
    """Of data N(MEAN, STD^2) in [0, 1], seen as [-1, 1]: the noise that x is expected to hold, in closed form.

    A convolution that changes nothing stands in it, as a network would have one.
    """

    def __init__(self, predicts="noise"):
        super().__init__()
        self.predicts = predicts
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[0, 0, 1, 1] = 1

    def forward(self, x, sigma):
        each = sigma[:, None, None, None]
        mean, variance = 2 * MEAN - 1, (2 * STD) ** 2 + each**2
        score = (mean - self.conv(x)) / variance
        return {"score": score, "noise": -each * score, "denoised": x + each**2 * score}[self.predicts]


@pytest.mark.parametrize("predicts", ["score", "noise", "denoised"])
def test_whatever_it_predicts_the_file_gives_the_score(predicts, tmp_path, rng):
    metadata = export(ExactNoise(predicts).eval(), tmp_path / "m.onnx", schedule=SCHEDULE, image_shape=SHAPE,
                      predicts=predicts)
    assert (metadata.image_shape, metadata.data_range) == (SHAPE, (-1.0, 1.0))
    assert (metadata.snr, metadata.n_corrector) == (0.16, 1)
    assert metadata.architecture["class"] == "ExactNoise"
    model = sde_onnx.load(tmp_path / "m.onnx", "cpu")
    x, sigma = noisy_images(rng, (0.3, 1.0, 20.0), SHAPE)
    expected = (MEAN - x) / (STD**2 + sigma[:, None, None, None] ** 2)
    assert worst_relative_error(model(x, sigma), expected) < 1e-4


class ExactScoreOfClasses(ExactNoise):
    """Of class k the data are N(k, STD^2)."""

    def forward(self, x, sigma, label):
        mean = label[:, None, None, None].to(x.dtype)
        return (mean - self.conv(x)) / (STD**2 + sigma[:, None, None, None] ** 2)


def test_a_module_with_labels(tmp_path, rng):
    export(ExactScoreOfClasses().eval(), tmp_path / "m.onnx", schedule=SCHEDULE, image_shape=SHAPE, labels=3,
           data_range=(0, 1))
    model = sde_onnx.load(tmp_path / "m.onnx", "cpu")
    assert (model.metadata.labels, model.metadata.label_optional) == (3, False)
    x, sigma = noisy_images(rng, (0.3, 1.0, 20.0), SHAPE)
    label = np.array([2, 0, 1])
    expected = (label[:, None, None, None] - x) / (STD**2 + sigma[:, None, None, None] ** 2)
    assert worst_relative_error(model(x, sigma, label), expected) < 1e-4
    images = sde_onnx.sample(model, [5, 6], steps=20, labels=[0, 1])   # seed 5 takes the second
    assert images[1].mean() < 0.2 and images[0].mean() > 0.8   # of N(0, STD^2) and N(1, STD^2), clipped
    with pytest.raises(InputError, match="needs a label for each image, 0 to 2"):
        sde_onnx.sample(model, [0])


def test_gaussian_data_come_out_with_their_mean_and_deviation(tmp_path):
    """One channel, 24x40, noise predicted, data in [-1, 1]."""
    export(ExactNoise().eval(), tmp_path / "m.onnx", schedule=SCHEDULE, image_shape=SHAPE, predicts="noise")
    model = sde_onnx.load(tmp_path / "m.onnx", "cpu")
    batches = sde_onnx.sample_batches(model, range(64), 100, eta=1.0)
    images = np.concatenate([list(batch.steps)[-1].x_mean for batch in batches])   # not clipped to [0, 1]
    assert images.shape == (64, *SHAPE)
    standard_error = STD / math.sqrt(images.size)
    assert images.mean() == pytest.approx(MEAN, abs=5 * standard_error + 0.002)
    assert images.std() == pytest.approx(STD, rel=0.02)


class Spoilt(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, sigma):
        out = self.conv(x)
        if self.how == "fails":
            raise IndexError("the seventh layer\nis missing")
        if self.how == "shape":
            return out[:, :, ::2]
        if self.how == "tuple":
            return out, sigma
        if self.how == "random":
            return out + torch.rand_like(out)
        if self.how == "batch":
            return out - out.mean()
        if self.how == "branch":
            return out if float(x.sum()) > 0 else -out
        return out


@pytest.mark.parametrize(("how", "message"), [
    ("fails", r"Spoilt fails on x \[3, 1, 24, 40\] and sigma \[3\]: the seventh layer"),
    ("shape", r"Spoilt returns \[3, 1, 12, 40\] for x \[3, 1, 24, 40\]"),
    ("tuple", "Spoilt fails on .*: it returns a tuple, expected an array of x's shape"),
    ("random", "returns something else when it is called again"),
    ("batch", "gives an image that depends on its batch"),
    ("branch", "Spoilt cannot be traced"),
])
def test_a_module_that_no_file_can_stand_for_is_refused_in_one_line(how, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        export(Spoilt(how).eval(), tmp_path / "m.onnx", schedule=SCHEDULE, image_shape=SHAPE)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("about", "message"), [
    ({"image_shape": (24, 40)}, r"image_shape is \(24, 40\), expected \(channels, height, width\)"),
    ({"schedule": None}, "schedule is NoneType, expected a VeSchedule"),
    ({"predicts": "velocity"}, "predicts is 'velocity', expected one of: score, noise, denoised"),
    ({"labels": -1}, "labels is -1, expected a whole number of classes"),
    ({"data_range": (1, -1)}, r"data_range is \(1, -1\), expected"),
])
def test_bad_arguments_are_refused(about, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export(Spoilt("not").eval(), tmp_path / "m.onnx", **{"schedule": SCHEDULE, "image_shape": SHAPE} | about)


def test_a_checkpoint_says_itself_what_a_module_is_told(checkpoint16, tmp_path):
    with pytest.raises(ConfigError, match="a checkpoint says snr itself"):
        export(from_diffusers(str(checkpoint16)), tmp_path / "m.onnx", snr=0.2)


def test_a_network_that_has_not_begun_to_learn_is_accepted(tmp_path):
    """NCSN++ starts with a last convolution of zeros."""
    network = Spoilt("not").eval()
    nn.init.zeros_(network.conv.weight)
    nn.init.zeros_(network.conv.bias)
    export(network, tmp_path / "m.onnx", schedule=SCHEDULE, image_shape=SHAPE)
    x, sigma = np.ones((2, *SHAPE), np.float32), np.ones(2, np.float32)
    assert (sde_onnx.load(tmp_path / "m.onnx", "cpu")(x, sigma) == 0).all()
    export_gradient(tmp_path / "m.onnx", tmp_path / "g.onnx")
    score, product = sde_onnx.load(tmp_path / "g.onnx", "cpu").vjp(x, sigma, x)
    assert (score == 0).all() and (product == 0).all()


def test_half_a_module_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"parameters of torch.float16, expected float32: module.float\(\)"):
        export(Spoilt("not").eval().half(), tmp_path / "m.onnx", schedule=SCHEDULE, image_shape=SHAPE)


def test_images_of_another_shape_are_refused(tmp_path):
    export(Spoilt("not").eval(), tmp_path / "m.onnx", schedule=SCHEDULE, image_shape=SHAPE)
    with pytest.raises(InputError, match=r"expected float32 \[N, 1, 24, 40\]"):
        sde_onnx.load(tmp_path / "m.onnx", "cpu")(np.zeros((1, 1, 40, 24), np.float32), np.ones(1, np.float32))

import numpy as np
import pytest
import torch
from diffusers.models.downsampling import FirDownsample2D, downsample_2d
from diffusers.models.upsampling import FirUpsample2D, upsample_2d

from sde_onnx.export.fir import ConvDownsample, ConvUpsample, Downsample, Upsample

KERNEL = (1, 3, 3, 1)
ROUNDING = 2e-6


@pytest.fixture
def x(rng):
    return torch.tensor(rng.standard_normal((2, 5, 8, 12), np.float32))


def close(got, expected):
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=ROUNDING, atol=ROUNDING)


def test_downsampling_equals_upfirdn_borders_included(x):
    close(Downsample(5)(x), downsample_2d(x, kernel=KERNEL))


def test_upsampling_equals_upfirdn_borders_included(x):
    close(Upsample(5)(x), upsample_2d(x, kernel=KERNEL))


@pytest.mark.parametrize(("ours", "theirs"), [(ConvDownsample, FirDownsample2D), (ConvUpsample, FirUpsample2D)])
def test_resampling_with_convolution_equals_the_fused_one(ours, theirs, x):
    reference = theirs(5, out_channels=7, use_conv=True)
    layer = ours(5, 7)
    layer.conv.load_state_dict(reference.Conv2d_0.state_dict())
    with torch.no_grad():
        close(layer(x), reference(x))


def test_without_fir_resampling_is_mean_and_nearest(x):
    close(Downsample(5, fir=False)(x), x.unflatten(2, (4, 2)).unflatten(4, (6, 2)).mean(dim=(3, 5)))
    close(Upsample(5, fir=False)(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


@pytest.mark.parametrize(("layer", "shape"), [(ConvDownsample, (2, 7, 4, 6)), (ConvUpsample, (2, 7, 16, 24))])
def test_without_fir_a_convolution_still_ends_the_resampling(layer, shape, x):
    assert layer(5, 7, fir=False)(x).shape == shape

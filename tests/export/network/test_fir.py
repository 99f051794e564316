import numpy as np
import pytest
import torch
from diffusers.models.downsampling import Downsample2D, FirDownsample2D, downsample_2d
from diffusers.models.upsampling import FirUpsample2D, Upsample2D, upsample_2d

from sde_onnx.export.network.fir import ConvDownsample, ConvUpsample, Downsample, Upsample

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


def test_without_fir_a_convolution_still_ends_the_resampling(x):
    down, up = ConvDownsample(5, 7, fir=False), ConvUpsample(5, 7, fir=False)
    reference = Downsample2D(5, use_conv=True, out_channels=7, padding=0)
    reference.conv.load_state_dict(down.conv.state_dict())
    with torch.no_grad():
        close(down(x), reference(x))
    reference = Upsample2D(5, use_conv=True, out_channels=7)
    reference.conv.load_state_dict(up.conv.state_dict())
    with torch.no_grad():
        close(up(x), reference(x))

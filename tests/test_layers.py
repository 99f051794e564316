import pytest
import torch
import torch.nn.functional as F

from sde_onnx.export import layers


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_a_large_group_is_normalized_as_a_small_one(mean, rng, monkeypatch):
    """Both ways of summing against float64."""
    norm = layers.group_norm(16, groups=None, eps=1e-6)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(rng.normal(1, 0.3, 16)))
        norm.bias.copy_(torch.tensor(rng.normal(0, 0.3, 16)))
    x = torch.tensor(rng.normal(mean, 2, (2, 16, 12, 20)), dtype=torch.float32)
    expected = F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), 1e-6)
    for largest in (layers.LARGEST_PLAIN_GROUP, 0):
        monkeypatch.setattr(layers, "LARGEST_PLAIN_GROUP", largest)
        with torch.no_grad():
            # float32 holds x - mean to 2^-24 of the mean
            torch.testing.assert_close(norm(x).double(), expected, rtol=0, atol=3e-6 + 1e-6 * mean)


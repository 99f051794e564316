import itertools

import pytest
import torch

from sde_onnx.export.network.layers import ResnetBlock, SelfAttention, group_norm
from sde_onnx.export.network.ncsnpp import NCSNpp, NCSNppConfig
from sde_onnx.export.rewrites.fold import fold_constants

from networks import worst_relative_error
from random_unets import randomize

# Rounding of float32 over the few layers of these networks.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def norm(channels):
    return group_norm(channels, groups=None, eps=1e-6)


@pytest.fixture
def network():
    network = NCSNpp(NCSNppConfig(16, (16, 32), num_res_blocks=1, attn_resolutions=(8,), attn_head_channels=8))
    randomize(network, 0)
    return network.eval()


@pytest.mark.parametrize("options", [
    {"resblock": resblock, "fir": fir, "skip_scale": scale, "mid_skip_scale": mid}
    for resblock, fir, (scale, mid) in itertools.product(
        ("biggan", "ddpm"), (True, False), ((0.5**0.5, None), (1.0, None), (0.5**0.5, 1.0)))
], ids=str)
def test_a_folded_network_is_the_same_function(options):
    network = NCSNpp(NCSNppConfig(16, (16, 32), num_res_blocks=1, attn_resolutions=(8,), **options))
    randomize(network, 1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 5.0])
    with torch.no_grad():
        # Of the whole image: a score that is nearly 0 has rounding of its neighbours' size.
        assert worst_relative_error(fold_constants(network)(x, sigma), network(x, sigma)) < 5e-6
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the given network was changed"


def test_folding_leaves_no_multiplication_by_the_scale(network):
    """Only what has no weights to fold into: the input of a sum without a shortcut convolution."""
    blocks = [module for module in fold_constants(network).modules() if isinstance(module, ResnetBlock | SelfAttention)]
    assert len(blocks) > 5
    for block in blocks:
        has_weights = isinstance(block, ResnetBlock) and block.shortcut is not None
        assert (block.merge.x_scale, block.merge.scale) == (1 if has_weights else network.config.skip_scale, 1)
        if isinstance(block, SelfAttention):
            assert block.logit_scale == 1
        elif has_weights:
            assert block.shortcut.bias is None
            assert block.conv0.bias is None


@pytest.mark.parametrize(("heads_of", "projections"), [(None, 2), (8, 4)])
def test_attention_of_one_head_keeps_two_of_four_projections(heads_of, projections, rng):
    """Keys go into the queries and values into the output; several heads keep all four."""
    network = NCSNpp(NCSNppConfig(16, (16, 32), num_res_blocks=1, attn_resolutions=(8,), attn_head_channels=heads_of))
    randomize(network, 2)
    before, after = network.middle0.attention, fold_constants(network).middle0.attention
    x = torch.tensor(rng.normal(size=(2, 32, 8, 8)), dtype=torch.float32)
    with torch.no_grad():
        assert worst_relative_error(after(x), before(x)) < 1e-6
        assert worst_relative_error(after(x), x * network.config.skip_scale) > 0.1   # attention is not nothing beside x
    assert sum(isinstance(module, torch.nn.Linear) for module in after.modules()) == projections


def test_a_shortcut_runs_before_fir_upsampling(rng):
    """A 1x1 convolution at the low resolution, its bias after the filter: equal to the order of the references."""
    block = ResnetBlock(16, 16, 8, resample="up", fir=True, scale=1.0, attention=None, norm=norm)
    randomize(block, 2)
    x = torch.tensor(rng.normal(size=(2, 16, 6, 6)), dtype=torch.float32)
    sizes = []
    block.resample.register_forward_hook(lambda module, arguments, out: sizes.append(arguments[0].shape[2]))
    with torch.no_grad():
        expected = block.shortcut(block.resample(x))
        torch.testing.assert_close(block._shortcut(x), expected, **ROUNDING)
    assert expected[0, :, 0].std() > 0   # the border, where a bias before the filter would show
    assert sizes == [6, 6]

"""What a config of a UNet2DModel means where it leaves options out."""

import inspect

import pytest
from diffusers import UNet2DModel

from sde_onnx.export.checkpoints.unet2d import CHANNELS, FIXED_OPTIONS, is_ncsnpp, network_config

PARAMETERS = inspect.signature(UNet2DModel.__init__).parameters
NCSNPP = {"sample_size": 16, "block_out_channels": [32], "down_block_types": ["SkipDownBlock2D"],
          "up_block_types": ["SkipUpBlock2D"], "time_embedding_type": "fourier"}


@pytest.mark.parametrize("option", [name for name in FIXED_OPTIONS if name in PARAMETERS])
def test_an_option_that_is_left_out_is_diffusers_default(option):
    assert FIXED_OPTIONS[option][1] == PARAMETERS[option].default


def test_so_are_sizes_and_scales():
    default = {name: parameter.default for name, parameter in PARAMETERS.items()}
    assert default["block_out_channels"] == CHANNELS
    config = network_config(NCSNPP)
    assert config.norm_eps == default["norm_eps"]
    assert config.num_res_blocks == default["layers_per_block"]
    assert config.attn_head_channels == default["attention_head_dim"]
    assert config.mid_skip_scale == 1 / default["mid_block_scale_factor"]
    assert config.center_input == default["center_input_sample"]


def test_an_ncsnpp_is_one_with_its_options_named_and_without():
    assert is_ncsnpp(NCSNPP)
    assert is_ncsnpp(NCSNPP | {name: default for name, (_, default) in FIXED_OPTIONS.items()
                               if name != "time_embedding_type"})


@pytest.mark.parametrize("changed", [
    {"add_attention": False}, {"time_embedding_type": "positional"}, {"num_class_embeds": 10}, {"act_fn": "gelu"},
    {"up_block_types": ["AttnSkipUpBlock2D"]}, {"up_block_types": ["UpBlock2D"]}, {"block_out_channels": [32, 32]},
    {"sample_size": [16, 24]}, {"sample_size": None},
], ids=str)
def test_another_is_diffusers_own(changed):
    assert not is_ncsnpp(NCSNPP | changed)

"""diffusers' attention on columns is the same function, without transposes."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, SlicedAttnProcessor

from sde_onnx.export.network.diffusers_unet import DiffusersUnet
from sde_onnx.export.rewrites.attention import keep_columns
from sde_onnx.export.to_onnx import build_model


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_same_function(heads: int, residual: bool, bias: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(32, heads=heads, dim_head=32 // heads, norm_num_groups=8, residual_connection=residual,
                          bias=bias, rescale_output_factor=1.7)
    rewritten = copy.deepcopy(attention)
    keep_columns(rewritten)
    image = torch.randn(3, 32, 4, 6)
    assert rewritten.processor is not attention.processor
    torch.testing.assert_close(rewritten(image), attention(image), rtol=1e-5, atol=1e-5)


def test_other_kinds_stay() -> None:
    cross = Attention(32, cross_attention_dim=16, heads=2, dim_head=16, norm_num_groups=8)
    sliced = Attention(32, heads=2, dim_head=16, norm_num_groups=8, processor=SlicedAttnProcessor(1))
    without_norm = Attention(32, heads=2, dim_head=16)
    for attention in (cross, sliced, without_norm):
        before = attention.processor
        keep_columns(attention)
        assert attention.processor is before


def test_no_transposes_are_left() -> None:
    unet = UNet2DModel(sample_size=16, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=16,
                       down_block_types=("DownBlock2D", "AttnDownBlock2D"), norm_num_groups=8,
                       up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()
    graph = build_model(DiffusersUnet(unet)).graph
    softmaxes = sum(node.op_type == "Softmax" for node in graph.node)
    transposes = [list(node.attribute[0].ints) for node in graph.node if node.op_type == "Transpose"]
    assert softmaxes == 4
    assert transposes == 2 * softmaxes * [[0, 1, 3, 2]]   # of a product's factor, which ONNX Runtime takes as it is

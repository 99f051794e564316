"""Constants folded into weights: the same network, with fewer passes over its activations.

    residual sums     (x + h) s      s goes into the main path's last layer, and into the shortcut's convolution where
                                     there is one; without one, only the input is scaled
    shortcut bias     joins the bias of the main path's last convolution: both are added to the same sum
    conv0's bias      joins the bias of the embedding's projection: both are added to conv0's result
    attention         the 1 / sqrt(head channels) of its logits goes into the queries

and into each other, in attention with one head, of tokens t with weights p that sum to 1:

    keys              (Q t + q) . (K u + k) = (K'Q t + K'q) . u + what is the same for every u, which softmax ignores
    values            O sum(p (V u + v)) + o = OV sum(p u) + Ov + o

Exact up to rounding.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from sde_onnx.export.network.layers import ResnetBlock, SelfAttention

__all__ = ["fold_constants"]

Network = TypeVar("Network", bound=nn.Module)


def fold_constants(network: Network) -> Network:
    """Returns a copy of a network that is the same function in fewer operations, where its blocks are ours."""
    folded = copy.deepcopy(network)
    with torch.no_grad():
        for module in folded.modules():
            if isinstance(module, ResnetBlock):
                _fold_block(module)
            elif isinstance(module, SelfAttention):
                _fold_attention(module)
    return folded


def _fold_block(block: ResnetBlock) -> None:
    scale = block.merge.scale
    _move_bias(block.conv0, block.emb)
    _multiply(block.conv1, scale)
    block.merge.scale = 1.0
    if block.shortcut is None:
        block.merge.x_scale = scale
    else:
        _multiply(block.shortcut, scale)
        _move_bias(block.shortcut, block.conv1)


def _fold_attention(attention: SelfAttention) -> None:
    query, key, value, out, merge = attention.query, attention.key, attention.value, attention.out, attention.merge
    _multiply(out, merge.scale)
    merge.scale, merge.x_scale = 1.0, merge.scale
    _multiply(query, attention.logit_scale)
    attention.logit_scale = 1.0
    if attention.heads == 1:   # of several heads each would need a matrix of its own
        _set(query, key.weight.T.double() @ query.weight.double(), key.weight.T.double() @ query.bias.double())
        _set(out, out.weight.double() @ value.weight.double(), out.weight.double() @ value.bias.double() + out.bias)
        for name in ("key", "value"):
            setattr(attention, name, nn.Identity())


def _set(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def _multiply(layer: nn.Conv2d | nn.Linear, factor: float) -> None:
    layer.weight.mul_(factor)
    assert layer.bias is not None
    layer.bias.mul_(factor)


def _move_bias(source: nn.Conv2d, target: nn.Conv2d | nn.Linear) -> None:
    assert source.bias is not None
    assert target.bias is not None
    target.bias.add_(source.bias)
    source.bias = None

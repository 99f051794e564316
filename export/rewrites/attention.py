"""diffusers' attention on tokens that stay columns: no transposes, which are as dear there as the softmax.

diffusers takes the tokens of an image as rows: it transposes the image, each head's queries, keys and values, and all
of it back. As columns, with weights on the left, all of these are views:

    Q = W_q t + b_q                    [N, heads, C / heads, L]     t the normalized image, [N, C, L]
    h = V softmax(Q^T K / sqrt(C / heads))^T

ONNX Runtime takes a transposed factor of a product as it is.
"""

from __future__ import annotations

import math
import sys
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["keep_columns"]

PLAIN = ("AttnProcessor", "AttnProcessor2_0")   # what diffusers computes attention with unless it is told otherwise


def keep_columns(network: nn.Module) -> None:
    """Makes every self-attention of diffusers' blocks in the network, in place, one on columns."""
    diffusers = sys.modules.get("diffusers.models.attention_processor")
    if diffusers is None:   # so the network has none of its modules
        return
    for module in network.modules():
        if type(module) is diffusers.Attention and _is_plain(module):
            cast(Any, module).set_processor(_Columns())


def _is_plain(attention: Any) -> bool:
    """Whether an attention is of an image with itself, after a group norm, and no more."""
    others = ("spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")
    return (type(attention.processor).__name__ in PLAIN and attention.group_norm is not None
            and not attention.is_cross_attention and all(getattr(attention, other) is None for other in others))


class _Columns:
    """A processor of diffusers' ``Attention``, of an image with itself: the other inputs are those of other kinds."""

    def __call__(self, attention: Any, image: Tensor, **others: Tensor | None) -> Tensor:
        tokens = attention.group_norm(image.flatten(2))
        heads = attention.heads
        query = _heads(attention.to_q, tokens, heads, 1 / math.sqrt(attention.to_q.out_features // heads))
        key, value = (_heads(layer, tokens, heads) for layer in (attention.to_k, attention.to_v))
        weights = torch.softmax(query.transpose(2, 3) @ key, 3)
        attended = (value @ weights.transpose(2, 3)).flatten(1, 2)
        out = _product(attention.to_out[0], attended).view(image.shape)
        result: Tensor = (out + image if attention.residual_connection else out) / attention.rescale_output_factor
        return result


def _heads(layer: nn.Linear, columns: Tensor, heads: int, scale: float = 1) -> Tensor:
    product = _product(layer, columns, scale)
    return product.view(product.shape[0], heads, -1, product.shape[2])


def _product(layer: nn.Linear, columns: Tensor, scale: float = 1) -> Tensor:
    product = (layer.weight * scale) @ columns
    return product if layer.bias is None else product + (layer.bias * scale)[:, None]

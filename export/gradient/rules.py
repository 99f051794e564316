"""The operators that have a gradient, and the rule of each.

A rule takes the writer and a node, and returns what the node adds to the cotangent of each of its inputs: ``ZERO``
where that is nothing; ``None``, or a shorter list, of inputs that it has no gradient for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sde_onnx.export.gradient import elementwise, movements, products, reductions
from sde_onnx.export.gradient.elementwise import Contributions
from sde_onnx.export.gradient.writer import Call, GradientWriter

__all__ = ["RULES", "Rule"]

Rule = Callable[[GradientWriter, Call], Contributions]

RULES: Mapping[str, Rule] = {
    "Abs": elementwise.absolute,
    "Add": elementwise.add,
    "AveragePool": reductions.average_pool,
    "BatchNormalization": reductions.batch_normalization,
    "Cast": elementwise.cast,
    "Clip": elementwise.clip,
    "Concat": movements.concat,
    "Conv": products.conv,
    "ConvTranspose": products.conv_transpose,
    "Cos": elementwise.cos,
    "Div": elementwise.divide,
    "Dropout": elementwise.dropout,
    "Erf": elementwise.erf,
    "Exp": elementwise.exp,
    "Expand": movements.expand,
    "Flatten": movements.reshape,
    "Gather": movements.gather,
    "Gelu": elementwise.gelu,
    "Gemm": products.gemm,
    "GlobalAveragePool": reductions.global_average_pool,
    "Identity": elementwise.identity,
    "InstanceNormalization": reductions.instance_normalization,
    "LayerNormalization": reductions.layer_normalization,
    "LeakyRelu": elementwise.leaky_relu,
    "Log": elementwise.log,
    "LogSoftmax": reductions.log_softmax,
    "MatMul": products.matmul,
    "Max": elementwise.larger,
    "MaxPool": reductions.max_pool,
    "Min": elementwise.smaller,
    "Mul": elementwise.multiply,
    "Neg": elementwise.negate,
    "Pad": movements.pad,
    "Pow": elementwise.power,
    "Reciprocal": elementwise.reciprocal,
    "ReduceMean": reductions.reduce_mean,
    "ReduceSum": reductions.reduce_sum,
    "ReduceSumSquare": reductions.reduce_sum_square,
    "Relu": elementwise.relu,
    "Reshape": movements.reshape,
    "Resize": movements.resize,
    "Sigmoid": elementwise.sigmoid,
    "Sin": elementwise.sin,
    "Slice": movements.slice_,
    "Softmax": reductions.softmax,
    "Softplus": elementwise.softplus,
    "Split": movements.split,
    "Sqrt": elementwise.sqrt,
    "Squeeze": movements.reshape,
    "Sub": elementwise.subtract,
    "Sum": elementwise.add,
    "Tanh": elementwise.tanh,
    "Transpose": movements.transpose,
    "Unsqueeze": movements.reshape,
    "Where": elementwise.where,
}

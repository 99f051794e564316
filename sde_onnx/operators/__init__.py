"""What an image went through before it was measured: masks, gray values, smaller images, blur, others' operators."""

from sde_onnx.operators.compose import compose as compose
from sde_onnx.operators.convolution import convolve as convolve
from sde_onnx.operators.masks import box as box
from sde_onnx.operators.masks import mask as mask
from sde_onnx.operators.masks import random as random
from sde_onnx.operators.operator import Operator as Operator
from sde_onnx.operators.separable import bicubic as bicubic
from sde_onnx.operators.separable import blur as blur
from sde_onnx.operators.separable import down as down
from sde_onnx.operators.separable import gray as gray
from sde_onnx.operators.text import parse_operator as parse_operator

__all__ = ["Operator", "bicubic", "blur", "box", "compose", "convolve", "down", "gray", "mask", "parse_operator",
           "random"]

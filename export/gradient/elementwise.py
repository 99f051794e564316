"""Gradient rules of operators that act on each value alone, with broadcasting."""

from __future__ import annotations

import math

from sde_onnx.errors import GradientError
from sde_onnx.export.gradient.writer import Call, GradientWriter

__all__ = [
    "ZERO", "absolute", "add", "cast", "clip", "cos", "divide", "dropout", "erf", "exp", "gelu", "identity", "larger",
    "leaky_relu", "log", "multiply", "negate", "power", "reciprocal", "relu", "sigmoid", "sin", "smaller",
    "softplus", "sqrt", "subtract", "tanh", "where",
]

Contributions = list[str | None]   # to the cotangent of each input: ZERO, or None where there is no rule
ZERO = ""


def add(write: GradientWriter, call: Call) -> Contributions:
    """``y = a + b + ...``: g of each."""
    return [write.reduced(call.g, call, place) for place in range(len(call.inputs))]


def subtract(write: GradientWriter, call: Call) -> Contributions:
    """``y = a - b``: g and -g."""
    return [write.reduced(call.g, call, 0), write.reduced(write.add("Neg", call.g), call, 1)]


def multiply(write: GradientWriter, call: Call) -> Contributions:
    """``y = a b``: g b and g a; if b is a's sigmoid, or the reverse, g (b + y (1 - b)) and nothing.

    That is b's share for a as well, in four nodes in place of six.
    """
    a, b = call.inputs
    if a == b:
        return [write.add("Mul", call.g, a)] * 2
    for x, gate in ((a, b), (b, a)):
        if write.values.is_sigmoid_of(gate, x):
            through_gate = write.add("Mul", call.outputs[0], write.add("Sub", write.number(1, x), gate))
            contribution = write.add("Mul", call.g, write.add("Add", gate, through_gate))
            return [contribution if name == x else ZERO for name in (a, b)]
    return [write.reduced(write.add("Mul", call.g, other), call, place) for place, other in enumerate((b, a))]


def divide(write: GradientWriter, call: Call) -> Contributions:
    """``y = a / b``: g / b and -g y / b."""
    quotient = write.add("Div", call.g, call.inputs[1])
    other = write.add("Neg", write.add("Mul", quotient, call.outputs[0]))
    return [write.reduced(quotient, call, 0), write.reduced(other, call, 1)]


def power(write: GradientWriter, call: Call) -> Contributions:
    """``y = a^p`` with a p that does not depend on the input: g p a^(p - 1), and 0 where p is."""
    a, p = call.inputs
    if write.values.type_of(p) != write.values.type_of(a):   # an exponent may be whole
        p = write.cast(p, write.values.type_of(a))
    slope = write.add("Mul", p, write.add("Pow", a, write.add("Sub", p, write.number(1, a))))
    slope = write.add("Where", write.add("Equal", p, write.number(0, a)), write.number(0, a), slope)
    return [write.reduced(write.add("Mul", call.g, slope), call, 0)]


def negate(write: GradientWriter, call: Call) -> Contributions:
    """``y = -x``: -g."""
    return [write.add("Neg", call.g)]


def reciprocal(write: GradientWriter, call: Call) -> Contributions:
    """``y = 1 / x``: -g y^2."""
    y = call.outputs[0]
    return [write.add("Neg", write.add("Mul", call.g, write.add("Mul", y, y)))]


def exp(write: GradientWriter, call: Call) -> Contributions:
    """``y = e^x``: g y."""
    return [write.add("Mul", call.g, call.outputs[0])]


def log(write: GradientWriter, call: Call) -> Contributions:
    """``y = ln x``: g / x."""
    return [write.add("Div", call.g, call.inputs[0])]


def sqrt(write: GradientWriter, call: Call) -> Contributions:
    """``y = sqrt x``: g / 2 y."""
    y = call.outputs[0]
    return [write.add("Div", write.times(call.g, 0.5, y), y)]


def sin(write: GradientWriter, call: Call) -> Contributions:
    """``y = sin x``: g cos x."""
    return [write.add("Mul", call.g, write.add("Cos", call.inputs[0]))]


def cos(write: GradientWriter, call: Call) -> Contributions:
    """``y = cos x``: -g sin x."""
    return [write.add("Neg", write.add("Mul", call.g, write.add("Sin", call.inputs[0])))]


def tanh(write: GradientWriter, call: Call) -> Contributions:
    """``y = tanh x``: g (1 - y^2)."""
    y = call.outputs[0]
    return [write.add("Mul", call.g, write.add("Sub", write.number(1, y), write.add("Mul", y, y)))]


def sigmoid(write: GradientWriter, call: Call) -> Contributions:
    """``y = 1 / (1 + e^-x)``: g (y - y^2)."""
    y = call.outputs[0]
    return [write.add("Mul", call.g, write.add("Sub", y, write.add("Mul", y, y)))]


def softplus(write: GradientWriter, call: Call) -> Contributions:
    """``y = ln(1 + e^x)``: g sigmoid x."""
    return [write.add("Mul", call.g, write.add("Sigmoid", call.inputs[0]))]


def erf(write: GradientWriter, call: Call) -> Contributions:
    """``y = erf x``: g 2 / sqrt(pi) e^-x^2."""
    x = call.inputs[0]
    bell = write.add("Exp", write.add("Neg", write.add("Mul", x, x)))
    return [write.add("Mul", write.times(call.g, 2 / math.sqrt(math.pi), x), bell)]


def gelu(write: GradientWriter, call: Call) -> Contributions:
    """``y = x Phi(x)``: g (Phi + x phi), with the normal distribution's Phi(x) = (1 + erf(x / sqrt 2)) / 2.

    Raises:
        GradientError: the approximation by tanh.
    """
    if call.attributes.get("approximate", b"none") != b"none":
        raise GradientError("the rule is for approximate = 'none'")
    x = call.inputs[0]
    error = write.add("Erf", write.times(x, math.sqrt(0.5), x))
    below = write.times(write.add("Add", error, write.number(1, x)), 0.5, x)
    bell = write.add("Exp", write.times(write.add("Mul", x, x), -0.5, x))
    density = write.times(bell, 1 / math.sqrt(2 * math.pi), x)
    return [write.add("Mul", call.g, write.add("Add", below, write.add("Mul", x, density)))]


def absolute(write: GradientWriter, call: Call) -> Contributions:
    """``y = |x|``: g sign x."""
    return [write.add("Mul", call.g, write.add("Sign", call.inputs[0]))]


def relu(write: GradientWriter, call: Call) -> Contributions:
    """``y = max(x, 0)``: g where x > 0."""
    return [_where_above(write, call, write.number(0, call.inputs[0]))]


def leaky_relu(write: GradientWriter, call: Call) -> Contributions:
    """``y = x where x > 0, else alpha x``: g or alpha g."""
    return [_where_above(write, call, write.times(call.g, call.attributes.get("alpha", 0.01), call.inputs[0]))]


def _where_above(write: GradientWriter, call: Call, otherwise: str) -> str:
    x = call.inputs[0]
    return write.add("Where", write.add("Greater", x, write.number(0, x)), call.g, otherwise)


def clip(write: GradientWriter, call: Call) -> Contributions:
    """``y = min(max(x, low), high)``: g where x is within, both ends included."""
    x, y = call.inputs[0], call.outputs[0]
    return [write.add("Where", write.add("Equal", x, y), call.g, write.number(0, x))]


def larger(write: GradientWriter, call: Call) -> Contributions:
    """``y = max(a, b)``: g of the larger one; of equal ones, a."""
    return _larger_or_smaller(write, call, "GreaterOrEqual")


def smaller(write: GradientWriter, call: Call) -> Contributions:
    """``y = min(a, b)``: g of the smaller one; of equal ones, a."""
    return _larger_or_smaller(write, call, "LessOrEqual")


def where(write: GradientWriter, call: Call) -> Contributions:
    """``y = a where c, else b``: g where each was taken."""
    return [None, *_chosen(write, call, call.inputs[0], 1)]


def _larger_or_smaller(write: GradientWriter, call: Call, comparison: str) -> Contributions:
    if len(call.inputs) != 2:
        raise GradientError(f"the rule is for two inputs, there are {len(call.inputs)}")
    return _chosen(write, call, write.add(comparison, *call.inputs), 0)


def _chosen(write: GradientWriter, call: Call, first: str, place: int) -> Contributions:
    """The contributions to an input and to the next one, of which the first was taken where ``first`` is true."""
    zero = write.number(0, call.outputs[0])
    parts = write.add("Where", first, call.g, zero), write.add("Where", first, zero, call.g)
    return [write.reduced(part, call, index) for index, part in enumerate(parts, place)]


def identity(write: GradientWriter, call: Call) -> Contributions:
    """``y = x``: g."""
    return [call.g]


def dropout(write: GradientWriter, call: Call) -> Contributions:
    """``y = x``, for a dropout is off: g; ``GradientError`` if it is on."""
    if len(call.inputs) > 2 and call.inputs[2] and write.values.constant(call.inputs[2]).any():
        raise GradientError("the rule is for a network that is not being trained")
    return [call.g]


def cast(write: GradientWriter, call: Call) -> Contributions:
    """``y = x`` in another floating-point type: g in x's type."""
    return [write.cast(call.g, write.values.type_of(call.inputs[0]))]

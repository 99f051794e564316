"""The gradient file of a model file: beside the score it gives the score's vector-Jacobian product.

It is a file of its own, since ONNX Runtime computes every output of a graph, whichever is asked for.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError

from sde_onnx.checks import checked_choice
from sde_onnx.errors import ForeignFileError, GradientError, ModelFileError, ParityError, first_line
from sde_onnx.export.gradient.reference import Reference
from sde_onnx.export.gradient.reverse import add_gradient
from sde_onnx.export.rewrites.winograd import use_winograd
from sde_onnx.export.to_onnx import check_model_output, cpu_session, parity_cases, relative_error, without_target
from sde_onnx.files import regular, replacing
from sde_onnx.runtime.endings import ending
from sde_onnx.runtime.load import read_metadata
from sde_onnx.runtime.metadata import KEY, ModelMetadata
from sde_onnx.runtime.providers import ORT_ERRORS
from sde_onnx.runtime.score_model import COTANGENT, GRADIENT, makes_gradient

__all__ = ["TOLERANCE", "export_gradient", "export_gradient_of_graph"]

GRADIENT_TARGETS = ("any", "cpu")   # for cuda, rules are missing
TOLERANCE = 1e-5            # of the product, relative to torch's reverse mode in float32
LARGEST_BATCHED = 1 << 16   # values of an image that is also checked three at a time: torch keeps all activations


def export_gradient(source: Path, path: Path, *, target: str = "any", force: bool = False) -> ModelMetadata:
    """Writes a file ``(x, sigma, v) -> (score, vjp)``, and the input ``label`` where the model file has it.

    Args:
        source: a model file, of target ``"any"``.
        path: the new ``.onnx`` file.
        target: ``"any"``, or ``"cpu"``: see :func:`sde_onnx.export.to_onnx.export`.
        force: whether an existing file may be replaced.

    Returns:
        The file's metadata, the parity of ``vjp`` with torch's reverse mode among it.

    Raises:
        ModelFileError: the source is not a model file, has a gradient already, or was exported for one provider.
        GradientError: an operator without a rule.
        InputError: a target that there is not.
        OutputError: the file exists, cannot be written, or does not end in ``.onnx``.
        ParityError: a product differs by more than TOLERANCE; nothing is written.
    """
    checked_choice("target", target, GRADIENT_TARGETS)
    check_model_output(path, force=force, inputs=[source])
    try:
        metadata = read_metadata(source)
    except ForeignFileError:
        raise ForeignFileError(f"{source} is no model file of sde-onnx: name the output and the input of such a graph, "
                               "--of OUTPUT --at INPUT") from None
    if metadata.gradient:
        raise ModelFileError(f"{source} has a gradient already")
    if metadata.target != "any":
        raise ModelFileError(f"{source} was exported for {metadata.target}, a gradient is made of what was not: "
                             f"`{makes_gradient(source, metadata.target)}` makes both")
    plain, model = onnx.load(source), onnx.load(source)
    add_gradient(model, "score", "x", cotangent=COTANGENT, result=GRADIENT)
    kept = _kept(plain, model)
    if target == "cpu":
        use_winograd(model)
    onnx.checker.check_model(model)
    session = cpu_session(model)
    batches = (1, 3) if math.prod(metadata.image_shape) <= LARGEST_BATCHED else (1,)
    generator = np.random.default_rng(0)
    reference = Reference(plain, "score", "x", dtype=torch.float32)   # in which the phases of sigma are, too
    parity = {}
    for case, inputs in parity_cases(metadata.image_shape, metadata.schedule, metadata.labels, batches=batches):
        v = generator.standard_normal(inputs["x"].shape, np.float32)
        expected = reference.vjp(inputs, v)
        with ending() as options:
            got, = session.run([GRADIENT], {**inputs, COTANGENT: v}, options)
        parity[f"vjp {case}"] = error = relative_error(got, expected)
        if not error <= TOLERANCE:
            raise ParityError(f"the gradient differs from torch's by {error:.2e} relative at {case}, above "
                              f"{TOLERANCE:.0e}; {path} was not written{without_target(target)}")
    metadata = dataclasses.replace(metadata, gradient=True, target=target, parity={**metadata.parity, **parity},
                                   architecture={**metadata.architecture, "kept": kept})
    onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return metadata


def _kept(plain: onnx.ModelProto, model: onnx.ModelProto) -> int:
    """Values of an image that the score's own nodes make and the product's read: they are held until then."""
    own = {name for node in plain.graph.node for name in node.output}
    added = (node for node in model.graph.node if not own.issuperset(node.output))
    read = {name for node in added for name in node.input} & own
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    shapes = {item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in inferred}
    return sum(math.prod(size for size in shapes[name] if size) for name in read if shapes.get(name))   # N has no size


def export_gradient_of_graph(source: Path, path: Path, of: str, at: str, *, force: bool = False) -> None:
    """Writes any ONNX file with an input ``v`` and an output ``vjp`` more: see :func:`add_gradient`.

    Args:
        source: an ONNX file.
        path: the new ``.onnx`` file; weights that the source keeps outside come into it.
        of, at: names of an output and an input.
        force: whether an existing file may be replaced.

    Raises:
        ModelFileError: the source is not an ONNX file, one of ours, or passes 1 GB.
        GradientError: see :func:`add_gradient`; or ONNX Runtime runs the source and not what was made of it.
        OutputError: the file exists, cannot be written, or does not end in ``.onnx``.
    """
    check_model_output(path, force=force, inputs=[source])
    try:
        model = onnx.load(regular(source))
        if model.ByteSize() >= 2**30:   # the gradient comes to it, and one file holds 2 GB
            raise ModelFileError(f"{source} passes 1 GB: its gradient must fit into one ONNX file, of 2 GB at most")
        onnx.checker.check_model(model)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise ModelFileError(f"{source} is not an ONNX file that can be read ({first_line(error)})") from None
    if any(item.key == KEY for item in model.metadata_props):
        raise ModelFileError(f"{source} is a file of sde-onnx: leave out --of and --at")
    add_gradient(model, of, at)
    if (reason := _refusal(model)) is not None and _refusal(onnx.load(source)) is None:
        raise GradientError(f"ONNX Runtime runs {source}, but not its gradient ({reason})")
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _refusal(model: onnx.ModelProto) -> str | None:
    """Why ONNX Runtime's CPU provider does not load a model, if it does not."""
    try:
        cpu_session(model)
    except ORT_ERRORS as error:
        return first_line(error)
    return None

"""Torch modules to graphs of ONNX."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import onnx
import torch
from torch import nn

__all__ = ["IR_VERSION", "OPSET", "trace"]

# From opset 21 on, ONNX Runtime expands GroupNormalization into some 25 nodes a norm.
OPSET = 20
# That of opset 20. ONNX Runtime 1.17 reads none that is newer.
IR_VERSION = 9


def trace(
    module: nn.Module, arguments: tuple[Any, ...], *, inputs: Sequence[str], outputs: Sequence[str],
    dynamic_shapes: dict[str, Any],
) -> onnx.ModelProto:
    """Traces a module.

    Args:
        module: what to trace.
        arguments: example inputs, nested as ``forward`` takes them. Sizes that are free must not be 1, which would be
            taken for a constant, nor must two of them be one tensor.
        inputs, outputs: names, flat.
        dynamic_shapes: the free sizes, see :func:`torch.export.export`.
    """
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module, arguments, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs,
            dynamic_shapes=dynamic_shapes, verbose=False,
        )
    assert program is not None
    model = program.model_proto   # made anew each time it is asked for
    model.ir_version = IR_VERSION
    _strip(model)
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Removes what the exporter notes for its own debugging: stack traces with paths, a copy of each name."""
    model.doc_string = ""
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    for element in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.graph.input,
                    *model.graph.output, *model.functions):
        element.doc_string = ""
        del element.metadata_props[:]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's notes on its own internals off the terminal; errors still raise."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)   # of a failure torch logs, and prints, the graph so far
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

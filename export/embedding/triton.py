"""A sampler file as a model repository of the Triton Inference Server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from sde_onnx.export.embedding.measurement import measured_inputs
from sde_onnx.files import check_writable, replacing
from sde_onnx.runtime.metadata import ModelMetadata

__all__ = ["check_repository", "write_repository"]

# A request of one seed may wait this long for others to share its batch; the images do not depend on it.
QUEUE_MICROSECONDS = 2000


def write_repository(
    sampler: Path, folder: str | os.PathLike[str], metadata: ModelMetadata, *, name: str, max_batch_size: int,
    operator: str | None = None, force: bool = False,
) -> Path:
    """Writes ``FOLDER/NAME/config.pbtxt``, whose path is returned, and ``FOLDER/NAME/1/model.onnx``.

    Args:
        sampler: a sampler file of :func:`sde_onnx.export.embedding.loop.embed`.
        folder: the model repository; it may hold other models.
        metadata: of the model that the sampler was made of.
        name: of the model in the repository.
        max_batch_size: images that the server may sample together, >= 1.
        operator: that the sampler was made for, if any.
        force: whether an existing model of that name may be replaced.

    Raises:
        OutputError: the model exists, or cannot be written.
    """
    config, graph = check_repository(folder, name=name, force=force)
    with replacing(graph) as temporary:
        shutil.copyfile(sampler, temporary)
    with replacing(config) as temporary:
        temporary.write_text(repository_config(metadata, name=name, max_batch_size=max_batch_size,
                                               operator=operator))
    return config


def check_repository(
    folder: str | os.PathLike[str], *, name: str, force: bool = False, inputs: Iterable[Path] = ()
) -> tuple[Path, Path]:
    """The paths of a model's config and graph in a repository, refused where :func:`check_writable` refuses one."""
    model = Path(folder) / name
    paths = model / "config.pbtxt", model / "1" / "model.onnx"
    for path in paths:
        check_writable(path, force=force, inputs=inputs)
    return paths


def repository_config(
    metadata: ModelMetadata, *, name: str, max_batch_size: int, operator: str | None = None
) -> str:
    """The text of ``config.pbtxt``: a batch is what the requests of a moment add up to."""
    channels, height, width = metadata.image_shape
    # Triton adds the batch to dims, which must not be empty: a request's seed [1] goes into the graph's [N].
    numbers = [f'''
  {{
    name: "{number}"
    data_type: TYPE_INT64
    dims: [ 1 ]
    reshape: {{ shape: [ ] }}
  }}''' for number in ("seed", *(["label"] if metadata.labels else []))]
    measured = [f'''
  {{
    name: "{image}"
    data_type: TYPE_FP32
    dims: [ {", ".join(str(size if isinstance(size, int) else -1) for size in sizes)} ]
  }}''' for image, (_, *sizes) in measured_inputs(operator, metadata.image_shape).items()]
    inputs = ",".join([*numbers, *measured])
    return f'''name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {max_batch_size}
input [{inputs}
]
output [
  {{
    name: "image"
    data_type: TYPE_UINT8
    dims: [ {height}, {width}, {channels} ]
  }},
  {{
    name: "sample"
    data_type: TYPE_FP32
    dims: [ {channels}, {height}, {width} ]
  }}
]
dynamic_batching {{
  max_queue_delay_microseconds: {QUEUE_MICROSECONDS}
}}
'''

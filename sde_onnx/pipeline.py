"""diffusers' ``ScoreSdeVePipeline``, without PyTorch: the same call, the same defaults, the same pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from sde_onnx.errors import InputError
from sde_onnx.extras import require_export
from sde_onnx.generate.sample import steps_of
from sde_onnx.images import to_pil, to_uint8
from sde_onnx.runtime.score_model import ScoreModel, load
from sde_onnx.solvers.catalogue import resolve
from sde_onnx.solvers.noise import noise_source

__all__ = ["ImagePipelineOutput", "ScoreSdeVePipeline"]

ARRAY_OUTPUTS = ("np", "numpy", "np.array")


@dataclass
class ImagePipelineOutput:
    """What a pipeline call returns.

    Args:
        images: PIL images, or an array ``[N, H, W, C]`` float32 in [0, 1].
    """

    images: list[Image.Image] | NDArray[np.float32]

    def __getitem__(self, key: int | slice | str) -> Any:
        return {"images": self.images}[key] if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[list[Image.Image] | NDArray[np.float32]]:
        """The images alone, in a tuple."""
        return (self.images,)


class ScoreSdeVePipeline:
    """Unconditional sampling with the reference predictor-corrector sampler, in place of diffusers' class.

    Langevin norms are averaged over the batch, as diffusers does; :func:`sde_onnx.sample` takes each image's own.

    Args:
        model: a loaded model file.
    """

    def __init__(self, model: ScoreModel) -> None:
        self.model = model
        self._bar_options: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        provider: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> ScoreSdeVePipeline:
        """Loads a model file, or a checkpoint, which is exported on first use.

        Args:
            source: an ``.onnx`` file, a diffusers checkpoint folder, or the id of a hub model.
            provider, precision, threads: see :func:`sde_onnx.load`.
            cache_dir: where exported checkpoints are kept; ``SDE_ONNX_CACHE`` or ``~/.cache/sde-onnx`` if not given.

        Raises:
            ModelFileError, CheckpointError, ProviderError: see :func:`sde_onnx.load` and ``sde-onnx export``.
            MissingExtraError: a checkpoint, but the export extra is not installed.
        """
        path = Path(source)
        if not os.path.isfile(path) and path.suffix != ".onnx":
            require_export()
            from sde_onnx.export.cache import cached_export

            path = cached_export(os.fspath(source), cache_dir)
        return cls(load(path, provider, precision=precision, threads=threads))

    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 2000,
        generator: Any = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | NDArray[np.float32]]:
        """Samples images.

        Args:
            batch_size: N, >= 1, all sampled together.
            num_inference_steps: noise levels, >= 1.
            generator: ``None`` (fresh entropy); a ``torch.Generator`` or a list of one for each image (diffusers'
                noise, in its order); a ``numpy.random.Generator``; an int (portable noise, seeds from there on) or a
                list of one for each image.
            output_type: ``"pil"``, or ``"np"`` for an array ``[N, H, W, C]`` float32 in [0, 1].
            return_dict: an :class:`ImagePipelineOutput`, or a tuple of the images.

        Raises:
            InputError: an argument out of its range.
            NonFiniteError: NaN or infinity appeared.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, expected at least 1")
        if output_type not in (None, "pil", *ARRAY_OUTPUTS):
            raise InputError(f"output_type is {output_type!r}, expected 'pil' or 'np'")
        noise = noise_source(generator, (batch_size, *self.model.metadata.image_shape))
        sampling = resolve(self.model.metadata, solver="pc", steps=num_inference_steps,
                           options={"langevin_norm": "batch"})
        steps = steps_of(self.model, noise, batch_size, sampling)
        for step in self.progress_bar(steps, total=num_inference_steps):
            x_mean = step.x_mean
        images: list[Image.Image] | NDArray[np.float32]
        if output_type == "pil":
            images = [to_pil(image) for image in to_uint8(x_mean)]
        else:
            images = np.clip(x_mean, 0, 1).transpose(0, 2, 3, 1)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def to(self, device: Any) -> ScoreSdeVePipeline:
        """Moves the model to ``"cpu"`` or ``"cuda"`` (or a ``torch.device``), as diffusers' ``to`` does.

        Precision and threads stay as they were asked for.

        Raises:
            InputError: another device.
            ProviderError: the device cannot run here.
        """
        kind, _, index = str(device).partition(":")
        if kind not in ("cpu", "cuda") or index not in ("", "0"):
            raise InputError(f"device is {str(device)!r}, expected 'cpu' or 'cuda'")
        self.model = self.model.under(kind)
        return self

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """A tqdm bar with the options of :meth:`set_progress_bar_config`."""
        return tqdm(iterable, **{"total": total, **self._bar_options})

    def set_progress_bar_config(self, **options: Any) -> None:
        """Sets tqdm's options, such as ``disable=True``, for the calls to come."""
        self._bar_options = options

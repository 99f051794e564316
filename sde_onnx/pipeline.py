"""diffusers' ``ScoreSdeVePipeline``, without PyTorch: the same call, the same defaults, the same pictures."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sde_onnx.checks import checked_count, checked_path
from sde_onnx.errors import InputError, OutputError
from sde_onnx.extras import require_diffusers, require_export
from sde_onnx.files import replacing
from sde_onnx.generate.sample import steps_of
from sde_onnx.images import to_pil, to_uint8
from sde_onnx.progress import tqdm
from sde_onnx.runtime.load import load
from sde_onnx.runtime.metadata import ModelMetadata
from sde_onnx.runtime.score_model import ScoreModel, is_tensor
from sde_onnx.solvers.catalogue import resolve
from sde_onnx.solvers.noise import noise_source

__all__ = ["ImagePipelineOutput", "ScoreSdeVePipeline"]

ARRAY_OUTPUTS = ("np", "numpy", "np.array")
MODEL_NAME = "model.onnx"   # of a folder that save_pretrained wrote of a model file
HALVES = ("float16", "bfloat16")
PROVIDERS_OF = {"cpu": ("cpu", "openvino"), "cuda": ("cuda", "tensorrt")}   # that run on torch's devices


@dataclass
class ImagePipelineOutput:
    """What a pipeline call returns.

    Args:
        images: PIL images, or an array ``[N, H, W, C]`` float32 in [0, 1].
    """

    images: list[Image.Image] | NDArray[np.float32] | Any

    def __getitem__(self, key: int | slice | str) -> Any:
        return {"images": self.images}[key] if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any]:
        """The images alone, in a tuple."""
        return (self.images,)


class _Config(dict[str, Any]):
    """A config that is read by key or by attribute, as diffusers' are."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"the config has no {name!r}")
        return self[name]


class _Unet:
    """The pipeline's network, called as diffusers' ``UNet2DModel`` is."""

    def __init__(self, pipeline: ScoreSdeVePipeline, config: Mapping[str, Any]) -> None:
        self._pipeline = pipeline
        self.config = _Config(config)

    def __call__(self, sample: Any, timestep: Any, class_labels: Any = None, return_dict: bool = True) -> Any:
        """Returns the score as ``.sample``, or in a tuple; ``timestep`` is sigma, one or one for each image."""
        if is_tensor(sample):
            torch = sys.modules["torch"]
            sigma = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))
        else:
            sigma = np.ascontiguousarray(np.broadcast_to(np.asarray(timestep, np.float32), (len(sample),)))
        label = None if class_labels is None else np.asarray(class_labels)
        score = self._pipeline.model(sample, sigma, label)
        return SimpleNamespace(sample=score) if return_dict else (score,)

    @property
    def dtype(self) -> Any:
        """Of inputs and outputs."""
        return self._pipeline.dtype

    @property
    def device(self) -> Any:
        """Where it runs."""
        return self._pipeline.device


class ScoreSdeVePipeline:
    """Unconditional sampling with the reference predictor-corrector sampler, in place of diffusers' class.

    Langevin norms are averaged over the batch, as diffusers does; :func:`sde_onnx.sample` takes each image's own.

    Args:
        unet: a loaded model file; or diffusers' ``UNet2DModel``, which is exported, once for the same weights.
        scheduler: diffusers' ``ScoreSdeVeScheduler``, beside its ``UNet2DModel``.
        provider, precision, threads: see :func:`sde_onnx.load`; of a UNet2DModel.
        cache_dir: where the exported network is kept; ``SDE_ONNX_CACHE`` or ``~/.cache/sde-onnx`` if not given.

    Raises:
        InputError: neither of both.
        CheckpointError: a network that cannot be sampled.
    """

    def __init__(
        self, unet: Any, scheduler: Any = None, *, provider: str = "auto", precision: str | None = None,
        threads: int | None = None, cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._bar_options: dict[str, Any] = {}
        self._source: Path | None = None          # the checkpoint folder that it was loaded from
        self._objects: tuple[Any, Any] | None = None   # diffusers' own
        if isinstance(unet, ScoreModel):
            self.model = unet
            self.unet, self.scheduler = _Unet(self, _unet_config(unet.metadata)), _scheduler_of(unet.metadata)
            return
        if not hasattr(unet, "state_dict") or not hasattr(scheduler, "config"):
            raise InputError(f"unet is {type(unet).__name__} and scheduler {type(scheduler).__name__}, expected a "
                             "loaded model, or diffusers' UNet2DModel and ScoreSdeVeScheduler")
        require_export()
        from sde_onnx.export.cache import cached_export_of_objects

        self.model = load(cached_export_of_objects(unet, scheduler, cache_dir), provider, precision=precision,
                          threads=threads)
        self._objects = unet, scheduler
        self.unet, self.scheduler = _Unet(self, unet.config), scheduler

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        provider: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        torch_dtype: Any = None,
        use_safetensors: bool | None = None,
        variant: str | None = None,
        **hub: Any,
    ) -> ScoreSdeVePipeline:
        """Loads a model file, or a checkpoint, which is exported on first use.

        Args:
            source: an ``.onnx`` file, a diffusers checkpoint folder, or the id of a hub model.
            provider, precision, threads: see :func:`sde_onnx.load`.
            cache_dir: where downloads and exported checkpoints are kept; if not given the hub's own cache, and
                ``SDE_ONNX_CACHE`` or ``~/.cache/sde-onnx``.
            torch_dtype: float32, in which scores are answered always.
            use_safetensors, variant: which file of weights, as in diffusers.
            hub: ``revision`` and ``local_files_only``, as in diffusers.

        Raises:
            InputError: an unknown keyword, or another ``torch_dtype``.
            ModelFileError, CheckpointError, ProviderError: see :func:`sde_onnx.load` and ``sde-onnx export``.
            MissingExtraError: a checkpoint, but the export extra is not installed.
        """
        if unknown := set(hub) - {"revision", "local_files_only"}:
            raise InputError(f"from_pretrained takes no {', '.join(sorted(unknown))}")
        _check_dtype(torch_dtype)
        path = checked_path("source", source)
        if (path / MODEL_NAME).is_file():
            path = path / MODEL_NAME
        folder = path if os.path.isdir(path) else None
        if not os.path.isfile(path) and path.suffix != ".onnx":
            require_export()
            from sde_onnx.export.cache import cached_export

            where = {"use_safetensors": use_safetensors, "variant": variant, "cache_dir": cache_dir, **hub}
            path = cached_export(os.fspath(source), **where)
        pipeline = cls(load(path, provider, precision=precision, threads=threads))
        pipeline._source = folder
        return pipeline

    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 2000,
        generator: Any = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        **ignored: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Samples images.

        Args:
            batch_size: N, >= 1, all sampled together.
            num_inference_steps: from one noise level to the next, >= 1.
            generator: ``None`` (fresh entropy); a ``torch.Generator`` or a list of one for each image (diffusers'
                noise, in its order); a ``numpy.random.Generator``; an int (portable noise, seeds from there on) or a
                list of one for each image.
            output_type: ``"pil"``; ``"np"`` for an array ``[N, H, W, C]`` float32 in [0, 1]; ``"pt"`` for a torch
                tensor ``[N, C, H, W]``.
            return_dict: an :class:`ImagePipelineOutput`, or a tuple of the images.
            ignored: other keywords, which diffusers' pipeline ignores too.

        Raises:
            InputError: an argument out of its range.
            NonFiniteError: NaN or infinity appeared.
        """
        checked_count("batch_size", batch_size, least=1)
        if output_type not in (None, "pil", "pt", *ARRAY_OUTPUTS):
            raise InputError(f"output_type is {output_type!r}, expected 'pil', 'np' or 'pt'")
        noise = noise_source(generator, (batch_size, *self.model.metadata.image_shape))
        sampling = resolve(self.model.metadata, solver="pc", steps=num_inference_steps,
                           options={"langevin_norm": "batch"})
        steps = steps_of(self.model, noise, batch_size, sampling)
        for step in self.progress_bar(steps, total=num_inference_steps):
            x_mean = step.x_mean
        images: Any = np.clip(x_mean, 0, 1)
        if output_type == "pil":
            images = [to_pil(image) for image in to_uint8(x_mean)]
        elif output_type == "pt":
            images = _torch().from_numpy(images)
        else:
            images = images.transpose(0, 2, 3, 1)
        return ImagePipelineOutput(images) if return_dict else (images,)

    def to(self, *places: Any, device: Any = None, dtype: Any = None) -> ScoreSdeVePipeline:
        """Moves the model to ``"cpu"`` or ``"cuda"`` (or a ``torch.device``), as diffusers' ``to`` does.

        Precision and threads stay as they were asked for. A dtype may be named if it is float32.

        Raises:
            InputError: another device or dtype.
            ProviderError: the device cannot run here.
        """
        for place in (*places, device, dtype):
            if place is None:
                continue
            if "float" in str(place):
                _check_dtype(place)
                continue
            kind, _, index = str(place).partition(":")
            if kind not in ("cpu", "cuda") or index not in ("", "0"):
                raise InputError(f"device is {str(place)!r}, expected 'cpu' or 'cuda'")
            if self.model.provider not in PROVIDERS_OF[kind]:   # what runs there already stays
                self.model = self.model.under(kind)
        return self

    @property
    def device(self) -> Any:
        """Where the model runs: a ``torch.device`` where torch was imported, else its name."""
        kind = "cuda" if self.model.provider in PROVIDERS_OF["cuda"] else "cpu"
        return sys.modules["torch"].device(kind) if "torch" in sys.modules else kind

    @property
    def dtype(self) -> Any:
        """Of inputs and outputs: ``torch.float32`` where torch was imported, else its name."""
        return sys.modules["torch"].float32 if "torch" in sys.modules else "float32"

    @property
    def components(self) -> dict[str, Any]:
        """The parts by the names that the constructor takes."""
        return {"unet": self.unet, "scheduler": self.scheduler}

    @property
    def config(self) -> Mapping[str, Any]:
        """The library and class of each part, as diffusers names them."""
        return _Config(unet=("diffusers", "UNet2DModel"), scheduler=("diffusers", "ScoreSdeVeScheduler"))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes a folder that ``from_pretrained`` reads, and diffusers' too where this was made of its checkpoint.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = checked_path("save_directory", save_directory)
        try:
            if self._objects is not None:
                require_diffusers()
                import diffusers

                unet, scheduler = self._objects
                pipeline_class: Any = diffusers.ScoreSdeVePipeline   # diffusers has no types
                pipeline_class(unet=unet, scheduler=scheduler).save_pretrained(folder)
            elif self._source is not None:
                shutil.copytree(self._source, folder, dirs_exist_ok=True, copy_function=_copied)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                _copied(self.model.path, folder / MODEL_NAME)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error

    @staticmethod
    def numpy_to_pil(images: NDArray[np.float32]) -> list[Image.Image]:
        """Arrays ``[N, H, W, C]`` or ``[H, W, C]`` in [0, 1] as pictures."""
        several = images[None] if images.ndim == 3 else images
        return [to_pil(image) for image in to_uint8(several.transpose(0, 3, 1, 2))]

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """A tqdm bar with the options of :meth:`set_progress_bar_config`."""
        return tqdm(iterable, **{"total": total, **self._bar_options})

    def set_progress_bar_config(self, **options: Any) -> None:
        """Sets tqdm's options, such as ``disable=True``, for the calls to come."""
        self._bar_options = options


def _copied(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copies a file, whole or not at all; one onto itself is left as it is."""
    if Path(target).exists() and Path(target).samefile(source):
        return
    with replacing(Path(target)) as temporary:
        shutil.copyfile(source, temporary)


def _unet_config(metadata: ModelMetadata) -> dict[str, Any]:
    """What callers ask of a UNet2DModel's config."""
    channels, height, width = metadata.image_shape
    return {"sample_size": height if height == width else (height, width), "in_channels": channels,
            "out_channels": channels, "num_class_embeds": metadata.labels or None, **metadata.architecture}


def _scheduler_of(metadata: ModelMetadata) -> Any:
    """The schedule by diffusers' names."""
    schedule = metadata.schedule
    return SimpleNamespace(config=_Config(
        num_train_timesteps=schedule.num_scales, snr=metadata.snr, sigma_min=schedule.sigma_min,
        sigma_max=schedule.sigma_max, sampling_eps=schedule.sampling_eps, correct_steps=metadata.n_corrector,
    ), init_noise_sigma=schedule.sigma_max)


def _check_dtype(dtype: Any) -> None:
    """Refuses what inputs and outputs never are; ``InputError``."""
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in ("float32", "auto"):
        mend = ": export a file of that precision, whose inputs and outputs stay float32" if name in HALVES else ""
        raise InputError(f"dtype is {dtype}, expected float32{mend}")


def _torch() -> Any:
    """torch, which a caller who asks for its tensors has."""
    from importlib import import_module

    return import_module("torch")

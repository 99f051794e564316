"""What gpu.py times: whole predictor-corrector steps of diffusers in PyTorch, of a plain export, and of ours.

Each is made inside a process of its own (timing.py). PyTorch's steps are those of diffusers' scheduler; ours are those
of `sde-onnx sample`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sde_onnx

from timing import Subject

__all__ = ["ORACLE", "REFERENCE", "PlainExport", "subjects"]

ORACLE = "diffusers eager fp32, no TF32"
REFERENCE = "diffusers eager fp32"   # with TensorFloat-32, as PyTorch is mostly run
COMPILE_LIMIT = 420.0
PROFILED_STEPS = 10
LEAST_STEPS, MOST_STEPS = 50, 900   # of a sample, on a GPU: schedules have 1,000 steps at least
EVALUATIONS = 20                    # that are timed alone
Array = NDArray[np.float32]


class Steps(ABC):
    """What the timing core asks of a subject: scores, the time of steps, and what only this subject can tell."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.used_before = self.used_mb()
        self.held_mb: float | None = None

    @abstractmethod
    def __call__(self, x: Array, sigma: Array) -> Array:
        """The score."""

    @abstractmethod
    def steps(self, batch: int) -> Iterator[None]:
        """Makes a step of a schedule of the model's own length at each turn."""

    @abstractmethod
    def evaluate_often(self, batch: int, count: int) -> None:
        """Evaluates the network so many times, its inputs where it wants them."""

    def time(self, x: Array, sigma: Array, count: int) -> float:
        made = min(max(count, LEAST_STEPS), MOST_STEPS) if self.device == "cuda" else count
        steps = self.steps(len(x))
        next(steps)
        seconds = self.seconds_of(lambda: self.make(steps, made)) * count / made
        if self.held_mb is None and self.used_before is not None:   # no other subject has been loaded since
            self.held_mb = (self.used_mb() or 0) - self.used_before
        return seconds

    @staticmethod
    def make(steps: Iterator[None], count: int) -> None:
        for _ in range(count):
            next(steps)

    def seconds_of(self, work: Callable[[], None]) -> float:
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def evaluation_seconds(self, batch: int) -> float:
        """Of one evaluation, without a loop around it."""
        count = EVALUATIONS if self.device == "cuda" else 1
        self.evaluate_often(batch, 1)
        return self.seconds_of(lambda: self.evaluate_often(batch, count)) / count

    def synchronize(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def used_mb(self) -> float | None:
        """Memory of the device that is in use, by whomever."""
        import torch

        if self.device != "cuda":
            return None
        free, total = torch.cuda.mem_get_info()
        return float(total - free) / 2**20

    def peak_mb(self, reset: bool) -> float | None:
        """What this subject has taken of it; runtimes keep what they have once taken."""
        return self.held_mb

    def idle_share(self, batch: int) -> float | None:
        """The part of a run in which no kernel runs."""
        import torch

        if self.device != "cuda":
            return None
        steps = self.steps(batch)
        self.make(steps, PROFILED_STEPS)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self.make(steps, PROFILED_STEPS)
            torch.cuda.synchronize()
        spans = sorted((event.time_range.start, event.time_range.end) for event in profile.events()
                       if event.device_type == torch.autograd.DeviceType.CUDA)
        busy, until = 0.0, spans[0][0]
        for start, end in spans:
            busy += max(0.0, end - max(start, until))
            until = max(until, end)
        return 1 - busy / (until - spans[0][0])


class InTorch(Steps):
    """diffusers' module and scheduler.

    Args:
        checkpoint: the pipeline's folder.
        device: torch's.
        dtype: of autocast, or ``None``.
        tf32: whether float32 convolutions and products may be TensorFloat-32.
        compiled: through torch.compile with max-autotune.
    """

    def __init__(self, checkpoint: str, device: str, dtype: str | None = None, tf32: bool = True,
                 compiled: bool = False) -> None:
        import torch
        from diffusers import ScoreSdeVeScheduler, UNet2DModel

        super().__init__(device)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        self.torch = torch
        unet = UNet2DModel.from_pretrained(f"{checkpoint}/unet", low_cpu_mem_usage=False).eval().to(device)
        self.unet: Any = unet.to(memory_format=torch.channels_last)
        self.shape = (unet.config.in_channels, *2 * [unet.config.sample_size])
        self.network = torch.compile(self.unet, mode="max-autotune") if compiled else self.unet
        self.dtype = getattr(torch, dtype) if dtype else None
        self.scheduler = ScoreSdeVeScheduler.from_pretrained(f"{checkpoint}/scheduler")
        self.scheduler.set_timesteps(self.scheduler.config.num_train_timesteps, device=device)
        self.scheduler.set_sigmas(self.scheduler.config.num_train_timesteps)

    def evaluate(self, x: Any, sigma: Any) -> Any:
        with self.torch.no_grad(), self.torch.autocast(self.device, self.dtype, enabled=self.dtype is not None):
            return self.network(x, sigma).sample.float()

    def __call__(self, x: Array, sigma: Array) -> Array:
        tensors = (self.torch.from_numpy(value).to(self.device) for value in (x, sigma))
        score: Array = self.evaluate(*tensors).cpu().contiguous().numpy()
        return score

    def steps(self, batch: int) -> Iterator[None]:
        scheduler = self.scheduler
        x = self.images(batch) * scheduler.init_noise_sigma
        for index, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[index] * self.torch.ones(batch, device=self.device)
            x = scheduler.step_correct(self.evaluate(x, sigma), x).prev_sample
            x = scheduler.step_pred(self.evaluate(x, sigma), t, x).prev_sample
            yield

    def evaluate_often(self, batch: int, count: int) -> None:
        x, sigma = self.images(batch), self.torch.ones(batch, device=self.device)
        for _ in range(count):
            self.evaluate(x, sigma)

    def images(self, batch: int) -> Any:
        x = self.torch.randn(batch, *self.shape, device=self.device)
        return x.to(memory_format=self.torch.channels_last)


class PlainExport(InTorch):
    """What ``torch.onnx.export`` makes of diffusers' module, under the CUDA provider, in diffusers' loop."""

    def __init__(self, checkpoint: str, device: str, path: str) -> None:
        super().__init__(checkpoint, device)
        import onnxruntime as ort

        del self.unet, self.network
        providers = ["CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"]
        self.session = ort.InferenceSession(path, providers=providers, enable_fallback=0)
        if self.session.get_providers()[0] != providers[0]:
            raise RuntimeError(f"ONNX Runtime left {providers[0]} out: the plain export would run on the CPU")
        self.names = [item.name for item in self.session.get_inputs()], self.session.get_outputs()[0].name

    def evaluate(self, x: Any, sigma: Any) -> Any:
        binding, score = self.session.io_binding(), self.torch.empty(x.shape, device=x.device)
        for name, value in zip(self.names[0], (x.contiguous(), sigma), strict=True):
            binding.bind_input(name, self.device, 0, np.float32, tuple(value.shape), value.data_ptr())
        binding.bind_output(self.names[1], self.device, 0, np.float32, tuple(score.shape), score.data_ptr())
        self.synchronize()
        self.session.run_with_iobinding(binding)
        return score


class Ours(Steps):
    """A file for CUDA, in the loop on the device; on the CPU its emulation."""

    def __init__(self, path: str, device: str, precision: str) -> None:
        import torch   # noqa: F401, I001  # its libraries of CUDA are those that ONNX Runtime finds

        super().__init__(device)
        self.path = Path(path)
        if device == "cuda":
            self.model = sde_onnx.load(path, "cuda", precision=precision)
        else:
            self.model = _on_the_cpu(self.path)

    def __call__(self, x: Array, sigma: Array) -> Array:
        score: Array = self.model(x, sigma)
        return score

    def steps(self, batch: int) -> Iterator[None]:
        [chunk] = sde_onnx.sample_batches(self.model, range(batch), solver="pc", batch_size=batch)
        for _ in chunk.steps:
            yield

    def evaluate_often(self, batch: int, count: int) -> None:
        import torch

        x = torch.randn(batch, *self.model.metadata.image_shape, device=self.device)
        sigma = torch.ones(batch, device=self.device)
        for _ in range(count):
            self.model(x, sigma)


def _on_the_cpu(path: Path) -> sde_onnx.ScoreModel:
    import onnx

    from sde_onnx.export.rewrites.emulation import emulated
    from sde_onnx.runtime import load as loading

    onnx.save(emulated(onnx.load(path)), path.with_suffix(".emulated.onnx"))
    loading.choose_provider = lambda name, precision="fp32": "cpu"
    return sde_onnx.load(path.with_suffix(".emulated.onnx"))


def subjects(folder: Path, batch: int, device: str) -> list[Subject]:
    checkpoint = str(folder / "checkpoint")
    chosen = [
        Subject(ORACLE, InTorch, (checkpoint, device, None, False)),
        Subject(REFERENCE, InTorch, (checkpoint, device)),
        Subject("diffusers eager fp16", InTorch, (checkpoint, device, "float16")),
        Subject("diffusers eager bf16", InTorch, (checkpoint, device, "bfloat16")),
        Subject("torch.compile fp32", InTorch, (checkpoint, device, None, True, True), COMPILE_LIMIT),
        Subject("torch.compile fp16", InTorch, (checkpoint, device, "float16", True, True), COMPILE_LIMIT),
        Subject("torch.onnx.export, ONNX Runtime", PlainExport,
                (checkpoint, device, str(folder / f"plain{batch}.onnx"))),
        Subject("sde-onnx fp32", Ours, (str(folder / "cuda-fp32.onnx"), device, "fp32")),
        Subject("sde-onnx tf32", Ours, (str(folder / "cuda-fp32.onnx"), device, "tf32")),
        Subject("sde-onnx fp16", Ours, (str(folder / "cuda-fp16.onnx"), device, "fp16")),
        Subject("sde-onnx mixed", Ours, (str(folder / "cuda-mixed.onnx"), device, "mixed")),
    ]
    # On the CPU there is nothing to compile for, nor a half precision that all of torch has.
    return chosen if device == "cuda" else [item for item in chosen if not {"float16", True} & {*item.arguments[2:]}]

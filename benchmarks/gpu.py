"""Times full predictor-corrector steps on an NVIDIA GPU: diffusers in PyTorch, torch.compile, a plain export, ours.

    python benchmarks/gpu.py --output benchmarks/results/cuda.json

Every subject makes whole steps with its own loop: two evaluations, noise, norms, updates; PyTorch's as diffusers'
scheduler makes them, ours as `sde-onnx sample` does. Subjects take turns, each in a process of its own (timing.py), and
clocks are read with the device idle. Beside the speed stand the relative error of the score against float32 without
TensorFloat-32, the share of a run in which the device does nothing (from the times of all kernels, as CUPTI tells), and
the device's memory. With --resume comparisons that the output has are not run again.

--device cpu runs the same with kernels emulated, to try the script where no GPU is; nothing it says is a result.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sde_onnx

from environment import environment
from evaluations import inputs, make_once, prepare, stamp_of_exports
from timing import Subject, compare, ratio

ORACLE = "diffusers eager fp32, no TF32"
REFERENCE = "diffusers eager fp32"   # with TensorFloat-32, as PyTorch is mostly run
BATCHES = {"digits": (16,), "32": (1, 4, 16), "256": (1, 4, 16), "1024": (1,)}
COMPILE_LIMIT = 420.0
PROFILED_STEPS = 10
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
    def run(self, batch: int, steps: int) -> None:
        """Makes so many steps of a schedule of the model's own length."""

    def time(self, x: Array, sigma: Array, count: int) -> float:
        self.synchronize()
        start = time.perf_counter()
        self.run(len(x), count)
        self.synchronize()
        seconds = time.perf_counter() - start
        if self.held_mb is None and self.used_before is not None:   # no other subject has been loaded since
            self.held_mb = (self.used_mb() or 0) - self.used_before
        return seconds

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
        self.run(batch, PROFILED_STEPS)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self.run(batch, PROFILED_STEPS)
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

    def run(self, batch: int, steps: int) -> None:
        scheduler = self.scheduler
        x = self.torch.randn(batch, *self.shape, device=self.device) * scheduler.init_noise_sigma
        x = x.to(memory_format=self.torch.channels_last)
        for index, t in enumerate(scheduler.timesteps[:steps]):
            sigma = scheduler.sigmas[index] * self.torch.ones(batch, device=self.device)
            x = scheduler.step_correct(self.evaluate(x, sigma), x).prev_sample
            x = scheduler.step_pred(self.evaluate(x, sigma), t, x).prev_sample


class PlainExport(InTorch):
    """What ``torch.onnx.export`` makes of diffusers' module, under the CUDA provider, in diffusers' loop."""

    def __init__(self, checkpoint: str, device: str, path: str) -> None:
        super().__init__(checkpoint, device)
        import onnxruntime as ort

        del self.unet, self.network
        providers = ["CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"]
        self.session = ort.InferenceSession(path, providers=providers, enable_fallback=0)
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

    def run(self, batch: int, steps: int) -> None:
        [chunk] = sde_onnx.sample_batches(self.model, range(batch), solver="pc", batch_size=batch)
        for step in chunk.steps:
            if step.index + 1 == steps:
                break


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
    ]
    # On the CPU there is nothing to compile for, nor a half precision that all of torch has.
    return chosen if device == "cuda" else [item for item in chosen if not {"float16", True} & {*item.arguments[2:]}]


def export_for_cuda(folder: Path) -> None:
    """Makes ``cuda-fp32.onnx`` and ``cuda-fp16.onnx`` of a prepared network's checkpoint."""
    for precision in ("fp32", "fp16"):
        make_once(folder / f"cuda-{precision}.onnx", stamp_of_exports(), _export, folder, precision)


def _export(folder: Path, precision: str) -> None:
    from sde_onnx.export import export, from_diffusers

    export(from_diffusers(str(folder / "checkpoint")), folder / f"cuda-{precision}.onnx", target="cuda",
           precision=precision, force=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--batches", nargs="+", type=int, help="these alone")
    parser.add_argument("--turns", type=int, default=5, help="samples of each subject")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--prepare", action="store_true", help="only make the files")
    parser.add_argument("--output", type=Path, help="the result as JSON")
    parser.add_argument("--resume", action="store_true", help="keep the comparisons that the output has")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.resume and arguments.output and arguments.output.exists():
        rows = json.loads(arguments.output.read_text())["rows"]
    for name in arguments.networks:
        batches = [batch for batch in BATCHES[name] if batch in (arguments.batches or BATCHES[name])]
        folder = prepare(name, batches)
        export_for_cuda(folder)
        for batch in batches if not arguments.prepare else []:
            if any((row["network"], row["batch"]) == (name, batch) for row in rows):
                continue
            rows.append(_compare(name, folder, batch, arguments))
            if arguments.output:
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def _compare(name: str, folder: Path, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    print(f"{name}, batch {batch}", flush=True)
    cases = inputs(folder, batch, np.random.default_rng(0))
    x, sigma = list(cases.values())[1]
    chosen = subjects(folder, batch, arguments.device)
    measured = compare(chosen, x, sigma, cases, reference=ORACLE, turns=arguments.turns,
                       extras={"idle_share": (batch,)}, tell=lambda line: print("   ", line, flush=True))
    num_scales = sde_onnx.read_metadata(folder / "cuda-fp32.onnx").schedule.num_scales
    found = {}
    for subject, result in measured.items():
        found[subject] = {key: value for key, value in asdict(result).items() if value == value}
        if result.failure:
            continue
        found[subject] |= {"median": result.median, "ratio": ratio(measured, subject, REFERENCE)
                           if not measured[REFERENCE].failure else None,
                           "images_per_second_1000_steps": batch / (1000 * result.median)}
        print(f"    {subject:32} {result.median * 1e3:9.2f} ms a step, error {max(result.errors.values()):.1e}, "
              f"idle {result.extras['idle_share']}", flush=True)
    return {"network": name, "batch": batch, "num_scales": num_scales, "reference": REFERENCE, "oracle": ORACLE,
            "environment": environment(_command(arguments)), "subjects": found}


def _command(arguments: argparse.Namespace) -> str:
    words = ["python benchmarks/gpu.py --networks", *arguments.networks]
    if arguments.batches:
        words += ["--batches", *map(str, arguments.batches)]
    return " ".join([*words, "--turns", str(arguments.turns), "--device", arguments.device])


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path("build/inductor").resolve()))
    main()

"""Times full predictor-corrector steps on an NVIDIA GPU: diffusers in PyTorch, torch.compile, a plain export, ours.

    python benchmarks/gpu.py --output benchmarks/results/cuda.json

Every subject makes whole steps with its own loop: two evaluations, noise, norms, updates; PyTorch's as diffusers'
scheduler makes them, ours as `sde-onnx sample` does. Subjects take turns, each in a process of its own (timing.py), and
clocks are read with the device idle, after a first step in which everything is set up. Beside the speed stand the time
of an evaluation alone, the relative error of the score against float32 without TensorFloat-32, the device's memory, and
with --idle the share of a run in which the device does nothing (from the times of all kernels, as CUPTI tells).

Few subjects are loaded at a time, so that memory suffices; the two that others are compared with are in every group. A
subject that fails is a row that says how. The output is written after each group: --resume goes on with those that it
does not have, and --seconds ends a call in time for another.

--device cpu runs the same with kernels emulated, to try the script where no GPU is; nothing it says is a result.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
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
LEAST_STEPS = 50      # of a sample, on a GPU
EVALUATIONS = 20      # that are timed alone
GROUP = 4             # subjects at a time, beside the oracle and the reference
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
        made = max(count, LEAST_STEPS) if self.device == "cuda" else count
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
    parser.add_argument("--subjects", nargs="+", help="these alone, beside the two that they are compared with")
    parser.add_argument("--idle", action="store_true", help="also profile how long the device does nothing")
    parser.add_argument("--seconds", type=float, help="begin no group after so long")
    parser.add_argument("--resume", action="store_true", help="keep the subjects that the output has")
    arguments = parser.parse_args()
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    if arguments.resume and arguments.output and arguments.output.exists():
        rows = json.loads(arguments.output.read_text())["rows"]
    for name in arguments.networks:
        batches = [batch for batch in BATCHES[name] if batch in (arguments.batches or BATCHES[name])]
        folder = prepare(name, batches)
        export_for_cuda(folder)
        for batch in batches if not arguments.prepare else []:
            known = [row for row in rows if (row["network"], row["batch"]) == (name, batch)]
            row = known[0] if known else _row(name, folder, batch, arguments)
            if not known:
                rows.append(row)
            for group in groups_of(subjects(folder, batch, arguments.device), set(row["subjects"]), arguments.subjects):
                if arguments.seconds and time.monotonic() - start > arguments.seconds:
                    raise SystemExit("stopped in time: --resume goes on")
                row["subjects"] |= _compare(row, group, inputs(folder, batch, np.random.default_rng(0)), arguments)
                if arguments.output:
                    arguments.output.parent.mkdir(parents=True, exist_ok=True)
                    arguments.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def groups_of(chosen: list[Subject], known: set[str], asked: list[str] | None) -> list[list[Subject]]:
    """Subjects that are loaded together: the oracle and the reference, and a few that are asked for and not known."""
    names = {subject.name for subject in chosen}
    if unknown := set(asked or ()) - names:
        raise SystemExit(f"no subject is named {', '.join(sorted(unknown))}: there are {', '.join(sorted(names))}")
    always = [subject for subject in chosen if subject.name in (ORACLE, REFERENCE)]
    others = [subject for subject in chosen if subject not in always and subject.name not in known
              and subject.name in (asked or names)]
    return [[*always, *others[first:first + GROUP]] for first in range(0, len(others), GROUP)]


def _row(name: str, folder: Path, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    num_scales = sde_onnx.read_metadata(folder / "model.onnx").schedule.num_scales
    return {"network": name, "batch": batch, "num_scales": num_scales, "reference": REFERENCE, "oracle": ORACLE,
            "environment": environment(_command(arguments)), "subjects": {}}


def _compare(row: dict[str, Any], chosen: list[Subject], cases: dict[str, tuple[Array, Array]],
             arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What a group's turns give, by subject; of the two that are in every group what the first has given."""
    batch = row["batch"]
    print(f"{row['network']}, batch {batch}", flush=True)
    extras: dict[str, tuple[Any, ...]] = {"evaluation_seconds": (batch,)}
    if arguments.idle:
        extras["idle_share"] = (batch,)
    x, sigma = list(cases.values())[1]
    measured = compare(chosen, x, sigma, cases, reference=ORACLE, turns=arguments.turns, extras=extras,
                       tell=lambda line: print("   ", line, flush=True))
    found = {}
    for subject, result in measured.items():
        if subject in row["subjects"]:
            continue
        found[subject] = {key: value for key, value in asdict(result).items() if value == value}
        if result.failure:
            continue
        found[subject] |= {"median": result.median, "ratio": ratio(measured, subject, REFERENCE)
                           if not measured[REFERENCE].failure else None,
                           "images_per_second_1000_steps": batch / (1000 * result.median)}
        print(f"    {subject:32} {result.median * 1e3:9.2f} ms a step, error {max(result.errors.values()):.1e}, "
              + ", ".join(f"{name} {value}" for name, value in result.extras.items()), flush=True)
    return found


def _command(arguments: argparse.Namespace) -> str:
    words = ["python benchmarks/gpu.py --networks", *arguments.networks]
    for option in ("batches", "subjects"):
        if getattr(arguments, option):
            words += [f"--{option}", *(json.dumps(value) for value in getattr(arguments, option))]
    return " ".join([*words, "--turns", str(arguments.turns), "--device", arguments.device])


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path("build/inductor").resolve()))
    main()

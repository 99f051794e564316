"""The sampling loop on a device: one launch an evaluation, and only noise goes there.

A file for CUDA holds, beside its network, the update that every plan's rows drive (``export/embedding/update.py``): the
outputs of a turn are the inputs of the next, and which numbers it takes it reads from a table that lies there too. Two
sets of buffers take turns as inputs and outputs. Under CUDA each is captured as a CUDA graph; while the device works,
the host draws the next noise arrays, and copies one into the buffer that is not in use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sde_onnx.errors import InputError
from sde_onnx.solvers.noise import DrawnAhead
from sde_onnx.solvers.plan import COLUMNS, Plan, Step, latent, non_finite, rows
from sde_onnx.solvers.protocols import NoiseSource

__all__ = ["DeviceLoop", "alone_on", "room_for"]

LEAST_ROWS = 4096   # that a table has room for: a graph once captured reads it where it lies
RUNS_TO_CAPTURE = 3
AHEAD = 4   # noise arrays that lie ready or are drawn, each on a thread
STATE = ("x", "memory0", "memory1", "sigma", "row", "bad")   # a turn's outputs have these names with _next
CAPTURING = ("cuda",)   # devices on which a turn is captured as a graph
# While one thread captures, CUDA takes another's copy or allocation for a mistake, and the capture fails.
ALONE = threading.RLock()


def alone_on(provider: str) -> AbstractContextManager[object]:
    """Keeps what copies and allocates under a provider out of another thread's capture, and captures out of it."""
    return ALONE if provider in CAPTURING else nullcontext()


def room_for(evaluations: int) -> int:
    """Rows of a table for so many evaluations: few sizes, so that a captured graph, which reads it, serves again."""
    return max(LEAST_ROWS, 1 << evaluations.bit_length())   # the last turn reads the row after its own


class DeviceLoop:
    """Buffers on a device for one batch size, and the graph that runs on them.

    Args:
        session: of a file with an update, for this batch size.
        device: ONNX Runtime's name of the device, ``"cuda"`` or ``"cpu"``.
        shape: ``(N, C, H, W)``.
        capacity: rows that the table holds, of :func:`room_for`.
    """

    def __init__(self, session: ort.InferenceSession, device: str, shape: tuple[int, ...], capacity: int) -> None:
        self.session = session
        self.shape = shape
        self.capacity = capacity
        self.now = (0, 0)   # number of the run, and of its turn, that the buffers hold
        single, number = (shape, np.float32), ((1,), np.int64)
        forms = {"x": single, "memory0": single, "memory1": single, "sigma": (shape[:1], np.float32), "row": number,
                 "bad": number}

        def buffer(form: tuple[tuple[int, ...], type]) -> ort.OrtValue:
            with ALONE:
                return ort.OrtValue.ortvalue_from_numpy(np.zeros(*form), device, 0)

        self.states = [{name: buffer(forms[name]) for name in STATE} for _ in range(2)]
        self.noises = [buffer(single) for _ in range(2)]
        self.x_mean = buffer(single)
        self.table = buffer(((self.capacity, len(COLUMNS)), np.float32))
        self.bindings, self.options = [], []
        for turn in range(2):
            binding = session.io_binding()
            for name in STATE:
                binding.bind_ortvalue_input(name, self.states[turn][name])
                binding.bind_ortvalue_output(f"{name}_next", self.states[1 - turn][name])
            binding.bind_ortvalue_input("noise", self.noises[turn])
            binding.bind_ortvalue_input("table", self.table)
            binding.bind_ortvalue_output("x_mean", self.x_mean)
            options = ort.RunOptions()
            if device in CAPTURING:
                options.add_run_config_entry("gpu_graph_id", str(turn + 1))
            self.bindings.append(binding)
            self.options.append(options)
        if device in CAPTURING:
            with ALONE:
                self._begin(np.zeros((0, len(COLUMNS)), np.float32), np.zeros(shape, np.float32), 1.0)
                for turn in [0, 1] * RUNS_TO_CAPTURE:
                    session.run_with_iobinding(self.bindings[turn], self.options[turn])

    def run(self, plan: Plan, noise: NoiseSource) -> Iterator[Step]:
        """Yields the steps of a plan.

        Args:
            plan: of at most as many evaluations as the loop was made for.
            noise: returns the next standard normal array ``[N, C, H, W]`` at each call; called on another thread.

        Raises:
            NonFiniteError: x stopped being finite; found when x is read or the run ends, and told with the step.
            InputError: another run has begun on these buffers, or a step's arrays were asked for after the next step.
        """
        number = self.now[0] + 1
        self.now = number, 0
        x = np.ascontiguousarray(latent(plan, noise), np.float32)
        self._begin(rows(plan), x, float(plan.evaluations[0].sigma))

        def fill(turn: int, drawn: NoiseSource) -> None:
            if turn < len(plan.evaluations) and plan.evaluations[turn].draws:
                self._put(self.noises[turn % 2], np.ascontiguousarray(drawn()))

        draws = sum(evaluation.draws for evaluation in plan.evaluations)
        with DrawnAhead(noise, draws, AHEAD) as drawn, ThreadPoolExecutor(1) as pool:
            filled = pool.submit(fill, 0, drawn)
            for turn, evaluation in enumerate(plan.evaluations):
                filled.result()
                self._claim(number, turn)
                filled = pool.submit(fill, turn + 1, drawn)
                self.session.run_with_iobinding(self.bindings[turn % 2], self.options[turn % 2])
                self.now = number, turn + 1
                if evaluation.ends is None:
                    continue
                if turn == len(plan.evaluations) - 1:
                    self._check(plan, turn)
                read = self._reader(plan, number, turn)
                yield Step(evaluation.ends, plan.levels[evaluation.ends], turn + 1, read)

    def _claim(self, number: int, turn: int) -> None:
        """Refuses to go on, or to read, where the buffers hold something else by now."""
        if self.now[0] != number:
            raise InputError("another batch has begun on the device: finish one before the next")
        if self.now[1] != turn:
            raise InputError("a step's arrays lie on the device until the next step: read them before it")

    def _begin(self, entries: NDArray[np.float32], x: NDArray[np.float32], sigma: float) -> None:
        room = np.zeros((self.capacity - len(entries), len(COLUMNS)), np.float32)
        self._put(self.table, np.concatenate([entries, room]))
        zeros = np.zeros(self.shape, np.float32)
        first: dict[str, NDArray[Any]] = {
            "x": x, "memory0": zeros, "memory1": zeros, "sigma": np.full(self.shape[:1], sigma, np.float32),
            "row": np.zeros(1, np.int64), "bad": np.full(1, -1, np.int64)}
        for name, value in first.items():
            self._put(self.states[0][name], value)

    @staticmethod
    def _put(buffer: ort.OrtValue, value: NDArray[Any]) -> None:
        with ALONE:
            buffer.update_inplace(value)

    @staticmethod
    def _got(buffer: ort.OrtValue) -> NDArray[Any]:
        """A copy: on a CPU it would be the buffer itself."""
        with ALONE:
            return np.array(buffer.numpy())

    def _reader(self, plan: Plan, number: int, turn: int) -> Callable[[str], NDArray[np.float32]]:
        def read(name: str) -> NDArray[np.float32]:
            self._claim(number, turn + 1)
            self._check(plan, turn)
            value = self.x_mean if name == "x_mean" else self.states[1 - turn % 2][name]
            return self._got(value)
        return read

    def _check(self, plan: Plan, turn: int) -> None:
        """Stops a run in which NaN or infinity has appeared, by what the device has noted."""
        bad = int(self._got(self.states[1 - turn % 2]["bad"])[0])
        if bad >= 0:
            step = next(item.ends for item in plan.evaluations[bad:] if item.ends is not None)
            raise non_finite(step, len(plan.levels), plan.levels[step])

"""The sampling loop on a device: one launch an evaluation, and only noise goes there.

A file for CUDA holds, beside its network, the update of :mod:`sde_onnx.tables` (written by ``export/update.py``): the
outputs of a turn are the inputs of the next, and which numbers it takes it reads from a table that lies there too. Two
sets of buffers take turns as inputs and outputs. Under CUDA each is captured as a CUDA graph; while the device works,
the host draws the next noise array and copies it into the buffer that is not in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sde_onnx.errors import InputError
from sde_onnx.noise import NoiseSource
from sde_onnx.samplers import Step, non_finite
from sde_onnx.tables import COLUMNS, SolverTable

__all__ = ["DeviceLoop", "DeviceStep"]

LEAST_ROWS = 4096   # that a table has room for: a graph once captured reads it where it lies
RUNS_TO_CAPTURE = 3
STATE = ("x", "history0", "history1", "sigma", "row", "bad")   # a turn's outputs have these names with _next


class DeviceStep(Step):
    """A step whose arrays are copied from the device when they are asked for, before the next step."""

    _read: Callable[[str], Any]

    def __init__(self, index: int, sigma: float, nfe: int, read: Callable[[str], Any]) -> None:
        for name, value in (("index", index), ("sigma", sigma), ("nfe", nfe), ("_read", read)):
            object.__setattr__(self, name, value)

    @property
    def x(self) -> Any:
        return self._read("x")

    @property
    def x_mean(self) -> Any:
        return self._read("x_mean")


class DeviceLoop:
    """Buffers on a device for one batch size, and the graph that runs on them.

    Args:
        session: of a file with an update, for this batch size.
        device: ONNX Runtime's name of the device, ``"cuda"`` or ``"cpu"``.
        shape: ``(N, C, H, W)``.
        rows: evaluations that the table must hold.
    """

    def __init__(self, session: ort.InferenceSession, device: str, shape: tuple[int, ...], rows: int) -> None:
        self.session = session
        self.shape = shape
        self.capacity = max(LEAST_ROWS, rows)
        self.now = (0, 0)   # number of the run, and of its turn, that the buffers hold
        single, number = (shape, np.float32), ((1,), np.int64)
        forms = {"x": single, "history0": single, "history1": single, "sigma": (shape[:1], np.float32), "row": number,
                 "bad": number}

        def buffer(form: tuple[tuple[int, ...], type]) -> ort.OrtValue:
            return ort.OrtValue.ortvalue_from_numpy(np.zeros(*form), device, 0)

        self.states = [{name: buffer(forms[name]) for name in STATE} for _ in range(2)]
        self.noises = [buffer(single) for _ in range(2)]
        self.x_mean = buffer(single)
        self.table = buffer(((self.capacity, COLUMNS), np.float32))
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
            if device == "cuda":
                options.add_run_config_entry("gpu_graph_id", str(turn + 1))
            self.bindings.append(binding)
            self.options.append(options)
        if device == "cuda":   # before a second thread copies: a capture takes every CUDA call for its own
            self._begin(np.zeros((0, COLUMNS), np.float32), np.zeros(shape, np.float32), 1.0)
            for turn in [0, 1] * RUNS_TO_CAPTURE:
                session.run_with_iobinding(self.bindings[turn], self.options[turn])

    def run(self, table: SolverTable, noise: NoiseSource) -> Iterator[Step]:
        """Yields a solver's steps.

        Args:
            table: of :func:`sde_onnx.tables.solver_table`, of at most as many evaluations as the loop was made for.
            noise: returns the next standard normal array ``[N, C, H, W]`` at each call; called on another thread.

        Raises:
            NonFiniteError: x stopped being finite; found when x is read or the run ends, and told with the step.
            InputError: another run has begun on these buffers, or a step's arrays were asked for after the next step.
        """
        number = self.now[0] + 1
        self.now = number, 0
        x = np.zeros(self.shape, np.float32)
        for deviation in table.start:
            x += np.float32(deviation) * noise()
        self._begin(table.rows(), x, table.evaluations[0].sigma)

        def fill(turn: int) -> None:
            if turn < len(table.evaluations) and table.evaluations[turn].draws:
                self.noises[turn % 2].update_inplace(np.ascontiguousarray(noise()))

        with ThreadPoolExecutor(1) as pool:
            filled = pool.submit(fill, 0)
            for turn, evaluation in enumerate(table.evaluations):
                filled.result()
                self._claim(number, turn)
                filled = pool.submit(fill, turn + 1)
                self.session.run_with_iobinding(self.bindings[turn % 2], self.options[turn % 2])
                self.now = number, turn + 1
                if evaluation.ends is None:
                    continue
                if turn == len(table.evaluations) - 1:
                    self._check(table, turn)
                read = self._reader(table, number, turn)
                yield DeviceStep(evaluation.ends, table.levels[evaluation.ends], turn + 1, read)

    def _claim(self, number: int, turn: int) -> None:
        """Refuses to go on, or to read, where the buffers hold something else by now."""
        if self.now[0] != number:
            raise InputError("another batch has begun on the device: finish one before the next")
        if self.now[1] != turn:
            raise InputError("a step's arrays lie on the device until the next step: read them before it")

    def _begin(self, rows: NDArray[np.float32], x: NDArray[np.float32], sigma: float) -> None:
        room = np.zeros((self.capacity - len(rows), COLUMNS), np.float32)
        self.table.update_inplace(np.concatenate([rows, room]))
        zeros = np.zeros(self.shape, np.float32)
        first = {"x": x, "history0": zeros, "history1": zeros, "sigma": np.full(self.shape[:1], sigma, np.float32),
                 "row": np.zeros(1, np.int64), "bad": np.full(1, -1, np.int64)}
        for name, value in first.items():
            self.states[0][name].update_inplace(value)

    def _reader(self, table: SolverTable, number: int, turn: int) -> Callable[[str], NDArray[np.float32]]:
        def read(name: str) -> NDArray[np.float32]:
            self._claim(number, turn + 1)
            self._check(table, turn)
            value = self.x_mean if name == "x_mean" else self.states[1 - turn % 2][name]
            return np.array(value.numpy())   # a copy: on a CPU it would be the buffer itself
        return read

    def _check(self, table: SolverTable, turn: int) -> None:
        """Stops a run in which NaN or infinity has appeared, by what the device has noted."""
        bad = int(self.states[1 - turn % 2]["bad"].numpy()[0])
        if bad >= 0:
            step = next(item.ends for item in table.evaluations[bad:] if item.ends is not None)
            raise non_finite(step, len(table.levels), table.levels[step])

"""Dataclasses that several places hold at once: none may change under another's hands."""

import dataclasses

import pytest

from sde_onnx.benchmark import Benchmark
from sde_onnx.generate.sample import Batch
from sde_onnx.golden import Comparison
from sde_onnx.guidance.measurement import Measurement
from sde_onnx.guidance.methods import Method
from sde_onnx.restoration import Restoration
from sde_onnx.runtime.metadata import ModelMetadata
from sde_onnx.solvers.catalogue import Sampling, Solver
from sde_onnx.solvers.plan import Evaluation, Langevin, Plan, Step
from sde_onnx.solvers.schedule import VeSchedule


@pytest.mark.parametrize("record", [
    Batch, Benchmark, Comparison, Evaluation, Langevin, Measurement, Method, ModelMetadata, Plan, Restoration, Sampling,
    Solver, Step, VeSchedule,
], ids=lambda record: record.__name__)
def test_a_record_does_not_change(record):
    field, *_ = dataclasses.fields(record)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(object.__new__(record), field.name, None)

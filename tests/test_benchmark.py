import dataclasses
import json
import time

import numpy as np
import pytest
from click.testing import CliRunner
from commands import done, refuses

from sde_onnx.benchmark import Benchmark, benchmark
from sde_onnx.cli import main
from sde_onnx.errors import InputError
from sde_onnx.files import sha256
from sde_onnx.runtime.machine import processor
from sde_onnx.solvers.catalogue import QUALITIES


class Slow:
    """A model whose evaluations take a known time."""

    def __init__(self, model, seconds):
        self.metadata = model.metadata
        self.provider = model.provider
        self.seconds = seconds

    def __call__(self, x, sigma, label):
        assert label is None
        time.sleep(self.seconds)
        return np.zeros_like(x) + 1


def test_evaluations_and_the_rest_are_told_apart(model):
    result = benchmark(Slow(model, 0.05), batch_size=3, seconds=0.5)
    assert result.evaluation == pytest.approx(0.05, rel=0.2)
    assert len(result.evaluations) == 2 * len(result.loop) >= 10
    assert 0 < result.loop_share < 0.2
    assert (result.steps, result.nfe) == (2000, 4000)
    assert result.images_per_second == pytest.approx(3 / (4000 * 0.05), rel=0.3)


def test_the_longest_time_may_be_asked_for(model, monkeypatch):
    monkeypatch.setattr("sde_onnx.benchmark.MOST_SECONDS", 0.01)
    assert len(benchmark(Slow(model, 0), batch_size=1, seconds=0.01).loop) >= 5
    with pytest.raises(InputError, match=r"seconds is 0.011, expected more than 0 and at most 0.01"):
        benchmark(model, seconds=0.011)


def test_a_model_of_one_step_is_timed_by_more(model):
    slow = Slow(model, 0.001)
    schedule = dataclasses.replace(model.metadata.schedule, num_scales=1)
    slow.metadata = dataclasses.replace(model.metadata, schedule=schedule)
    result = benchmark(slow, batch_size=1, seconds=0.01)
    assert (result.steps, result.nfe) == (1, 2)
    assert len(result.loop) >= 5


def test_a_label_that_is_needed_is_given(model):
    class Labelled(Slow):
        def __call__(self, x, sigma, label):
            asked.append(label)
            return np.ones_like(x)

    asked, slow = [], Labelled(model, 0)
    slow.metadata = dataclasses.replace(model.metadata, labels=3)
    benchmark(slow, batch_size=2, seconds=0.01)
    assert set(asked) == {0}


def test_what_the_loop_adds_is_part_of_an_images_time(model):
    measured = benchmark(Slow(model, 0.001), batch_size=2, seconds=0.05)
    result = dataclasses.replace(measured, evaluations=[1.0], loop=[1.0])   # a step has two evaluations
    assert result.loop_share == pytest.approx(1 / 3)
    assert result.images_per_second == pytest.approx(2 / (4000 * 1.5))


@pytest.mark.parametrize(("arguments", "message"), [({"batch_size": 0}, "batch_size is 0"),
                                                    ({"batch_size": 10**10}, "expected a whole number of 1 to 65536"),
                                                    ({"seconds": 0}, "seconds is 0"),
                                                    ({"seconds": 1e9}, "at most 86400"),
                                                    ({"seconds": float("inf")}, "seconds is inf, expected a finite")])
def test_bad_arguments_are_refused(arguments, message, model):
    with pytest.raises(InputError, match=message):
        benchmark(model, **arguments)


def test_the_command(model_file):
    result = CliRunner().invoke(main, ["bench", str(model_file), "--batch-size", "2", "--seconds", "0.2", "--provider",
                                       "cpu", "--threads", "1"])
    assert result.exit_code == 0, result.output
    first, evaluation, *images, loop = result.output.splitlines()
    assert first == f"{model_file.name}: cpu fp32, batch 2, 1 thread of {processor()}"
    assert "ms an evaluation, median of" in evaluation
    assert [line.split("--quality ")[1].split(",")[0] for line in images] == list(QUALITIES)
    assert any("with --quality balanced, 25 evaluations" in line for line in images)
    assert loop.endswith("% of the time in the loop outside the network")


def test_the_command_gives_the_loops_share_in_percent(model_file, monkeypatch):
    measured = Benchmark(batch_size=2, evaluations=[3.0], loop=[1.0], steps=5, nfe=5, first_evaluation=4.0)
    monkeypatch.setattr("sde_onnx.benchmark.benchmark", lambda *_, **__: measured)
    assert "\n25.0% of the time in the loop outside the network" in done("bench", model_file).stdout


def test_ten_seconds_are_measured_by_default(model_file, monkeypatch):
    def stop(model, *, batch_size, seconds):
        raise InputError(f"asked for {seconds} s of {batch_size}")

    monkeypatch.setattr("sde_onnx.benchmark.benchmark", stop)
    refuses("asked for 10.0 s of None", "bench", model_file)


def test_other_forms_say_what_was_measured_on_what(model_file):
    arguments = ["bench", model_file, "--batch-size", 2, "--seconds", 0.2, "--provider", "cpu", "--threads", 1]
    record = json.loads(done(*arguments, "-o", "json").stdout)
    assert (record["sha256"], record["batch_size"], record["threads"]) == (sha256(model_file), 2, 1)
    assert record["processor"]
    assert record["versions"].keys() == {"sde_onnx", "onnxruntime", "numpy", "python"}
    milliseconds = [1e3 * seconds for seconds in record["evaluation_seconds"]]
    assert record["milliseconds"]["median"] == pytest.approx(np.median(milliseconds))
    assert (record["milliseconds"]["least"], record["milliseconds"]["most"]) == (min(milliseconds), max(milliseconds))
    fast, reference = record["qualities"]["fast"], record["qualities"]["reference"]
    assert fast["images_per_second"] / reference["images_per_second"] == pytest.approx(4000 / 12)
    heads, rule, cells = (line.strip("|").split("|") for line in done(*arguments, "-o", "md").stdout.splitlines())
    assert len(heads) == len(rule) == len(cells)
    assert cells[0].strip() == model_file.name

import time

import numpy as np
import pytest
from click.testing import CliRunner

from sde_onnx.benchmark import benchmark
from sde_onnx.cli import main
from sde_onnx.errors import InputError


class Slow:
    """A model whose evaluations take a known time."""

    def __init__(self, model, seconds):
        self.metadata = model.metadata
        self.provider = model.provider
        self.seconds = seconds

    def __call__(self, x, sigma):
        time.sleep(self.seconds)
        return np.zeros_like(x) + 1


def test_evaluations_and_the_rest_are_told_apart(model):
    result = benchmark(Slow(model, 0.05), batch_size=3, seconds=0.5)
    assert result.evaluation == pytest.approx(0.05, rel=0.2)
    assert len(result.evaluations) == 2 * len(result.loop) >= 10
    assert 0 < result.loop_share < 0.2
    assert (result.steps, result.nfe) == (2000, 4000)
    assert result.images_per_second == pytest.approx(3 / (4000 * 0.05), rel=0.3)


@pytest.mark.parametrize(("arguments", "message"), [({"batch_size": 0}, "batch_size is 0"),
                                                    ({"seconds": 0}, "seconds is 0")])
def test_bad_arguments_are_refused(arguments, message, model):
    with pytest.raises(InputError, match=message):
        benchmark(model, **arguments)


def test_the_command(model_file):
    result = CliRunner().invoke(main, ["bench", str(model_file), "--batch-size", "2", "--seconds", "0.2", "--provider",
                                       "cpu", "--threads", "1"])
    assert result.exit_code == 0, result.output
    first, evaluation, images, loop = result.output.splitlines()
    assert first == f"{model_file.name}: cpu fp32, batch 2"
    assert "ms an evaluation, median of" in evaluation
    assert "images/s with --quality balanced, 25 evaluations; " in images
    assert loop.endswith("% of the time in the loop outside the network")

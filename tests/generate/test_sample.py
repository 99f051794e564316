import numpy as np
import pytest

import sde_onnx
from sde_onnx.errors import InputError
from sde_onnx.generate.sample import default_batch_size, sample_batches
from sde_onnx.solvers.noise import PortableNoise

# ONNX Runtime blocks its sums by the batch: float32 rounding, carried through every step.
BATCH_ROUNDING = 1e-3


@pytest.mark.parametrize("solver", ["pc", "sde-dpmpp-2m"])
def test_an_image_is_the_same_in_every_batch(solver, model):
    together = sde_onnx.sample(model, seeds=range(5), steps=20, solver=solver)
    assert together.shape == (5, 3, 16, 16)
    assert together.dtype == np.float32
    assert together.min() >= 0
    assert together.max() <= 1
    in_twos = sde_onnx.sample(model, seeds=range(5), steps=20, solver=solver, batch_size=2)
    alone = [sde_onnx.sample(model, seeds=[seed], steps=20, solver=solver) for seed in range(5)]
    np.testing.assert_allclose(in_twos, together, atol=BATCH_ROUNDING)
    np.testing.assert_allclose(np.concatenate(alone), together, atol=BATCH_ROUNDING)


@pytest.mark.slow
def test_a_digit_is_the_same_in_every_batch_after_1000_steps():
    model = sde_onnx.load(sde_onnx.bundled_model(), provider="cpu")
    together = sde_onnx.sample(model, seeds=range(8), steps=1000, solver="pc")
    in_threes = sde_onnx.sample(model, seeds=range(8), steps=1000, solver="pc", batch_size=3)
    alone = np.concatenate([sde_onnx.sample(model, seeds=[seed], steps=1000, solver="pc") for seed in range(8)])
    print(f"largest difference: in threes {abs(in_threes - together).max():.1e}, "
          f"alone {abs(alone - together).max():.1e}")
    np.testing.assert_allclose(in_threes, together, atol=BATCH_ROUNDING)
    np.testing.assert_allclose(alone, together, atol=BATCH_ROUNDING)


def test_what_is_not_given_is_the_models_own(model):
    own = model.metadata
    assert own.schedule.num_scales == 2000
    [batch] = sample_batches(model, [3], solver="pc")
    first = next(batch.steps)
    assert (first.sigma, first.nfe) == (pytest.approx(own.schedule.sigma_max), own.n_corrector + 1)
    [batch] = sample_batches(model, [3], own.schedule.num_scales, solver="pc", snr=own.snr,
                             n_corrector=own.n_corrector)
    np.testing.assert_array_equal(first.x, next(batch.steps).x)
    [batch] = sample_batches(model, [3], solver="pc", snr=2 * own.snr)
    assert not np.allclose(first.x, next(batch.steps).x)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"seeds": []}, "no seeds"),
    ({"seeds": [2**64]}, "does not fit 64 bits"),
    ({"steps": 0}, "steps is 0"),
    ({"solver": "pc", "steps": 0}, "steps is 0"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"latents": np.zeros((2, 3, 16, 16), np.float32)}, r"2 latents for 1 seeds: give one for each seed"),
    ({"latents": np.zeros((1, 3, 16, 16))}, "latents is float64"),
    ({"latents": np.zeros((1, 3, 16, 8), np.float32)}, r"latents is float32 \[1, 3, 16, 8\], expected float32"),
    ({"latents": np.zeros((0, 3, 16, 16), np.float32)}, r"latents is float32 \[0, 3, 16, 16\]"),
    ({"latents": np.full((1, 3, 16, 16), np.nan, np.float32)}, "latents holds NaN or infinity"),
    ({"solver": "pc", "snr": -1.0}, "snr is -1.0"),
])
def test_bad_arguments_are_refused(arguments, message, model):
    with pytest.raises(InputError, match=message):
        sde_onnx.sample(model, **{"seeds": [0], "steps": 2, **arguments})


def test_a_resolved_request_stands_alone(model):
    sampling = sde_onnx.resolve(model.metadata, solver="heun", steps=3)
    np.testing.assert_array_equal(sde_onnx.sample(model, [1], sampling=sampling),
                                  sde_onnx.sample(model, [1], 3, solver="heun"))
    for function in (sde_onnx.sample, sde_onnx.sample_batches):
        with pytest.raises(InputError, match="sampling says how already: leave out solver, steps, options"):
            function(model, [1], 3, sampling=sampling, solver="pc", snr=0.1)


@pytest.mark.parametrize(("solver", "options"), [
    ("pc", {"steps": 4}), ("stochastic-heun", {"steps": 4, "churn": 3.0}), ("dpmpp-2m", {"steps": 4}),
    ("adaptive-sde", {"rtol": 0.5, "atol": 0.1}),
])
def test_the_callers_latents_take_the_place_of_the_first_draw(solver, options, model, rng):
    """The seeds' own latents give the seeds' own images: so the draws after them are the same. Others give others."""
    seeds, sigma_max = [3, 1, 4], np.float32(model.metadata.schedule.sigma_max)
    own = PortableNoise(seeds, (3, 16, 16))() * sigma_max
    expected = sde_onnx.sample(model, seeds, solver=solver, batch_size=2, **options)
    images = sde_onnx.sample(model, seeds, solver=solver, batch_size=2, latents=own, **options)
    np.testing.assert_allclose(images, expected, atol=BATCH_ROUNDING)   # x / sigma_max * sigma_max rounds
    one = own[:1].repeat(3, axis=0)
    images = sde_onnx.sample(model, seeds, solver=solver, batch_size=2, latents=one, **options)
    np.testing.assert_allclose(images[0], expected[0], atol=BATCH_ROUNDING)
    assert not np.allclose(images[1], expected[1], atol=0.01)


def test_default_batches_shrink_with_the_image():
    assert [default_batch_size((3, size, size)) for size in (16, 32, 256, 1024)] == [64, 64, 2, 1]

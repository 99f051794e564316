import numpy as np
import pytest
import torch
from diffusers import ScoreSdeVePipeline as Reference

import sde_onnx
from sde_onnx.errors import CheckpointError, InputError, MissingExtraError, ProviderError
from sde_onnx.runtime.providers import usable_providers


@pytest.fixture(scope="module")
def pipe(model_file):
    pipe = sde_onnx.ScoreSdeVePipeline.from_pretrained(model_file, provider="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def reference(checkpoint16):
    pipe = Reference.from_pretrained(checkpoint16)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def several():
    return [generator(seed) for seed in range(3)]


@pytest.mark.parametrize("make", [generator, several])
def test_the_same_call_gives_the_same_pictures(make, pipe, reference):
    arguments = {"batch_size": 3, "num_inference_steps": 20}
    expected = reference(**arguments, generator=make(), output_type="np").images
    got = pipe(**arguments, generator=make(), output_type="np").images
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-4)
    pictures = pipe(**arguments, generator=make()).images
    for ours, theirs in zip(pictures, reference(**arguments, generator=make()).images, strict=True):
        assert (ours.size, ours.mode) == (theirs.size, theirs.mode)
        assert abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_a_second_call_goes_on_with_the_generator_where_diffusers_does(pipe, reference):
    ours, theirs = generator(4), generator(4)
    for _ in range(2):
        expected = reference(num_inference_steps=5, generator=theirs, output_type="np").images
        np.testing.assert_allclose(pipe(num_inference_steps=5, generator=ours, output_type="np").images, expected,
                                   atol=1e-4)


@pytest.mark.thorough
def test_digits_after_100_steps_are_diffusers_digits(digits_checkpoint):
    difference = digits_difference(digits_checkpoint, steps=100)
    print(f"largest difference after 100 steps: {difference.max():.1e}")
    assert difference.max() <= 1e-3


@pytest.mark.slow
def test_digits_after_1000_steps_are_diffusers_digits(digits_checkpoint):
    difference = digits_difference(digits_checkpoint, steps=1000)
    within = (difference <= 1 / 255).mean()
    print(f"largest difference after 1000 steps: {difference.max():.1e}; {within:.4%} of 8-bit values within 1")
    assert within >= 0.999


def digits_difference(checkpoint, steps):
    """The difference of the images, which lie in [0, 1]."""
    theirs = Reference.from_pretrained(str(checkpoint))
    theirs.set_progress_bar_config(disable=True)
    ours = sde_onnx.ScoreSdeVePipeline.from_pretrained(sde_onnx.bundled_model(), provider="cpu")
    ours.set_progress_bar_config(disable=True)
    images = [
        pipe(batch_size=4, num_inference_steps=steps, generator=generator(), output_type="np").images
        for pipe in (ours, theirs)
    ]
    return abs(images[0] - images[1])


def test_other_generators(pipe, model):
    def images(**arguments):
        return pipe(num_inference_steps=3, output_type="np", **arguments).images

    np.testing.assert_array_equal(images(generator=5, batch_size=2), images(generator=[5, 6], batch_size=2))
    np.testing.assert_array_equal(images(generator=np.random.default_rng(1)),
                                  images(generator=np.random.default_rng(1)))
    assert not np.allclose(images(), images())
    # alone in its batch, an image's norms are the batch's
    np.testing.assert_allclose(images(generator=5)[0].transpose(2, 0, 1),
                               sde_onnx.sample(model, seeds=[5], steps=3, solver="pc")[0], atol=1e-6)


def test_the_output_is_what_callers_of_diffusers_expect(pipe, reference):
    got, expected = (each(num_inference_steps=1, generator=generator()) for each in (pipe, reference))
    assert type(got.images) is type(expected.images) is list
    assert type(got[0]) is type(expected[0])
    assert type(got[0][0]) is type(expected[0][0])
    assert len(got["images"]) == len(expected["images"])
    assert type(got.to_tuple()) is type(expected.to_tuple())
    got, expected = (each(num_inference_steps=1, generator=generator(), output_type="np", return_dict=False)
                     for each in (pipe, reference))
    assert isinstance(got, tuple)
    assert len(got) == len(expected) == 1
    assert (got[0].dtype, got[0].shape) == (expected[0].dtype, expected[0].shape)


def test_a_pipeline_can_be_moved(model_file):
    pipe = sde_onnx.ScoreSdeVePipeline.from_pretrained(model_file)
    assert pipe.to(torch.device("cpu")).model.provider == "cpu"
    with pytest.raises(InputError, match="device is 'mps', expected"):
        pipe.to("mps")
    if "cuda" not in usable_providers():
        with pytest.raises(ProviderError, match="cuda cannot run here"):
            pipe.to("cuda:0")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"batch_size": 0}, "batch_size is 0"),
    ({"num_inference_steps": 0}, "steps is 0"),
    ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
    ({"generator": "zero"}, "generator is str"),
])
def test_bad_arguments_are_refused(arguments, message, pipe):
    with pytest.raises(InputError, match=message):
        pipe(**arguments)


@pytest.mark.thorough
def test_a_checkpoint_is_exported_once(checkpoint16, tmp_path, monkeypatch, pipe):
    from sde_onnx.export import cache

    made = []
    monkeypatch.setattr(cache, "export", lambda *args, **kwargs: made.append(1) or real(*args, **kwargs))
    real = sde_onnx.export.export
    first = sde_onnx.ScoreSdeVePipeline.from_pretrained(checkpoint16, provider="cpu", cache_dir=tmp_path)
    again = sde_onnx.ScoreSdeVePipeline.from_pretrained(checkpoint16, provider="cpu", cache_dir=tmp_path)
    assert len(made) == len(list(tmp_path.iterdir())) == 1
    images = [each(num_inference_steps=2, generator=1, output_type="np").images for each in (first, again, pipe)]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    from sde_onnx.files import cache_folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sde-onnx"
    monkeypatch.setenv("SDE_ONNX_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_no_checkpoint_and_no_extra(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="is missing"):
        sde_onnx.ScoreSdeVePipeline.from_pretrained(tmp_path / "nothing")
    monkeypatch.setattr("sde_onnx.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sde-onnx\[export\]'"):
        sde_onnx.ScoreSdeVePipeline.from_pretrained(tmp_path)

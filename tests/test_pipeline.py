from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ScoreSdeVePipeline as Reference
from diffusers import ScoreSdeVeScheduler, UNet2DModel

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
    before = pipe.model
    assert pipe.to(torch.device("cpu")).model is before   # where it runs already it stays, under its provider
    pipe.model = SimpleNamespace(provider="webgpu", under=lambda kind: before)   # a GPU that torch does not name
    assert pipe.to("cpu").model is before
    assert pipe.to(torch.float32).to("cpu", torch.float32).to(dtype=torch.float32) is pipe
    with pytest.raises(InputError, match="device is 'mps', expected"):
        pipe.to("mps")
    with pytest.raises(InputError, match="dtype is torch.float16, expected float32: export a file of that precision"):
        pipe.to(torch.float16)
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
    assert len(made) == len(list(tmp_path.glob("*.onnx"))) == 1
    images = [each(num_inference_steps=2, generator=1, output_type="np").images for each in (first, again, pipe)]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    from sde_onnx.files import cache_folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sde-onnx"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == Path.home() / ".cache" / "sde-onnx"
    monkeypatch.setenv("SDE_ONNX_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_no_checkpoint_and_no_extra(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="is missing"):
        sde_onnx.ScoreSdeVePipeline.from_pretrained(tmp_path / "nothing")
    monkeypatch.setattr("sde_onnx.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sde-onnx\[export\]'"):
        sde_onnx.ScoreSdeVePipeline.from_pretrained(tmp_path)


def small_unet():
    """The network of diffusers' own fast test of this pipeline."""
    torch.manual_seed(0)
    return UNet2DModel(block_out_channels=(32, 64), layers_per_block=2, sample_size=32, in_channels=3, out_channels=3,
                       down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                       up_block_types=("AttnUpBlock2D", "UpBlock2D"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache of its own for exported networks."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.thorough
def test_diffusers_own_fast_test(kept):
    """tests/pipelines/score_sde_ve/test_score_sde_ve.py of diffusers: the same calls, the slice that it expects."""
    sde_ve = sde_onnx.ScoreSdeVePipeline(unet=small_unet(), scheduler=ScoreSdeVeScheduler(), cache_dir=kept)
    sde_ve.to("cpu")
    sde_ve.set_progress_bar_config(disable=None)
    image = sde_ve(num_inference_steps=2, output_type="numpy", generator=torch.manual_seed(0)).images
    image_from_tuple = sde_ve(num_inference_steps=2, output_type="numpy", generator=torch.manual_seed(0),
                              return_dict=False)[0]
    assert image.shape == (1, 32, 32, 3)
    expected_slice = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    assert np.abs(image[0, -3:, -3:, -1].flatten() - expected_slice).max() < 1e-2
    assert np.abs(image_from_tuple[0, -3:, -3:, -1].flatten() - expected_slice).max() < 1e-2
    reference = Reference(unet=small_unet(), scheduler=ScoreSdeVeScheduler())
    reference.set_progress_bar_config(disable=True)
    expected = reference(num_inference_steps=2, output_type="np", generator=torch.manual_seed(0)).images
    np.testing.assert_allclose(image, expected, atol=1e-3)


@pytest.mark.thorough
def test_a_users_script_changes_its_import_alone(kept, tmp_path):
    """Train a step, look at samples, save, load again, look again."""
    unet, scheduler = small_unet(), ScoreSdeVeScheduler(sigma_max=20.0)
    optimizer = torch.optim.Adam(unet.parameters(), 1e-4)
    images, sigma = torch.rand(2, 3, 32, 32), torch.tensor([0.1, 3.0])
    each, z = sigma[:, None, None, None], torch.randn(2, 3, 32, 32)
    loss = ((each * unet(images + each * z, sigma).sample + z) ** 2).mean()
    loss.backward()
    optimizer.step()
    results = {}
    for name, pipeline_class, options in (("theirs", Reference, {}),
                                          ("ours", sde_onnx.ScoreSdeVePipeline, {"cache_dir": kept})):
        pipe = pipeline_class(unet=unet, scheduler=scheduler, **options)
        pipe.set_progress_bar_config(disable=True)
        assert unet.training == (name == "ours" or unet.training)
        first = pipe(batch_size=2, num_inference_steps=4, generator=torch.manual_seed(1), output_type="np").images
        pipe.save_pretrained(tmp_path / name)
        again = pipeline_class.from_pretrained(tmp_path / name, **options)
        again.set_progress_bar_config(disable=True)
        again = again.to(torch.device("cpu"))
        second = again(batch_size=2, num_inference_steps=4, generator=torch.manual_seed(1), output_type="np").images
        np.testing.assert_allclose(second, first, atol=1e-4)
        assert pipe.unet.config.sample_size == again.unet.config.sample_size == 32
        assert pipe.scheduler.config.sigma_max == again.scheduler.config.sigma_max == 20.0
        assert set(pipe.components) == {"unet", "scheduler"}
        assert str(pipe.device) == "cpu"
        assert pipe.dtype == torch.float32
        pictures = pipe.numpy_to_pil(first)
        assert pictures[0].size == (32, 32)
        results[name] = first
    np.testing.assert_allclose(results["ours"], results["theirs"], atol=1e-3)
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == sorted(
        path.name for path in (tmp_path / "theirs").iterdir())
    assert len(list(kept.glob("*.onnx"))) <= 3   # each network once, however often it was asked for


def test_the_network_answers_as_diffusers_does(pipe, reference):
    x, sigma = torch.rand(2, 3, 16, 16), torch.tensor([0.1, 3.0])
    with torch.no_grad():
        expected = reference.unet(x, sigma).sample
        same = reference.unet(x, 3.0).sample
    torch.testing.assert_close(pipe.unet(x, sigma).sample, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(pipe.unet(x, sigma, return_dict=False)[0], expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(pipe.unet(x, 3.0).sample, same, rtol=1e-4, atol=1e-3)
    assert (pipe.unet.config.in_channels, pipe.unet.config["sample_size"]) == (3, 16)
    assert pipe.unet.dtype == torch.float32
    assert set(pipe.config) == set(reference.config) - {"_name_or_path"}


def test_tensors_and_unknown_keywords_as_there(pipe):
    tensor = pipe(2, 3, generator=5, output_type="pt", eta=0.3).images
    array = pipe(2, 3, generator=5, output_type="np").images
    assert tensor.shape == (2, 3, 16, 16)
    np.testing.assert_array_equal(tensor.numpy().transpose(0, 2, 3, 1), array)


def test_a_model_file_is_saved_and_found_again(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    again = sde_onnx.ScoreSdeVePipeline.from_pretrained(tmp_path / "saved", provider="cpu")
    again.set_progress_bar_config(disable=True)
    again.save_pretrained(tmp_path / "saved")   # onto itself
    np.testing.assert_array_equal(again(1, 2, 7, "np").images, pipe(1, 2, 7, "np").images)


@pytest.mark.parametrize(("options", "message"), [
    ({"torch_dtype": torch.float16}, "dtype is torch.float16, expected float32"),
    ({"device_map": "auto"}, "from_pretrained takes no device_map"),
    ({"use_safetensors": False}, "has no diffusion_pytorch_model.bin: the weights are missing"),
    ({"variant": "fp16"}, "neither diffusion_pytorch_model.fp16.safetensors nor diffusion_pytorch_model.fp16.bin"),
])
def test_keywords_of_from_pretrained_mean_what_they_mean_in_diffusers(options, message, checkpoint16):
    with pytest.raises(sde_onnx.SdeOnnxError, match=message):
        sde_onnx.ScoreSdeVePipeline.from_pretrained(checkpoint16, provider="cpu", **options)


def test_what_is_no_network_is_refused():
    with pytest.raises(InputError, match="unet is str and scheduler NoneType, expected a loaded model, or diffusers'"):
        sde_onnx.ScoreSdeVePipeline("m.onnx")

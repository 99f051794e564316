"""UNet2DModels of diffusers' own blocks, through the exported file, against diffusers itself."""

import numpy as np
import pytest
import torch
from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler, UNet2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sde_onnx
from sde_onnx.export import export, from_diffusers

from networks import noisy_images, worst_relative_error
from random_unets import randomize, save_pipeline

BLOCKS = ("DownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D")
UP = {name: name.replace("Down", "Up") for name in BLOCKS}
PARITY, PICTURES = 5e-6, 1e-3


@st.composite
def configs(draw):
    """Configs of small networks over all that a UNet2DModel can be; skip blocks go with skip blocks."""
    kinds = draw(st.sampled_from([BLOCKS[:3], BLOCKS[3:]]))
    down = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))
    time_scale_shift = draw(st.sampled_from(["default", "scale_shift"])) if kinds == BLOCKS[:3] else "default"
    return {
        "sample_size": draw(st.sampled_from([8, 16])), "block_out_channels": (32, 64, 64)[: len(down)],
        "layers_per_block": draw(st.sampled_from([1, 2])), "down_block_types": down,
        "up_block_types": [UP[name] for name in reversed(down)],
        "time_embedding_type": draw(st.sampled_from(["positional", "fourier"])),
        "flip_sin_to_cos": draw(st.booleans()), "freq_shift": draw(st.sampled_from([0, 1])),
        "center_input_sample": draw(st.booleans()), "act_fn": draw(st.sampled_from(["silu", "gelu", "relu"])),
        "norm_eps": draw(st.sampled_from([1e-5, 1e-6])), "norm_num_groups": draw(st.sampled_from([8, 32])),
        "attention_head_dim": draw(st.sampled_from([None, 8])), "add_attention": draw(st.booleans()),
        "resnet_time_scale_shift": time_scale_shift,
        "downsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "upsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "mid_block_scale_factor": draw(st.sampled_from([1.0, 1.41421356])),
    }


def network(config, seed=0):
    unet = UNet2DModel(**config)
    randomize(unet, seed)
    return unet.eval()


def differences(unet, folder, rng):
    """Of scores, the worst of three noise levels; of pictures after ten steps, the largest."""
    save_pipeline(folder / "checkpoint", unet, sigma_max=20.0, snr=0.1)
    export(from_diffusers(str(folder / "checkpoint")), folder / "m.onnx", force=True)
    model = sde_onnx.load(folder / "m.onnx", "cpu")
    x, sigma = noisy_images(rng, (0.05, 0.7, 20.0), model.metadata.image_shape)
    with torch.no_grad():
        score = worst_relative_error(model(x, sigma), unet(torch.tensor(x), torch.tensor(sigma)).sample)
    reference = ScoreSdeVePipeline(unet=unet, scheduler=ScoreSdeVeScheduler.from_pretrained(
        folder / "checkpoint" / "scheduler"))
    reference.set_progress_bar_config(disable=True)
    ours = sde_onnx.ScoreSdeVePipeline(model)
    ours.set_progress_bar_config(disable=True)
    pictures = [pipe(2, 10, torch.Generator().manual_seed(1), "np").images for pipe in (reference, ours)]
    return score, np.abs(pictures[0] - pictures[1]).max()


@pytest.mark.parametrize("down", [["DownBlock2D", "AttnDownBlock2D"], ["ResnetDownsampleBlock2D", "DownBlock2D"],
                                  ["SkipDownBlock2D", "AttnSkipDownBlock2D"]], ids=" ".join)
def test_the_file_is_diffusers_network(down, tmp_path, rng):
    config = {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "down_block_types": down,
              "up_block_types": [UP[name] for name in reversed(down)]}
    score, pictures = differences(network(config), tmp_path, rng)
    print(f"{down}: scores within {score:.1e}, pictures within {pictures:.1e}")
    assert score < PARITY
    assert pictures < PICTURES


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(config=configs())
def test_any_network_of_diffusers(config, tmp_path_factory):
    score, pictures = differences(network(config), tmp_path_factory.mktemp("unet"), np.random.default_rng(0))
    print(f"{config['down_block_types']}: scores within {score:.1e}, pictures within {pictures:.1e}")
    assert score < PARITY
    assert pictures < PICTURES


def test_a_class_conditional_network_takes_labels(tmp_path, rng):
    unet = network({"sample_size": 8, "block_out_channels": (32,), "layers_per_block": 1, "num_class_embeds": 5,
                    "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]})
    save_pipeline(tmp_path / "checkpoint", unet, sigma_max=20.0, snr=0.1)
    metadata = export(from_diffusers(str(tmp_path / "checkpoint")), tmp_path / "m.onnx")
    assert (metadata.labels, metadata.label_optional) == (5, False)
    model = sde_onnx.load(tmp_path / "m.onnx", "cpu")
    x, sigma = noisy_images(rng, (0.05, 0.7, 20.0), (3, 8, 8))
    label = np.array([4, 0, 2])
    with torch.no_grad():
        expected = unet(torch.tensor(x), torch.tensor(sigma), class_labels=torch.tensor(label)).sample
    assert worst_relative_error(model(x, sigma, label), expected) < PARITY
    with pytest.raises(sde_onnx.errors.InputError, match="needs a label for each image, 0 to 4"):
        model(x, sigma)

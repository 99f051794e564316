"""The original's configs by name: what the recorded ones say, and networks of the published sizes."""

import json

import pytest
import torch

from sde_onnx.export.checkpoints import config_files, score_sde
from sde_onnx.export.checkpoints.presets import PRESETS
from sde_onnx.export.network.ncsnpp import NCSNpp

NAMES = ["cifar10_ncsnpp_continuous", "cifar10_ncsnpp", "church_ncsnpp_continuous", "ffhq_ncsnpp_continuous",
         "cifar10_ddpm"]
# The recorded networks are small; in everything else they are what their configs say.
SHRUNK = {"nf", "ch_mult", "num_res_blocks", "image_size", "attn_resolutions"}


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_what_the_recorded_config_says(name, golden):
    recorded = json.loads((golden / "score_sde" / name / "config.json").read_text())
    for section, options in PRESETS[name].items():
        for option, value in options.items():
            if option not in SHRUNK:
                expected = recorded[section][option]
                assert value == (tuple(expected) if isinstance(expected, list) else expected), f"{section}.{option}"


# Of each dataset in score_sde_pytorch's configs: image size, sigma_max and snr.
DATASETS = {"cifar10": (32, 50, 0.16), "celeba": (64, 90, 0.17), "bedroom": (256, 378, 0.075),
            "church": (256, 380, 0.075), "celebahq_256": (256, 348, 0.075), "ffhq_256": (256, 348, 0.075),
            "celebahq": (1024, 1348, 0.15), "ffhq": (1024, 1348, 0.15)}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_of_its_dataset(name):
    dataset = name.partition("_ncsnpp")[0].removesuffix("_ddpm")
    tree = PRESETS[name]
    assert (tree["data"]["image_size"], tree["model"]["sigma_max"], tree["sampling"]["snr"]) == DATASETS[dataset]


@pytest.mark.parametrize(("name", "millions"), [
    # Counted by diffusers' hub models of the same architectures, and by the benchmarks' networks.
    ("church_ncsnpp_continuous", 65.6), ("ffhq_ncsnpp_continuous", 105.8),
    # Ho et al. 2020, appendix B: 35.7, but with an attention after each block of a level on the way up: two more.
    ("cifar10_ddpm", 35.7 - 2 * 4 * 256**2 / 1e6),
])
def test_a_preset_has_the_published_size(name, millions):
    with torch.device("meta"):
        network = NCSNpp(score_sde.network_config(PRESETS[name]))
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_every_preset_is_a_network():
    for name in PRESETS:
        score_sde.network_config(config_files.read_config(name))

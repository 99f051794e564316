import numpy as np
import pytest
import torch

from sde_onnx.errors import ConfigError
from sde_onnx.export.checkpoints import load_network
from sde_onnx.export.checkpoints.unet2d import network_config, unet2d_key
from sde_onnx.export.network.ncsnpp import NCSNpp, NCSNppConfig

from networks import noisy_images, score_sde_network, worst_relative_error
from random_unets import random_unet, randomize

PARITY = 2e-6   # rounding: some 60 float32 layers in another order
SIGMAS = (0.01, 0.5, 50.0)


@pytest.mark.parametrize("options", [
    {},
    {"layers": 2, "attention": 0},
    {"attention": 2, "attention_head_dim": 16},
    {"center_input_sample": False, "mid_block_scale_factor": 1},
    {"norm_num_groups": 16, "norm_eps": 1e-5},
    {"attn_norm_num_groups": 8},
], ids=str)
def test_the_network_equals_diffusers(options, rng):
    unet = random_unet(16, (32, 64, 64), seed=2, **options)
    config = network_config(dict(unet.config))
    network = load_network(config, unet.state_dict(), lambda key: unet2d_key(key, config), source="unet")
    x, sigma = map(torch.tensor, noisy_images(rng, SIGMAS, (3, 16, 16)))
    with torch.no_grad():
        assert worst_relative_error(network(x, sigma), unet(x, sigma).sample) < PARITY


@pytest.mark.parametrize("name", [
    "church_ncsnpp_continuous", "cifar10_ddpm", "cifar10_ncsnpp", "cifar10_ncsnpp_continuous", "ffhq_ncsnpp_continuous",
])
def test_the_network_equals_score_sde(name, golden):
    """The original's families, those that diffusers cannot express among them; the moving average of the weights."""
    recorded = np.load(golden / "score_sde" / name / "io.npz")
    network = score_sde_network(golden / "score_sde" / name)
    with torch.no_grad():
        score = network(torch.tensor(recorded["x"]), torch.tensor(recorded["sigma"]))
    bound = PARITY if logarithms_are_rounded(recorded["sigma"]) else 2e-5
    assert worst_relative_error(score, recorded["score"]) < bound


def logarithms_are_rounded(sigma):
    """Whether PyTorch's float32 logarithm is the correctly rounded one here, as where the data were recorded.

    On some processors it is one unit off for some numbers, which phases of 10^3 rad enlarge to 1e-5 of the score.
    """
    exact = np.log(sigma.astype(np.float64)).astype(np.float32)
    return np.array_equal(torch.log(torch.tensor(sigma)).numpy(), exact)


@pytest.mark.parametrize("options", [
    {"progressive": "none"},
    {"progressive": "residual", "progressive_input": "residual"},
    {"progressive": "none", "progressive_input": "none"},
    {"progressive_combine": "cat"},
    {"resblock": "ddpm"},
    {"resblock": "ddpm", "fir": False},
    {"resblock": "ddpm", "fir": False, "resample_with_conv": False},
    {"fir": False},
    {"skip_scale": 1.0},
    {"scale_by_sigma": False},
    {"embedding": "positional", "noise_levels": (0.01, 50.0, 1000)},
    {"base_channels": 16},
    {"attn_resolutions": (16, 8, 4), "attn_head_channels": 8},
    {"image_channels": 1},
    {"image_channels": 4},
], ids=str)
def test_every_option_uses_all_its_parameters_and_is_not_ignored(options, rng):
    config = NCSNppConfig(16, (32, 32, 64), num_res_blocks=1, **{"attn_resolutions": (8,), **options})
    network = NCSNpp(config)
    randomize(network, seed=3)
    x, sigma = map(torch.tensor, noisy_images(rng, SIGMAS, (config.image_channels, 16, 16)))
    score = network(x, sigma)
    assert score.shape == x.shape
    score.square().sum().backward()
    idle = [name for name, parameter in network.named_parameters()
            if parameter.requires_grad and not (parameter.grad is not None and parameter.grad.abs().max() > 0)]
    # A key's bias shifts every logit of a softmax alike: it never has an effect.
    assert [name for name in idle if not name.endswith("attention.key.bias")] == []

    plain = NCSNpp(NCSNppConfig(16, (32, 32, 64), num_res_blocks=1, attn_resolutions=(8,)))
    if plain.state_dict().keys() == network.state_dict().keys():
        shapes = [value.shape for value in network.state_dict().values()]
        if shapes == [value.shape for value in plain.state_dict().values()]:
            plain.load_state_dict(network.state_dict())
            with torch.no_grad():
                assert worst_relative_error(plain(x, sigma), score.detach()) > 1e-3


def test_discrete_networks_take_the_nearest_level(rng):
    levels = (0.01, 50.0, 1000)
    network = NCSNpp(NCSNppConfig(16, (32, 32), embedding="positional", noise_levels=levels, num_res_blocks=1))
    randomize(network, seed=4)
    grid = np.exp(np.linspace(np.log(50.0), np.log(0.01), 1000))
    on_grid = torch.tensor(grid[[0, 400, 999]], dtype=torch.float32)
    index, value = network.noise_levels(on_grid * 1.003)   # levels are 0.86% apart
    assert index.tolist() == [0, 400, 999]
    x = torch.tensor(rng.random((3, 3, 16, 16), np.float32))
    with torch.no_grad():
        torch.testing.assert_close(network(x, on_grid), network(x, on_grid * 1.003))
    torch.testing.assert_close(value, on_grid)


@pytest.mark.parametrize(("options", "message"), [
    ({"channels": ()}, "channels is empty"),
    ({"channels": (32.0, 64)}, "not all whole numbers"),
    ({"channels": (3, 64)}, "a norm of 3 channels cannot have 0 groups"),
    ({"channels": (30, 60)}, "a norm of 30 channels cannot have 7 groups"),
    ({"attn_head_channels": 0}, "not all whole numbers"),
    ({"image_size": 18}, "cannot be halved"),
    ({"image_channels": 5}, "of 1 to 4"),
    ({"num_res_blocks": 0}, "of 1 to 64"),
    ({"noise_levels": (0.01, 50.0, 100)}, "noise_levels goes with embedding 'positional'"),
    ({"attn_resolutions": (7,)}, r"\[7\] are not among the sizes"),
    ({"attn_head_channels": 24}, "do not divide"),
    ({"norm_groups_at": {"middle0.norm0": 5}}, "cannot be a group norm of 5 groups"),
])
def test_impossible_configs_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        NCSNpp(NCSNppConfig(**{"image_size": 16, "channels": (32, 32, 64), **options}))

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sde_onnx.errors import CheckpointError, MissingExtraError, SdeOnnxError
from sde_onnx.export import from_diffusers
from sde_onnx.export.checkpoints.unet2d import network_config
from sde_onnx.files import sha256

from random_unets import random_unet

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(checkpoint16, tmp_path):
    """A copy of the 16x16 checkpoint to be spoilt."""
    return shutil.copytree(checkpoint16, tmp_path / "checkpoint")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same_weights(one, other):
    return all(torch.equal(value, other.network.state_dict()[key]) for key, value in one.network.state_dict().items())


def test_modern_layout(checkpoint16):
    checkpoint = from_diffusers(str(checkpoint16))
    assert (checkpoint.schedule.sigma_min, checkpoint.schedule.sigma_max) == (0.01, 50.0)
    assert (checkpoint.snr, checkpoint.n_corrector, checkpoint.schedule.num_scales) == (0.16, 1, 2000)
    assert checkpoint.name == checkpoint16.name
    assert checkpoint.sha256 == sha256(checkpoint16 / WEIGHTS)


def test_schedule_can_be_overridden(checkpoint16):
    checkpoint = from_diffusers(str(checkpoint16), sigma_min=0.02, sigma_max=348.0, snr=0.2)
    assert (checkpoint.schedule.sigma_min, checkpoint.schedule.sigma_max, checkpoint.snr) == (0.02, 348.0, 0.2)


def test_lone_unet_folder_needs_the_schedule(folder):
    with pytest.raises(CheckpointError, match="no scheduler_config.json: give --sigma-max and --snr"):
        from_diffusers(str(folder / "unet"))
    lone = from_diffusers(str(folder / "unet"), sigma_max=50.0, snr=0.16)
    assert same_weights(lone, from_diffusers(str(folder)))
    assert lone.schedule == from_diffusers(str(folder)).schedule


def test_legacy_root_layout_with_old_names_and_a_pickle(golden):
    checkpoint = from_diffusers(str(golden / "hub" / "legacy_root_layout"))
    assert (checkpoint.schedule.sigma_max, checkpoint.snr) == (380.0, 0.075)


def test_pickled_weights_and_old_names_are_the_same_weights(folder):
    expected = from_diffusers(str(folder))
    weights = load_file(folder / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): value for key, value in weights.items()}
    weights["time_proj.W"] = weights.pop("time_proj.weight")
    (folder / WEIGHTS).unlink()
    torch.save(weights, (folder / WEIGHTS).with_suffix(".bin"))
    assert same_weights(from_diffusers(str(folder)), expected)


@pytest.mark.parametrize(("missing", "message"), [
    ("unet/config.json", "config.json is missing"),
    (WEIGHTS, "weights are missing"),
    ("scheduler/scheduler_config.json", "scheduler_config.json is missing"),
])
def test_a_missing_file_is_named(missing, message, folder):
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=message):
        from_diffusers(str(folder))


@pytest.mark.parametrize(("changes", "message"), [
    ({"time_embedding_type": "learned", "num_train_timesteps": 10}, "option time_embedding_type = 'learned'"),
    ({"num_class_embeds": 10}, "1 missing: class_embedding.weight"),
    ({"down_block_types": ["NoBlock", "AttnSkipDownBlock2D"]}, "diffusers makes no UNet2DModel of its config: NoBlock"),
    ({"in_channels": 4}, "takes 4 channels of size 16 and gives 3"),
    ({"block_out_channels": [32]}, "diffusers makes no UNet2DModel of its config: Must provide the same number"),
    ({"act_fn": "wave"}, "diffusers makes no UNet2DModel of its config: .*wave"),
    ({"act_fn": "relu", "layers_per_block": 0}, "option layers_per_block = 0, expected 1 to 64"),
    ({"act_fn": "relu", "layers_per_block": 65}, "option layers_per_block = 65, expected 1 to 64"),
    ({"act_fn": "relu", "sample_size": 0}, "option sample_size = 0, expected 1 to 2048"),
    ({"act_fn": "relu", "sample_size": 2049}, "option sample_size = 2049, expected 1 to 2048"),
    ({"block_out_channels": [2**14 + 1]}, r"option block_out_channels = \[16385\], expected 1 to 12 whole"),
    ({"block_out_channels": [32] * 13}, "expected 1 to 12 whole numbers of 1 to 16384"),
])
def test_a_network_that_cannot_be_is_refused_in_one_line(changes, message, folder):
    edit_json(folder / "unet" / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        from_diffusers(str(folder))
    assert "\n" not in str(caught.value)


def test_without_diffusers_other_blocks_name_what_installs_it(folder, monkeypatch):
    edit_json(folder / "unet" / "config.json", down_block_types=["DownBlock2D", "AttnDownBlock2D"])
    monkeypatch.setattr("sde_onnx.extras.find_spec", lambda name: None if name == "diffusers" else name)
    with pytest.raises(MissingExtraError, match=r"pip install 'sde-onnx\[diffusers\]'"):
        from_diffusers(str(folder))


def test_another_class_is_refused(folder):
    edit_json(folder / "unet" / "config.json", _class_name="UNet2DConditionModel")
    with pytest.raises(CheckpointError, match="the network is a UNet2DConditionModel"):
        from_diffusers(str(folder))


def test_missing_and_unknown_weights_are_listed(folder):
    weights = load_file(folder / WEIGHTS)
    weights["extra.weight"] = weights.pop("conv_in.weight")
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"1 missing: conv_in.weight; 1 not known: extra.weight"):
        from_diffusers(str(folder))
    save_file(weights | {f"more.{place}": torch.zeros(1) for place in range(9)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"10 not known: extra.weight, more.0, .*, more.6 and 2 more$"):
        from_diffusers(str(folder))


def test_a_name_that_would_move_the_cursor_is_escaped(folder):
    weights = load_file(folder / WEIGHTS)
    weights["a\vb\x1b[2J\nc"] = weights["conv_in.weight"].clone()
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(CheckpointError) as error:
        from_diffusers(str(folder))
    assert str(error.value).endswith(r"1 not known: a\x0bb\x1b[2J\nc")


def test_a_wrong_shape_is_named_with_both_shapes(folder):
    weights = load_file(folder / WEIGHTS)
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :, :1].contiguous()
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"conv_in.weight has shape \[32, 3, 1, 3\], expected \[32, 3, 3, 3\]"):
        from_diffusers(str(folder))


def test_nan_weights_are_refused(folder):
    weights = load_file(folder / WEIGHTS)
    weights["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="mid_block.resnets.0.conv1.weight holds NaN"):
        from_diffusers(str(folder))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_truncated_weights_are_refused(suffix, folder):
    path = (folder / WEIGHTS).with_suffix(suffix)
    if suffix == ".bin":
        torch.save(load_file(folder / WEIGHTS), path)
        (folder / WEIGHTS).unlink()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read, it may be truncated"):
        from_diffusers(str(folder))


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (self.marker, "w"))


def test_a_pickle_that_wants_code_is_refused(folder, tmp_path):
    (folder / WEIGHTS).unlink()
    path = (folder / WEIGHTS).with_suffix(".bin")
    torch.save({"conv_in.weight": Evil(str(tmp_path / "executed"))}, path)
    with pytest.raises(CheckpointError, match="may run code, which is refused"):
        from_diffusers(str(folder))
    path.write_bytes(pickle.dumps(Evil(str(tmp_path / "executed"))))
    with pytest.raises(CheckpointError, match="may run code, which is refused"):
        from_diffusers(str(folder))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [{0: torch.zeros(1)}, {"conv_in.weight": 1}, [torch.zeros(1)]], ids=str)
def test_a_pickle_of_something_else_is_refused(content, folder):
    (folder / WEIGHTS).unlink()
    torch.save(content, (folder / WEIGHTS).with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="expected named tensors|conv_in.weight is a int, expected a tensor"):
        from_diffusers(str(folder))


def test_random_bytes_are_refused(folder, rng):
    (folder / WEIGHTS).unlink()
    for _ in range(100):
        (folder / WEIGHTS).with_suffix(".bin").write_bytes(rng.bytes(int(rng.integers(1, 400))))
        with pytest.raises(CheckpointError, match="cannot be read|is damaged"):
            from_diffusers(str(folder))


def test_a_config_that_is_not_json_is_refused(folder):
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        from_diffusers(str(folder))


@pytest.mark.parametrize(("file", "changes"), [
    ("unet/config.json", {"block_out_channels": 32}),
    ("unet/config.json", {"block_out_channels": ["a", "b"]}),
    ("unet/config.json", {"block_out_channels": [30, 60]}),
    ("unet/config.json", {"block_out_channels": [3, 64]}),
    ("unet/config.json", {"block_out_channels": [32.0, 64.0]}),
    ("unet/config.json", {"mid_block_scale_factor": 0}),
    ("unet/config.json", {"layers_per_block": float("inf")}),
    ("unet/config.json", {"norm_eps": "small"}),
    *[("unet/config.json", {"norm_num_groups": value}) for value in (7, "8", 8.0, -8, 0)],
    *[("unet/config.json", {"attention_head_dim": value}) for value in (0, -8, 8.0)],
    ("unet/config.json", {"sample_size": 17}),
    ("scheduler/scheduler_config.json", {"_class_name": "KarrasVeScheduler"}),
    ("scheduler/scheduler_config.json", {"sigma_max": "large"}),
    ("scheduler/scheduler_config.json", {"sigma_max": 0.001}),
    ("scheduler/scheduler_config.json", {"correct_steps": None}),
    ("scheduler/scheduler_config.json", {"correct_steps": -1}),
    ("scheduler/scheduler_config.json", {"snr": 0}),
], ids=str)
def test_config_values_that_make_no_sense_are_refused(file, changes, folder):
    edit_json(folder / file, **changes)
    with pytest.raises(SdeOnnxError) as caught:
        from_diffusers(str(folder))
    assert "\n" not in str(caught.value)


def test_neither_a_folder_nor_a_hub_id(tmp_path):
    with pytest.raises(CheckpointError, match="is missing, expected a checkpoint folder"):
        from_diffusers(str(tmp_path / "no" / "such" / "folder"))
    with pytest.raises(CheckpointError, match="is missing, expected a checkpoint folder"):
        from_diffusers("./chekpoint")
    (tmp_path / "file.bin").touch()
    with pytest.raises(CheckpointError, match="is a file, expected a checkpoint folder"):
        from_diffusers(str(tmp_path / "file.bin"))


def test_a_hub_id_offline_fails_with_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="the Hugging Face hub cannot be reached") as caught:
        from_diffusers("google/ncsnpp-celebahq-256")
    assert "\n" not in str(caught.value)


def test_half_precision_weights_are_read_as_float32(folder):
    save_file({key: value.half() for key, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    network = from_diffusers(str(folder)).network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_heads_are_counted_as_diffusers_does():
    config = network_config(dict(random_unet(16, (32, 64), attention_head_dim=8).config))
    assert config.attn_head_channels == 8

"""The kinds of hostile cases: each makes the case of a seed in an empty folder."""

from __future__ import annotations

import functools
import json
import math
import os
import pickle
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

import sde_onnx
from fuzz.harness import Case
from fuzz.surgery import JUNK, mutated_bytes, mutated_tree
from sde_onnx.runtime.metadata import KEY, SAMPLER_KEY, ModelMetadata
from sde_onnx.solvers.schedule import VeSchedule

__all__ = ["KINDS", "SLOW", "prepare"]

SHAPE = (3, 4, 4)
UNET = {"_class_name": "UNet2DModel", "sample_size": 4, "in_channels": 3, "out_channels": 3, "block_out_channels": [32],
        "layers_per_block": 1, "down_block_types": ["SkipDownBlock2D"], "up_block_types": ["SkipUpBlock2D"],
        "attention_head_dim": None, "mid_block_scale_factor": math.sqrt(2), "time_embedding_type": "fourier",
        "center_input_sample": True, "norm_eps": 1e-6, "norm_num_groups": None}
SCHEDULER = {"_class_name": "ScoreSdeVeScheduler", "num_train_timesteps": 10, "snr": 0.16, "sigma_min": 0.01,
             "sigma_max": 20.0, "sampling_eps": 1e-5, "correct_steps": 1}
ORIGINAL = {
    "training": {"sde": "vesde", "continuous": True, "n_iters": 10}, "sampling": {"method": "pc", "snr": 0.16},
    "data": {"image_size": 8, "num_channels": 3, "centered": False, "dataset": "CIFAR10"},
    "model": {"name": "ncsnpp", "scale_by_sigma": True, "ema_rate": 0.999, "normalization": "GroupNorm",
              "nonlinearity": "swish", "nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4],
              "resamp_with_conv": True, "conditional": True, "fir": True, "fir_kernel": [1, 3, 3, 1],
              "skip_rescale": True, "resblock_type": "biggan", "progressive": "none",
              "progressive_input": "residual", "progressive_combine": "sum", "attention_type": "ddpm",
              "init_scale": 0.0, "embedding_type": "fourier", "fourier_scale": 16, "conv_size": 3,
              "sigma_min": 0.01, "sigma_max": 50, "num_scales": 10, "dropout": 0.0}}


@functools.cache
def good_files() -> Path:
    """A folder with good files: a model, a sampler with its golden values, a diffusers and an original checkpoint."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-good-"))
    metadata = ModelMetadata(
        schedule=VeSchedule(0.01, 20.0, num_scales=10), snr=0.16, n_corrector=1, image_shape=SHAPE,
        data_range=(0.0, 1.0), architecture={"class": "Gaussian", "parameters": 0, "channels": [8], "kept": 8},
        precision="fp32", target="any", source={"name": "by hand", "sha256": "0" * 64})
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["sigma", "to_images"], ["s"]), helper.make_node("Mul", ["s", "s"], ["variance"]),
         helper.make_node("Add", ["variance", "one"], ["d"]), helper.make_node("Div", ["x", "d"], ["q"]),
         helper.make_node("Neg", ["q"], ["score"])], "score",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE]),
         helper.make_tensor_value_info("sigma", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor("to_images", TensorProto.INT64, [4], [-1, 1, 1, 1]),
         helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {KEY: metadata.to_json()})
    onnx.save(model, folder / "model.onnx")
    from click.testing import CliRunner

    from sde_onnx.cli import main

    for arguments in (["embed", "model.onnx", "-o", "sampler.onnx", "--steps", "3", "--golden", "golden.npz"],
                      ["embed", "model.onnx", "-o", "evaluation.onnx", "--steps", "3", "--kind", "evaluation"],
                      ["sample", "model.onnx", "--steps", "2", "--seeds", "0-3", "-o", "pictures"],
                      ["sample", "model.onnx", "--steps", "2", "--seeds", "0-3", "-o", "shards", "--shards"],
                      ["encode", "model.onnx", "pictures/000000.png", "-o", "codes.npz", "--steps", "2"],
                      ["gradient", "model.onnx", "-o", "gradient.onnx"]):
        full = [str(folder / part) if "." in part or part in ("pictures", "shards") else part for part in arguments]
        result = CliRunner().invoke(main, full)
        assert result.exit_code == 0, (result.output, result.exception)
    from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(**{key: value for key, value in UNET.items() if not key.startswith("_")})
    ScoreSdeVePipeline(unet=unet, scheduler=ScoreSdeVeScheduler(num_train_timesteps=10)).save_pretrained(
        folder / "checkpoint")
    return folder


def prepare() -> None:
    good_files()


def model_bytes(seed: int, folder: Path) -> Case:
    """A model file with faults in its bytes."""
    random_ = random.Random(seed)
    name = random_.choice(("model.onnx", "model.onnx", "sampler.onnx", "evaluation.onnx"))
    (folder / "m.onnx").write_bytes(mutated_bytes((good_files() / name).read_bytes(), random_))
    if name != "model.onnx":
        shutil.copy(good_files() / "golden.npz", folder / "golden.npz")
        return Case(("verify", "m.onnx", "golden.npz"))
    return _use_of_a_model(random_)


def model_metadata(seed: int, folder: Path) -> Case:
    """A model file whose metadata are another JSON."""
    random_ = random.Random(seed)
    model = onnx.load(good_files() / "model.onnx")
    _alter_json(model, KEY, random_)
    onnx.save(model, folder / "m.onnx")
    return _use_of_a_model(random_)


def model_graph(seed: int, folder: Path) -> Case:
    """A model file whose graph has other inputs, outputs or types, or operators that do not go together."""
    random_ = random.Random(seed)
    model = onnx.load(good_files() / "model.onnx")
    graph = model.graph
    value = random_.choice([*graph.input, *graph.output])
    match random_.randrange(6):
        case 0:
            value.type.tensor_type.elem_type = random_.randrange(1, 17)
        case 1:
            sizes = value.type.tensor_type.shape.dim
            random_.choice(sizes).dim_value = random_.choice((0, 1, 2, 5, 2**40, -1))
        case 2:
            value.name = random_.choice(("y", "", "x", "score"))
        case 3:
            node = random_.choice(graph.node)
            node.op_type = random_.choice(("Mul", "MatMul", "Softmax", "Loop", "NoSuchOperator", "Relu", "Cast"))
        case 4:
            random_.choice(graph.node).input[0] = random_.choice(("x", "sigma", "one", "nothing"))
        case _:
            tensor = random_.choice(graph.initializer)
            tensor.ClearField("int64_data" if tensor.int64_data else "float_data")
            tensor.raw_data = random_.randbytes(random_.choice((0, 4, 8, 32)))
    onnx.save(model, folder / "m.onnx")
    return _use_of_a_model(random_)


def sampler_metadata(seed: int, folder: Path) -> Case:
    """A sampler file whose metadata are another JSON, or golden values that are other arrays."""
    random_ = random.Random(seed)
    name = random_.choice(("sampler.onnx", "evaluation.onnx"))
    if random_.random() < 0.5:
        model = onnx.load(good_files() / name)
        _alter_json(model, SAMPLER_KEY, random_)
        onnx.save(model, folder / "m.onnx")
        shutil.copy(good_files() / "golden.npz", folder)
    else:
        shutil.copy(good_files() / name, folder / "m.onnx")
        with np.load(good_files() / "golden.npz") as held:
            arrays = dict(held)
        key = random_.choice(sorted(arrays))
        array = arrays[key]
        arrays[key] = random_.choice((
            lambda: np.atleast_1d(array)[:0], lambda: array[..., None], lambda: array.astype("U5"),
            lambda: array.astype(complex),
            lambda: array.astype(np.float64) * np.nan, lambda: np.array(None), lambda: np.array("x"),
            lambda: array.astype(np.int16), lambda: np.array({"a": 1}, object), lambda: array.ravel()[:1]))()
        if random_.random() < 0.2:
            del arrays[key]
        np.savez(folder / "golden.npz", **arrays)
    return Case(("verify", "m.onnx", "golden.npz"))


def archive_bytes(seed: int, folder: Path) -> Case:
    """A ``.npz`` with faults in its bytes, where the commands read one."""
    random_ = random.Random(seed)
    name = random_.choice(("golden.npz", "codes.npz", "shard"))
    held = next((good_files() / "shards").glob("*.npz")) if name == "shard" else good_files() / name
    (folder / "a.npz").write_bytes(mutated_bytes(held.read_bytes(), random_))
    shutil.copy(good_files() / "model.onnx", folder / "m.onnx")
    shutil.copy(good_files() / "sampler.onnx", folder / "s.onnx")
    if name == "golden.npz":
        return Case(("verify", "s.onnx", "a.npz"))
    if name == "codes.npz":
        return Case(("decode", "m.onnx", "a.npz", "-o", "out"), makes=("out",))
    return Case(("encode", "m.onnx", "a.npz", "-o", "codes.npz", "--steps", "2"), makes=("codes.npz",))


def pictures(seed: int, folder: Path) -> Case:
    """A picture with faults in its bytes."""
    random_ = random.Random(seed)
    (folder / "p.png").write_bytes(mutated_bytes((good_files() / "pictures" / "000000.png").read_bytes(), random_))
    shutil.copy(good_files() / "model.onnx", folder / "m.onnx")
    return random_.choice((
        Case(("encode", "m.onnx", "p.png", "-o", "codes.npz", "--steps", "2"), makes=("codes.npz",)),
        Case(("restore", "m.onnx", "p.png", "--operator", "gray", "--degrade", "--method", "null-space", "--steps", "2",
              "--seeds", "0", "-o", "out"), makes=("out",)),
        Case(("restore", "m.onnx", "p.png", "--operator", "mask:p.png", "--method", "null-space", "--steps", "2",
              "--seeds", "0", "-o", "out"), makes=("out",))))


def file_names(seed: int, folder: Path) -> Case:
    """Pictures and outputs of any names, in folders that are links to nothing or to themselves, or another's."""
    random_ = random.Random(seed)
    for name in ("model.onnx", "gradient.onnx", "codes.npz"):
        shutil.copy(good_files() / name, folder)
    (folder / "round").symlink_to("round")
    (folder / "nowhere").symlink_to("missing")
    (folder / "other").mkdir()
    (folder / "other" / "run.json").write_text(random_.choice(('{"precious": 1}', "[]", "{}", "")))
    stem = _odd_name(random_, most=251)
    picture = f"{stem}.png"
    shutil.copy(good_files() / "pictures" / "000000.png", folder / picture)
    name, arguments, ending, makes = random_.choice((
        ("encode", ["model.onnx", picture], ".npz", []),
        ("likelihood", ["gradient.onnx", picture], random_.choice((".csv", ".json")), []),
        ("restore", ["model.onnx", picture, "--operator", "gray", "--degrade", "--method", "null-space", "--seeds",
                     "0"], "", [picture, stem]),
        ("edit", ["model.onnx", picture, "--sigma", "1"], "", [f"{stem}-000000.png"]),
        ("decode", ["model.onnx", "codes.npz"], "", ["000000.png"]),
        ("sample", ["model.onnx", "--seeds", "0"], random_.choice((".png", ".npz", "")), ["000000.png", "run.json"])))
    output = random_.choice(("", "", "", "round/", "nowhere/", "other/", "other/new/", "model.onnx/")) + (
        f"{_odd_name(random_, most=300)}{ending}")
    if not ending and random_.random() < 0.3:
        output = random_.choice(("round", "nowhere", "other", "model.onnx"))
    return Case((name, *arguments, "--steps", "2", "-o", output), makes=(output.split("/")[0], *makes))


def _odd_name(random_: random.Random, *, most: int) -> str:
    """A name of bytes, few or many, that begins with neither a dot nor a dash."""
    some = random_.choice((b"abc", b"a b\t\n\x1b[2J", "aé日\u202e".encode(), bytes(set(range(1, 256)) - {ord("/")})))
    return os.fsdecode(b"n" + bytes(random_.choices(some, k=random_.choice((1, 2, 8, most // 2, most - 16, most)) - 1)))


def run_folders(seed: int, folder: Path) -> Case:
    """A folder of samples in which something was damaged, that a run is to go on with."""
    random_ = random.Random(seed)
    kind = random_.choice(("pictures", "shards"))
    shutil.copytree(good_files() / kind, folder / "run")
    shutil.copy(good_files() / "model.onnx", folder / "m.onnx")
    for _ in range(random_.choice((1, 1, 2))):
        victim = random_.choice(sorted((folder / "run").iterdir()))
        match random_.randrange(5):
            case 0 if victim.is_file():
                victim.write_bytes(mutated_bytes(victim.read_bytes(), random_))
            case 1 if victim.is_file():
                victim.unlink()
                victim.mkdir()
            case 2:
                record = json.loads((good_files() / kind / "run.json").read_text())
                shutil.rmtree(folder / "run" / "run.json", ignore_errors=True)
                (folder / "run" / "run.json").write_text(_as_text(mutated_tree(record, random_)))
            case 3 if victim.is_file():
                victim.unlink()
            case _:
                (folder / "run" / f"{random_.randrange(6, 10):06d}.png").write_bytes(b"no picture")
    extra = random_.choice(((), ("--grid",), ("--force",), ("--quiet",), ("--shard", "1/2")))
    return Case(("sample", "m.onnx", "--steps", "2", "--seeds", "0-5", "-o", "run",
                 *(("--shards",) if kind == "shards" else ()), *extra),
                makes=("run", "run.png"), keeps=False, goes_on=True)


def diffusers_configs(seed: int, folder: Path) -> Case:
    """A diffusers checkpoint with another config of the network or of the scheduler."""
    random_ = random.Random(seed)
    shutil.copytree(good_files() / "checkpoint", folder / "c")
    path = folder / "c" / random_.choice(("unet/config.json", "unet/config.json", "scheduler/scheduler_config.json"))
    if random_.random() < 0.1:
        path.write_bytes(mutated_bytes(path.read_bytes(), random_))
    else:
        path.write_text(_as_text(mutated_tree(json.loads(path.read_text()), random_)))
    return Case(("export", "c", "-o", "m.onnx"), makes=("m.onnx",))


def library_calls(seed: int, folder: Path) -> Case:
    """Calls of the library with arguments of wrong kinds."""
    random_ = random.Random(seed)
    model = sde_onnx.load(good_files() / "model.onnx", "cpu")
    x, sigma = np.zeros((2, *SHAPE), np.float32), np.ones(2, np.float32)
    odd = [*JUNK, x, sigma, x.astype(np.float64), x[0], sigma.astype(int), np.float32(1), torch.zeros(2, *SHAPE),
           range(3), iter([1, 2]), b"x", object(), "0-3", [0.5], np.array([0, 1]), np.array(["a"]), lambda: 0]
    junk = random_.choice(odd)
    sample: dict[str, Any] = {"model": model, "seeds": range(2), "steps": 2}
    calls: list[tuple[Callable[..., Any], dict[str, Any], list[str]]] = [
        (sde_onnx.sample, sample, ["seeds", "steps", "solver", "quality", "labels", "batch_size", "latents", "eta",
                                   "rho", "sampling", "classifier", "guidance"]),
        (model.__call__, {"x": x, "sigma": sigma}, ["x", "sigma", "label"]),
        (sde_onnx.encode, {"model": model, "images": x, "steps": 2}, ["images", "steps", "rtol", "batch_size"]),
        (sde_onnx.decode, {"model": model, "latents": x, "steps": 2}, ["latents", "steps", "atol"]),
        (sde_onnx.edit, {"model": model, "images": x, "seeds": [0, 1], "steps": 2, "sigma": 1.0},
         ["images", "seeds", "sigma", "steps", "labels"]),
        (sde_onnx.restore, {"model": model, "measurement": x[0], "operator": "box:1,1,2,2", "seeds": [0], "steps": 2,
                            "method": "null-space"}, ["measurement", "operator", "seeds", "noise", "method", "steps"]),
        (sde_onnx.load, {"path": good_files() / "model.onnx"}, ["path", "provider", "precision", "threads"]),
        (sde_onnx.resolve, {"model": model.metadata}, ["quality", "solver", "steps", "options"]),
    ]
    function, arguments, names = random_.choice(calls)
    changed = arguments | {random_.choice(names): junk}
    return Case(call=partial(function, **changed))


def command_lines(seed: int, folder: Path) -> Case:
    """Commands with options and values drawn at random."""
    from sde_onnx.cli import main

    random_ = random.Random(seed)
    shutil.copy(good_files() / "model.onnx", folder / "m.onnx")
    shutil.copy(good_files() / "pictures" / "000000.png", folder / "p.png")
    for made in ("gradient.onnx", "sampler.onnx", "golden.npz", "codes.npz"):
        shutil.copy(good_files() / made, folder)
    name, arguments, makes = random_.choice((
        ("sample", ["m.onnx", "--steps", "2", "--seeds", "0-1", "-o", "o.png"], ("o.png",)),
        ("restore", ["m.onnx", "p.png", "--operator", "box:1,1,1,1", "--method", "null-space", "--steps", "2", "-o",
                     "o"], ("o",)),
        ("encode", ["m.onnx", "p.png", "-o", "o.npz", "--steps", "2"], ("o.npz",)),
        ("decode", ["m.onnx", "codes.npz", "-o", "o", "--steps", "2"], ("o",)),
        ("interpolate", ["m.onnx", "--from", "p.png", "--to", "3", "-o", "o.png", "--steps", "2"], ("o.png",)),
        ("likelihood", ["gradient.onnx", "p.png", "-o", "o.csv", "--steps", "2"], ("o.csv",)),
        ("gradient", ["m.onnx", "-o", "o.onnx"], ("o.onnx",)),
        ("verify", ["sampler.onnx", "golden.npz"], ()),
        ("bench", ["m.onnx", "--seconds", "0.01"], ()),
        ("edit", ["m.onnx", "p.png", "--sigma", "1", "--steps", "2", "-o", "o"], ("o",)),
        ("embed", ["m.onnx", "--steps", "3", "-o", "o.onnx"], ("o.onnx",)),
        ("info", ["m.onnx"], ())))
    options = [option for option in main.commands[name].params if option.opts[0].startswith("-")]
    values = ("", "0", "1", "2", "-1", "0.5", "nan", "inf", "1e9", "x", "0-3", "3-0", "1,2", "é", "m.onnx", "p.png",
              "/", "/dev/null", ".", "a/b/c.png", "box:0,0,9,9", "gray,gray", "mask:p.png", "blur:-1", "random:2",
              "karras", "pc", "rk45", "cpu", "fp16", "10000000000", "99999999999999999999999", "o.gif", "--help")
    for option in random_.sample(options, min(len(options), random_.choice((1, 1, 2, 3)))):
        if "threads" in option.name or option.name == "model":
            continue
        arguments += [option.opts[0]] if getattr(option, "is_flag", False) else [option.opts[0], random_.choice(values)]
    outputs = [arguments[index + 1].split("/")[0] for index, part in enumerate(arguments[:-1]) if part in (
        "-o", "--output", "--gif", "--golden", "--triton", "--plot")]
    beside = [f"{output}.png" for output in outputs if "--grid" in arguments]   # of a folder
    if "--triton" in arguments:   # whose folder has the sampler's name
        beside += [Path(output).stem for output in (*makes, *outputs)]
    if "." in outputs:   # the pictures of a folder
        beside += ["000000.png", "000001.png", "p-000000.png", "run.json"]
    return Case((name, *arguments), makes=(*makes, *outputs, *beside), keeps="--force" not in arguments)


def original_configs(seed: int, folder: Path) -> Case:
    """A checkpoint of the original with another config, as JSON or as Python."""
    random_ = random.Random(seed)
    tree = mutated_tree(ORIGINAL, random_)
    torch.save({"model": {"module.all_modules.0.W": torch.zeros(16)}, "ema": {"shadow_params": [torch.zeros(16)]}},
               folder / "c.pth")
    if random_.random() < 0.5:
        (folder / "config.json").write_text(_as_text(tree))
        return Case(("export", "c.pth", "--config", "config.json", "-o", "m.onnx"), makes=("m.onnx",))
    lines = ["import ml_collections", "def get_config():", "    config = ml_collections.ConfigDict()"]
    for section, values in tree.items() if isinstance(tree, dict) else ():
        lines.append(f"    {section} = config.{section} = ml_collections.ConfigDict()")
        for key, value in values.items() if isinstance(values, dict) else ():
            lines.append(f"    {section}.{key} = {value!r}")
    text = "\n".join([*lines, "    return config", ""]).encode(errors="surrogateescape")
    (folder / "config.py").write_bytes(mutated_bytes(text, random_) if random_.random() < 0.3 else text)
    return Case(("export", "c.pth", "--config", "config.py", "-o", "m.onnx"), makes=("m.onnx",))


def pickles(seed: int, folder: Path) -> Case:
    """A checkpoint of the original whose tree is another, or with faults in its bytes."""
    random_ = random.Random(seed)
    tree: dict[str, Any] = {"model": {"module.all_modules.0.W": torch.zeros(16)},
                            "ema": {"shadow_params": [torch.zeros(16)], "decay": 0.999}, "step": 1}
    odd = (None, {}, [], 1, "x", {1: 2}, torch.zeros(2), torch.zeros(2).to_sparse(), torch.zeros(2, device="meta"),
           {"shadow_params": None}, {"shadow_params": [None]}, {None: torch.zeros(1)}, {"a": {"b": torch.zeros(1)}})
    if random_.random() < 0.7:
        tree[random_.choice(("model", "ema", "step"))] = random_.choice(odd)
    if random_.random() < 0.2:
        tree = random_.choice(odd)   # type: ignore[assignment]
    if random_.random() < 0.1:
        (folder / "c.pth").write_bytes(pickle.dumps(tree))
    else:
        torch.save(tree, folder / "c.pth")
        if random_.random() < 0.4:
            (folder / "c.pth").write_bytes(mutated_bytes((folder / "c.pth").read_bytes(), random_))
    return Case(("export", "c.pth", "--config", "cifar10_ncsnpp", "-o", "m.onnx"), makes=("m.onnx",))


def _use_of_a_model(random_: random.Random) -> Case:
    return random_.choice((
        Case(("info", "m.onnx")), Case(("info", "--json", "m.onnx")),
        Case(("sample", "m.onnx", "--steps", "2", "--seeds", "0-1", "-o", "o.png"), makes=("o.png",)),
        Case(("sample", "m.onnx", "--steps", "2", "--seeds", "0-1", "-o", "o.npz"), makes=("o.npz",))))


def _alter_json(model: onnx.ModelProto, key: str, random_: random.Random) -> None:
    """Puts another JSON text under a key of the metadata."""
    properties = {item.key: item.value for item in model.metadata_props}
    if random_.random() < 0.05:
        properties[key] = random_.choice(("", "[" * 100_000, "{", "null", "[1]", '"x"', "{}", "1" * 5000))
    else:
        properties[key] = _as_text(mutated_tree(json.loads(properties[key]), random_))
    helper.set_model_props(model, properties)


def _as_text(tree: Any) -> str:
    """JSON, with what JSON does not have (NaN) as Python writes it."""
    return json.dumps(tree)


KINDS: dict[str, Callable[[int, Path], Case]] = {function.__name__: function for function in (
    model_bytes, model_metadata, model_graph, sampler_metadata, archive_bytes, pictures, run_folders, diffusers_configs,
    original_configs, pickles, library_calls, command_lines, file_names)}
SLOW = {"diffusers_configs": 20}   # of which each twentieth seed is taken: many are exported, which takes a second

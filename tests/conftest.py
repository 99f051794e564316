"""What tests share: recorded reference data, random checkpoints, the bundled model."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

# Before torch and ONNX Runtime are imported: each of several workers has one core, and so one thread of either.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(cores)]})

import numpy as np
import onnx
import pytest
import torch
from filelock import FileLock

import sde_onnx
from sde_onnx.export import export, from_diffusers, from_edm
from sde_onnx.runtime.providers import usable_providers

from random_unets import random_unet, save_pipeline

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))
        if "gpu" in item.keywords and "cuda" not in usable_providers():
            item.add_marker(pytest.mark.skip(reason="no CUDA device that ONNX Runtime can use"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a file or folder once for all workers: ``shared(name, make)`` is its path, which ``make`` fills."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent   # of all workers

    def made(name: str, make: Callable[[Path], object]) -> Path:
        path, finished = root / name, root / f"{name}.made"
        with FileLock(root / f"{name}.lock"):
            if not finished.exists():
                make(path)
                finished.touch()
        return path

    return made


UNNAMED = " at 0x"   # of an object's place in memory, in its repr: nothing to know it by in another process


def fingerprint(value: object) -> str | None:
    """What an exporter's argument is, the same in every process; ``None`` where that cannot be told."""
    digest = hashlib.sha256()

    def add(item: object) -> bool:
        if isinstance(item, torch.Tensor | np.ndarray):
            digest.update(f"{item.dtype} {tuple(item.shape)}".encode())
            held = item if isinstance(item, np.ndarray) else item.detach().reshape(-1).view(torch.uint8).numpy()
            digest.update(held.tobytes())
            return True
        if isinstance(item, torch.nn.Module):
            own = {name: held for name, held in vars(item).items() if name not in vars(torch.nn.Module())}
            digest.update(f"{type(item).__module__}.{type(item).__qualname__} {item.training}".encode())
            return all(add(part) for held in (own, item._parameters, item._buffers, item._modules)
                       for pair in sorted(held.items()) for part in pair)
        if isinstance(item, dict):   # of diffusers' configs, not where and how the network was read
            item = sorted((pair for pair in item.items() if not str(pair[0]).startswith("_")), key=repr)
        if isinstance(item, list | tuple):   # JSON makes one of the other
            digest.update(f"{len(item)}".encode())
            return all(add(part) for part in item)
        if type(item).__repr__ is object.__repr__:   # attention's processors, say
            return add([type(item), *sorted(vars(item).items())])
        digest.update(f"{item!r}\n".encode())
        return UNNAMED not in repr(item)

    return digest.hexdigest() if add(value) else None


def sizes(arguments: object) -> object:
    """The types and shapes of example inputs: what they hold does not count."""
    if isinstance(arguments, list | tuple):
        return [sizes(item) for item in arguments]
    return arguments.dtype, tuple(arguments.shape)


@pytest.fixture(scope="session", autouse=True)
def traced_once(shared) -> Iterator[None]:
    """torch's exporter, which takes most of the suite's time, traces a module once for all tests that export it.

    It would also read the sources of 500 operators for every trace, half the time of a small one: here it does so once.
    """
    from torch.onnx._internal.exporter._registration import ONNXRegistry  # private: it may move

    export, from_torchlib = torch.onnx.export, functools.cache(ONNXRegistry.from_torchlib)

    def remembered(module: object, arguments: object, *file: object, **options: object) -> object:
        key = None if file or "f" in options else fingerprint((module, sizes(arguments), repr(options)))
        if key is None:
            return export(module, arguments, *file, **options)
        path = shared(f"{key}.trace", lambda path: onnx.save(export(module, arguments, **options).model_proto, path))
        return SimpleNamespace(model_proto=onnx.load(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", remembered)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
        yield


@pytest.fixture(scope="session")
def torchvision_folder() -> Iterator[Path]:
    """A folder with torchvision, and deepinv and azula, which import it, on the path: its kernels may need CUDA.

    ``pip install --no-deps --target FOLDER torchvision==0.28.0 deepinv azula einops natsort h5py torchmetrics
    lightning-utilities`` makes one, SDE_ONNX_TORCHVISION names it.
    """
    folder = os.environ.get("SDE_ONNX_TORCHVISION")
    if not folder:
        pytest.skip("SDE_ONNX_TORCHVISION names no folder with torchvision")
    for kernel in ("nms", "qnms"):   # which its import asks for
        torch.library.define(f"torchvision::{kernel}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield Path(folder)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The recorded reference data, which lie beside the checkout and are never copied into it."""
    folder = Path(os.environ.get("SDE_ONNX_GOLDEN", ROOT.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}: set SDE_ONNX_GOLDEN to their folder")
    return folder


@pytest.fixture(scope="session")
def checkpoint16(shared) -> Path:
    """A 16x16 checkpoint of random weights, saved by diffusers in the modern layout."""
    return shared("checkpoint16", lambda folder: save_pipeline(folder, random_unet(16, (32, 64), seed=1),
                                                               sigma_max=50.0, snr=0.16))


@pytest.fixture(scope="session")
def model_file(checkpoint16, shared) -> Path:
    """The 16x16 checkpoint, exported."""
    return shared("random16.onnx", lambda path: export(from_diffusers(str(checkpoint16)), path))


@pytest.fixture(scope="session")
def model(model_file) -> sde_onnx.ScoreModel:
    return sde_onnx.load(model_file, provider="cpu")


@pytest.fixture(scope="session")
def labelled_file(golden, shared) -> Path:
    """EDM's recorded network of ten labels, 16x16; a label may be left out."""
    return shared("cifar10_cond_ve.onnx",
                  lambda path: export(from_edm(golden / "edm" / "cifar10_cond_ve" / "network.pkl"), path))


@pytest.fixture(scope="session")
def digits() -> sde_onnx.ScoreModel:
    """The bundled model."""
    return sde_onnx.load(sde_onnx.bundled_model(), provider="cpu")


@pytest.fixture(scope="session")
def digits_checkpoint() -> Path:
    """The diffusers checkpoint that the bundled model was exported from."""
    return ROOT / "examples" / "digits" / "checkpoint"


@pytest.fixture(scope="session")
def half(digits_checkpoint, shared) -> Path:
    """The digits, exported with weights stored in half precision."""
    return shared("half.onnx", lambda path: export(from_diffusers(digits_checkpoint), path, weights="fp16"))


@pytest.fixture(scope="session")
def for_cuda(checkpoint16, shared) -> Path:
    """The 16x16 checkpoint, exported for CUDA in half precision."""
    return shared("cuda16.onnx", lambda path: export(from_diffusers(str(checkpoint16)), path, target="cuda",
                                                     precision="fp16"))


@pytest.fixture
def rng(request) -> np.random.Generator:
    """Fresh inputs at each run; the seed is printed when a test fails."""
    seed = int(os.environ.get("SDE_ONNX_TEST_SEED", int.from_bytes(os.urandom(4))))
    print(f"SDE_ONNX_TEST_SEED={seed}")
    return np.random.default_rng(seed)

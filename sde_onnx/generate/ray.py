"""Sampling on Ray: a class for Ray Data's ``map_batches``, and a folder filled by actors.

    import ray
    from sde_onnx.generate.ray import Sampler

    seeds = ray.data.from_items([{"seed": seed} for seed in range(50_000)])
    images = seeds.map_batches(Sampler, fn_constructor_args=("celebahq.onnx",), fn_constructor_kwargs={"threads": 4},
                               num_cpus=4, concurrency=16, batch_size=32)

A session is built in the actor, since it cannot be sent there. An image depends on its seed alone, so it does not
matter which actor makes it, or that one makes it again after another died.

Source: Ray's documentation, "Stateful transforms" of Ray Data, and "Actor fault tolerance".
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_onnx.errors import ProviderError, SdeOnnxError, first_line
from sde_onnx.extras import require_ray
from sde_onnx.generate.folder import FolderRun
from sde_onnx.generate.sample import sample_batches
from sde_onnx.images import to_uint8
from sde_onnx.runtime.classifier import load_classifier
from sde_onnx.runtime.load import load
from sde_onnx.runtime.providers import OF_NVIDIA
from sde_onnx.solvers.options import GUIDANCE

__all__ = ["Cluster", "Sampler", "sample_into"]

TRIES = 3   # of a batch whose actor died: one that kills them all ends the run


class Sampler:
    """Samples batches of seeds: what an actor runs.

    Args:
        model: a model file, at the same place on every machine.
        provider, precision, threads: see :func:`sde_onnx.load`; ``threads`` should be the actor's ``num_cpus``.
        classifier: a classifier's file, or none.
        how: the arguments of :func:`sde_onnx.sample_batches` but seeds and classifier, by name.
    """

    def __init__(
        self, model: str, *, provider: str = "auto", precision: str | None = None, threads: int | None = None,
        classifier: str | None = None, **how: Any,
    ) -> None:
        self._model = load(model, provider, precision=precision, threads=threads)
        self._how: dict[str, Any] = {"guidance": GUIDANCE} | how
        if classifier is not None:
            self._how["classifier"] = load_classifier(classifier, provider, threads=threads,
                                                      image_shape=self._model.metadata.image_shape)

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Adds ``image``, uint8 ``[N, H, W, C]``, to a batch with ``seed``, ``[N]``."""
        parts = [images for _, images, _ in self.sampled([int(seed) for seed in batch["seed"]])]
        return {**batch, "image": to_uint8(np.concatenate(parts))}

    def sampled(self, seeds: list[int]) -> Iterator[tuple[list[int], NDArray[np.float32], int]]:
        """Batches of them: seeds, images ``[N, C, H, W]`` in [0, 1], and evaluations."""
        for batch in sample_batches(self._model, seeds, **{"batch_size": len(seeds)} | self._how):
            for step in batch.steps:   # noqa: B007  # the last one is the result
                pass
            yield batch.seeds, np.clip(step.x_mean, 0, 1), step.nfe


class FolderSampler:
    """Writes images into a run's folder, which every machine sees: an actor.

    Args:
        folder: of a run that has begun.
        form: ``shards`` and ``subdirs`` of :class:`FolderRun`.
        arguments: of :class:`Sampler`, which is made with the first batch: Ray tells a task's errors better than those
            of an actor that could not be made.
    """

    def __init__(self, folder: str, form: Mapping[str, bool], arguments: Mapping[str, Any]) -> None:
        self._folder, self._form, self._arguments = Path(folder), form, arguments

    @functools.cached_property
    def _sampler(self) -> Sampler:
        return Sampler(**self._arguments)

    @functools.cached_property
    def _run(self) -> FolderRun:
        """Of which each file is read once."""
        return FolderRun(self._folder, force=False, **self._form)

    def write(self, seeds: Sequence[int]) -> tuple[int, int, int]:
        """Makes the images of seeds that are not there: how many there are, were made, and the most evaluations of one.

        Another actor may have made them, and died before it could say so.
        """
        made = most = 0
        if not self._run.has(seeds):
            for its_seeds, images, nfe in self._sampler.sampled(list(seeds)):
                made += self._run.write(its_seeds, images)
                most = max(most, nfe)
        return len(seeds), made, most


@dataclass(frozen=True)
class Cluster:
    """What a run has of Ray.

    Args:
        address: of a cluster, or ``"auto"``: the one that this machine belongs to, or a new one on this machine.
        threads: CPUs of an actor.
        provider: of its sessions; one of a GPU takes one for each actor. ``"auto"`` is cuda where the cluster has GPUs,
            and else cpu: the same for all.
    """

    address: str
    threads: int
    provider: str

    @property
    def _needs(self) -> dict[str, float]:
        return {"CPU": float(self.threads)} | ({"GPU": 1.0} if self.chosen in (*OF_NVIDIA, "webgpu") else {})

    @property
    def chosen(self) -> str:
        """The provider of all actors, once :meth:`room` has connected."""
        import ray

        if self.provider != "auto":
            return self.provider
        resources: dict[str, float] = ray.cluster_resources()   # type: ignore[no-untyped-call]
        return "cuda" if resources.get("GPU") else "cpu"

    def room(self) -> int:
        """How many samplers the cluster has room for; connects to it, once a process.

        Raises:
            MissingExtraError: Ray is not installed.
            ProviderError: there is no such cluster, or no room for one.
        """
        require_ray()
        import ray

        if not ray.is_initialized():
            how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            try:
                ray.init(address=self.address, **how)
            except (ConnectionError, ValueError) as error:   # nobody is there, or it is no address
                if self.address != "auto":
                    raise ProviderError(f"no Ray at {self.address}: {first_line(error)}") from None
                ray.init(include_dashboard=False, **how)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]   # type: ignore[no-untyped-call]
        count = sum(int(min(has.get(name, 0) // each for name, each in self._needs.items())) for has in machines)
        if count == 0:
            needs = " and ".join(f"{each:g} {name}" for name, each in self._needs.items())
            most = ", ".join(f"{max(has.get(name, 0) for has in machines):g} {name}" for name in self._needs)
            raise ProviderError(f"no machine of the Ray cluster has room for one sampler, which needs {needs}: the "
                                f"largest has {most}")
        return count

    def actors(self, count: int, *arguments: Any) -> list[Any]:
        """So many :class:`FolderSampler` actors; at most :meth:`room`."""
        import ray

        remote = ray.remote(num_cpus=self._needs["CPU"], num_gpus=self._needs.get("GPU", 0), max_restarts=-1,
                            max_task_retries=TRIES)(FolderSampler)
        return [remote.remote(*arguments) for _ in range(count)]


def sample_into(
    folder: Path, batches: Sequence[Sequence[int]], cluster: Cluster, *, form: Mapping[str, bool], **arguments: Any,
) -> Iterator[tuple[int, int, int]]:
    """Fills the folder of a run with the images of batches of seeds; gives :meth:`FolderSampler.write` of each.

    Args:
        folder: of a run that has begun, in a file system that all machines share.
        batches: seeds that are sampled together.
        cluster: where.
        form: ``shards`` and ``subdirs`` of :class:`FolderRun`.
        arguments: of :class:`Sampler`.

    Raises:
        SdeOnnxError: what a sampler raises.
        ProviderError: see :meth:`Cluster.room`; or the actors of one batch died again and again.
    """
    actors = cluster.actors(min(cluster.room(), len(batches)), str(folder), form,
                            {"provider": cluster.chosen, "threads": cluster.threads, **arguments})
    from ray.exceptions import RayError, RayTaskError
    from ray.util import ActorPool

    pool = ActorPool(actors)   # which end when nothing here holds them any more
    del actors
    try:
        yield from pool.map_unordered(lambda actor, seeds: actor.write.remote(seeds), list[Any](batches))
    except RayTaskError as error:
        if isinstance(error.cause, SdeOnnxError):
            raise error.cause from None
        raise
    except RayError as error:
        raise ProviderError(f"Ray gave up on a batch, {TRIES + 1} tries at the most: {first_line(error)}") from None

"""Restoration: images that agree with a measurement, sampled by an unconditional model.

    y = A x_0 + sigma_y n

``operators`` has A, ``guidance`` the methods, and what is here joins them to a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sde_onnx.checks import checked_model
from sde_onnx.errors import InputError, one_line
from sde_onnx.generate.sample import Batch, LabelsInTurn, batches_of, choose_batch_size, label_of, last_images
from sde_onnx.guidance.measurement import Measurement, Product
from sde_onnx.guidance.measuring import measurement_of
from sde_onnx.guidance.methods import METHODS, SOLVER, default_method, options_of
from sde_onnx.image_files import Images
from sde_onnx.operators import Operator
from sde_onnx.operators.given import operator_for
from sde_onnx.runtime.score_model import ScoreModel
from sde_onnx.solvers.catalogue import SPACINGS, ModelDefaults, Sampling, function_named, resolve
from sde_onnx.solvers.noise import check_seeds
from sde_onnx.solvers.plan import Step
from sde_onnx.solvers.protocols import NoiseSource, Score

__all__ = ["Restoration", "resolve_restoration", "restore", "restore_batches"]

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Restoration:
    """A resolved request: how to restore."""

    method: str                   # a key of METHODS
    options: Mapping[str, Any]    # the method's own
    sampling: Sampling            # the solver that it runs under, or whose noise levels it takes

    @property
    def products(self) -> int:
        """Vector-Jacobian products for each network evaluation, or step: what the method's ``product_for`` says."""
        return int(self.options.get("iterations", 1)) if METHODS[self.method].needs_gradient else 0

    def to_json(self) -> dict[str, Any]:
        """All that an image depends on but model, measurement, operator and seed, as JSON values."""
        return {"method": self.method, "method_options": dict(self.options), **self.sampling.to_json()}

    def __str__(self) -> str:
        """For people."""
        named = "".join(f" {name} {value}" for name, value in self.options.items())
        return f"{self.method}{named}, {self.sampling}"


def restore(
    model: ScoreModel,
    measurement: Images,
    operator: Any,
    seeds: Sequence[int],
    steps: int | None = None,
    *,
    method: str | None = None,
    noise: float = 0.0,
    gradient: ScoreModel | None = None,
    solver: str | None = None,
    quality: str | None = None,
    restoration: Restoration | None = None,
    labels: LabelsInTurn = None,
    batch_size: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Float32Array:
    """Samples images that agree with a measurement, one for each seed.

    Args:
        model: a loaded model file.
        measurement: what the operator makes of an image: ``[C, H, W]`` for all seeds, or ``[N, C, H, W]``, one for
            each; float32 in data units ([0, 1]), or uint8, whose rounding counts as noise. What a mask hides is not
            read.
        operator: of :mod:`sde_onnx.operators`, a text such as ``"blur:1.5,down:2"``, or an object of one's own,
            deepinv's or azula's: :func:`sde_onnx.operators.foreign.adapted`.
        seeds: 0 to 2^64 - 1 each.
        steps, solver, quality: see :func:`sde_onnx.sample`; the solver that the method runs under.
        method: a key of :data:`sde_onnx.guidance.methods.METHODS`; ``"posterior"`` where there is a gradient, else
            ``"null-space"``.
        noise: sigma_y, the standard deviation of the measurement's noise, data units, >= 0.
        gradient: the model's gradient file, loaded, for methods that need one; ``model`` itself if it is one, but then
            each of its evaluations costs a product.
        restoration: in place of method, solver, steps, quality and options, of :func:`resolve_restoration`.
        labels, batch_size, progress: see :func:`sde_onnx.sample`.
        options: of the method (:data:`sde_onnx.guidance.methods.METHOD_OPTIONS`) and of the solver.

    Returns:
        ``[N, C, H, W]`` float32 in [0, 1].

    Raises:
        InputError: an argument out of its range, a measurement of another shape than the operator gives, an operator
            that does not fit the model's images or whose adjoint is none, or a method whose gradient is missing.
        NonFiniteError: NaN or infinity appeared.
    """
    checked_model(model)
    if gradient is not None:
        checked_model(gradient, "gradient")
    asked: dict[str, Any] = {"method": method, "solver": solver, "quality": quality, "steps": steps,
                             "options": options}
    if restoration is None:
        has_gradient = gradient is not None or model.metadata.gradient
        restoration = resolve_restoration(model.metadata, has_gradient=has_gradient, **asked)
    elif not isinstance(restoration, Restoration):
        raise InputError(f"restoration is {one_line(restoration)}, expected what resolve_restoration returns")
    elif named := [name for name, value in asked.items() if value not in (None, {})]:
        raise InputError(f"restoration says how already: leave out {', '.join(named)}")
    linear = operator_for(operator, model.metadata.image_shape)
    batches = restore_batches(model, measurement, linear, seeds, restoration, noise=noise, gradient=gradient,
                              labels=labels, batch_size=batch_size)
    return np.concatenate([*last_images(batches, len(seeds), restoration.sampling.steps or 0, progress=progress)])


def restore_batches(
    model: ScoreModel, measurement: Images, operator: Operator, seeds: Sequence[int], restoration: Restoration, *,
    noise: float = 0.0, gradient: ScoreModel | None = None, labels: LabelsInTurn = None, batch_size: int | None = None,
) -> Iterator[Batch]:
    """Returns the batches of :func:`restore`, each an iterator over its steps, for whoever wants to see them.

    Args:
        operator: of :func:`sde_onnx.operators.given.operator_for`.
        restoration: of :func:`resolve_restoration`.

    Other arguments and errors are those of :func:`restore`; they are checked before the first batch.
    """
    check_seeds(seeds)
    restoration.sampling.check_model(model.metadata)
    known = measurement_of(measurement, operator, noise, model.metadata.image_shape, len(seeds))
    products = None
    if METHODS[restoration.method].needs_gradient:
        gradient = model if gradient is None else gradient
        products = _products(model, gradient, seeds, labels)
        batch_size = choose_batch_size(gradient, len(seeds), batch_size,
                                       images_depend=restoration.sampling.depends_on_batch)
    return batches_of(model, seeds, restoration.sampling, labels=labels, batch_size=batch_size,
                      loop=partial(_loop, restoration, known, products))


def resolve_restoration(
    model: ModelDefaults, *, has_gradient: bool, method: str | None = None, solver: str | None = None,
    quality: str | None = None, steps: int | None = None, options: Mapping[str, Any] | None = None,
) -> Restoration:
    """Completes and checks what was asked for, before anything is computed.

    Args:
        model: decides what solvers leave to it.
        has_gradient: whether there is a gradient file.
        method, solver, quality, steps, options: see :func:`restore`.

    Raises:
        InputError: a method without its gradient, an unknown name, an option that neither method nor solver has, or a
            value out of its range.
    """
    name = default_method(has_gradient=has_gradient) if method is None else method
    own, others = options_of(name, options or {})
    if METHODS[name].needs_gradient and not has_gradient:
        free = [other for other, candidate in METHODS.items() if not candidate.needs_gradient]
        raise InputError(f"method {name} needs the model's gradient file, which `sde-onnx gradient` makes; without one "
                         f"there are {', '.join(free)}")
    if solver is None and quality is None:
        solver = SOLVER
    sampling = resolve(model, quality=quality, solver=solver, steps=steps, options=others)
    if METHODS[name].levels_only and (idle := [option for option in others if option not in SPACINGS]):
        raise InputError(f"method {name} takes nothing but the noise levels of {sampling.solver}: leave out "
                         f"{', '.join(idle)}")
    if METHODS[name].is_loop and sampling.plan is None:
        raise InputError(f"method {name} needs the solver's noise levels, which {sampling.solver} chooses as it goes: "
                         "take another")
    plan = sampling.plan
    if METHODS[name].levels_only and plan is not None and not (
            len(plan.start) == 1 and math.isclose(plan.start[0], plan.levels[0], rel_tol=1e-6)):
        raise InputError(f"method {name} goes from noise level to noise level, the first is the model's sigma_max: "
                         f"that is not how {sampling} begins")
    if METHODS[name].needs_gradient and sampling.wrappers:
        raise InputError(f"measure_noise does not go with method {name}, whose products are at the solver's sigma")
    return Restoration(name, own, sampling)


def _products(
    model: ScoreModel, gradient: ScoreModel, seeds: Sequence[int], labels: LabelsInTurn
) -> Callable[[slice], Product]:
    """Of which images a batch holds: the vector-Jacobian product of their scores."""
    gradient.check_gradient()
    if (gradient.metadata.source, gradient.metadata.image_shape) != (model.metadata.source, model.metadata.image_shape):
        raise InputError(f"{gradient.path.name} is the gradient of another model than {model.path.name}")
    label = label_of(seeds, labels)
    if label is None:
        return lambda rows: gradient.vjp
    return lambda rows: partial(gradient.vjp, label=label[rows])


def _loop(
    restoration: Restoration, measurement: Measurement, products: Callable[[slice], Product] | None, rows: slice,
    score: Score, noise: NoiseSource,
) -> Iterator[Step]:
    """The steps of one batch."""
    method, sampling = METHODS[restoration.method], restoration.sampling
    function = function_named("guidance", method.function)
    arguments: dict[str, Any] = dict(restoration.options)
    if products is not None:
        arguments["vjp"] = products(rows)
    if not method.is_loop:
        return sampling.run(function(score, measurement.of(rows), **arguments), noise)
    steps: Iterator[Step] = function(score, noise, measurement.of(rows), sampling=sampling, **arguments)
    return steps

"""``sde-onnx embed`` and ``sde-onnx verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sde_onnx.cli.options import PROVIDER, given, request_options, solver_options
from sde_onnx.errors import shown_size

__all__ = ["embed_command", "verify_command"]


@click.command("embed")
@click.argument("model", metavar="[MODEL]", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The .onnx file.")
@request_options
@click.option("--max-steps", type=click.IntRange(min=1),
              help="Also an input `steps`, up to this number; a sampler's default is --steps.")
@click.option("--kind", type=click.Choice(["sampler", "evaluation"]), default="sampler",
              help="The whole loop, or one evaluation of it for programs with their own.")
@click.option("--every", type=click.IntRange(min=1),
              help="Also an output `frames`: the image after every so many steps.")
@click.option("--operator", metavar="mask",
              help="Also inputs `mask` and `measurement`: restores images of which the mask's pixels are known.")
@click.option("--golden", type=click.Path(dir_okay=False, path_type=Path),
              help="Also a .npz of what a port must reproduce, for `sde-onnx verify`.")
@click.option("--triton", type=click.Path(file_okay=False, path_type=Path),
              help="Also put the sampler into this model repository of the Triton Inference Server.")
@solver_options
@click.option("--force", is_flag=True, help="Replace existing files.")
def embed_command(
    model: Path | None,
    output: Path,
    quality: str | None,
    solver: str | None,
    steps: int | None,
    max_steps: int | None,
    kind: str,
    every: int | None,
    operator: str | None,
    golden: Path | None,
    triton: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Make a sampler of a model file: one ONNX file, seeds in, images out; of the bundled digits without MODEL.

    Its images are those of `sde-onnx sample` with the same solver, steps and seeds. Needs the export extra.

    \b
    Example: sde-onnx embed m.onnx -o sampler.onnx --solver sde-dpmpp-2m --steps 25 --golden golden.npz
    """
    from sde_onnx.extras import require_export

    require_export()
    from sde_onnx.export.embedding.loop import embed
    from sde_onnx.export.embedding.triton import check_repository, write_repository
    from sde_onnx.files import check_writable
    from sde_onnx.generate.sample import default_batch_size
    from sde_onnx.golden import write_golden
    from sde_onnx.models import bundled_model
    from sde_onnx.runtime.load import load, read_metadata
    from sde_onnx.solvers.catalogue import resolve

    model = model or bundled_model()
    check_writable(output, force=force, inputs=[Path(model)])
    if golden is not None:
        if golden.suffix.lower() != ".npz":
            raise click.UsageError(f"--golden {golden}: expected a .npz")
        check_writable(golden, force=force, inputs=[Path(model), output])
    if triton is not None:
        if kind != "sampler":
            raise click.UsageError("--triton serves a sampler: leave out --kind evaluation")
        check_repository(triton, name=output.stem, force=force, inputs=[Path(model), output])
    metadata = read_metadata(model)
    sampling = resolve(metadata, quality=quality, solver=solver, steps=steps, options=given(options))
    golden_model = None if golden is None else load(model, "cpu")   # refused, if it is, before the work
    embed(model, output, sampling, max_steps=max_steps, kind=kind, every=every, operator=operator, force=force)
    click.echo(f"{output}: {shown_size(output.stat().st_size)}, {kind} of {sampling}, nfe {sampling.evaluations}"
               f"{f', operator {operator}' * bool(operator)}{f', for {metadata.target}' * (metadata.target != 'any')}")
    if golden is not None and golden_model is not None:
        write_golden(golden_model, golden, sampling, operator=operator)
        click.echo(golden)
    if triton is not None:
        click.echo(write_repository(output, triton, metadata, name=output.stem, force=force, operator=operator,
                                    max_batch_size=default_batch_size(metadata.image_shape)))


@click.command("verify")
@click.argument("sampler", type=click.Path(path_type=Path))
@click.argument("golden", type=click.Path(path_type=Path))
@click.option("--provider", type=PROVIDER, default="cpu", help="What runs the file.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=86400.0,
              help="Seconds that the file may run.")
def verify_command(sampler: Path, golden: Path, provider: str, timeout: float) -> None:
    """Compare a sampler or evaluation file with golden values; exit status 1 if more than rounding differs.

    \b
    Example: sde-onnx verify sampler.onnx golden.npz
    """
    from sde_onnx.golden import verify

    result = verify(sampler, golden, provider, timeout=timeout)
    states = "" if result.x_error is None else f", states within {result.x_error:.1e}"
    click.echo(f"{100 * result.same:.4f}% of 8-bit values equal, largest difference {result.largest}{states}")
    if not result.passed:
        raise click.ClickException(f"{sampler} does not reproduce {golden}: it is another sampler (solver, steps, "
                                   "options), or this runtime computes something else")

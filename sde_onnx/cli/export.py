"""``sde-onnx export``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from sde_onnx.cli.gradient import told_of_gradient
from sde_onnx.errors import shown_size

__all__ = ["export_command"]


@click.command("export")
@click.argument("source", metavar="SRC")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The .onnx file.")
@click.option("--config", metavar="NAME|FILE",
              help="Of an original .pth: the name of its config, or the config as .json or .py. Of a .pt of EDM's "
                   "weights: EDMPrecond, VEPrecond, or a .json.")
@click.option("--sigma-min", type=float, show_default="the checkpoint's", help="Smallest noise std.")
@click.option("--sigma-max", type=float, show_default="the checkpoint's",
              help="Largest noise std, where the checkpoint names another than it was trained with.")
@click.option("--snr", type=float, show_default="the checkpoint's", help="The corrector's signal-to-noise ratio.")
@click.option("--target", type=click.Choice(["any", "cpu", "cuda"]), default="any", show_default=True,
              help="Execution provider to write the graph for. A file for cpu or cuda is run by that one alone; for "
                   "cpu, 3x3 convolutions are written as Winograd's, which gains most without AVX-512.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "mixed"]), default="fp32", show_default=True,
              help="Of the network's inside; for --target cuda also fp16, or mixed: the image's own resolution in "
                   "float32, the others in float16.")
@click.option("--weights", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True,
              help="How they are stored: fp16 halves the file, which computes in float32 all the same.")
@click.option("--gradient", type=click.Path(dir_okay=False, path_type=Path),
              help="Also the file that `sde-onnx gradient` makes, for the same target; with --target cuda for any, "
                   "which cuda runs as well.")
@click.option("--force", is_flag=True, help="Replace existing files.")
def export_command(
    source: str, output: Path, config: str | None, sigma_min: float | None, sigma_max: float | None, snr: float | None,
    target: str, precision: str, weights: str, gradient: Path | None, force: bool,
) -> None:
    """Export a checkpoint to one ONNX file, checked against the network.

    SRC is a diffusers ScoreSdeVePipeline folder (either layout, or its unet folder alone), the id of a hub model, a
    .pth of score_sde_pytorch, which needs --config, or a .pkl of EDM (or a .pt of its weights, with --config).

    \b
    Example: sde-onnx export google/ncsnpp-celebahq-256 -o celebahq.onnx --sigma-max 348
             sde-onnx export checkpoint_24.pth --config cifar10_ncsnpp_continuous -o cifar10.onnx
             sde-onnx export network-snapshot-200000.pkl -o edm.onnx
    """
    from sde_onnx.extras import require_export

    require_export()
    from sde_onnx.export import export, from_diffusers, from_edm, from_score_sde
    from sde_onnx.export.checkpoints.presets import PRESETS
    from sde_onnx.export.gradient.model_file import export_gradient
    from sde_onnx.export.to_onnx import check_model_output

    check_model_output(output, force=force)
    if gradient is not None:
        check_model_output(gradient, force=force, inputs=[output])
    if precision != "fp32" and target != "cuda":
        raise click.UsageError(f"--precision {precision} needs --target cuda")
    if weights == "fp16" and target == "cuda":
        raise click.UsageError("--weights fp16 is not for --target cuda, whose graph stores them in its precision")
    if config is None and source.endswith(".pth"):
        raise click.UsageError(f"{source} needs --config: a .json or .py file, or one of {', '.join(PRESETS)}")
    if config is not None and source.endswith(".pkl"):
        raise click.UsageError(f"{source} says itself how it is used: leave out --config")
    changes = {"sigma_min": sigma_min, "sigma_max": sigma_max, "snr": snr}
    if source.endswith((".pkl", ".pt")):
        checkpoint = from_edm(source, config, **changes)
    elif config is None:
        checkpoint = from_diffusers(source, **changes)
    else:
        checkpoint = from_score_sde(source, config, **changes)
    metadata = export(checkpoint, output, target=target, precision=precision, weights=weights, force=force)
    how = ", emulated on the CPU" if target == "cuda" else ""
    for case, error in metadata.parity.items():
        click.echo(f"relative error {error:.1e} at {case}{how}")
    inside = precision + f" for {target}" * (target != "any") + ", weights fp16" * (weights == "fp16")
    click.echo(f"{output}: {shown_size(output.stat().st_size)}, {inside}, sigma {metadata.schedule.sigma_min:g} to "
               f"{metadata.schedule.sigma_max:g}, snr {metadata.snr:g}")
    if gradient is None:
        return
    with TemporaryDirectory() as folder:
        plain = output
        if target != "any":   # a gradient is made of the graph that every provider runs
            plain = Path(folder) / "plain.onnx"
            export(checkpoint, plain, weights=weights)
        of_gradient = export_gradient(plain, gradient, target="cpu" if target == "cpu" else "any", force=force)
    for line in told_of_gradient(of_gradient, gradient):
        click.echo(line)

"""``sde-onnx export``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["export_command"]


@click.command("export")
@click.argument("source", metavar="SRC")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The .onnx file.")
@click.option("--sigma-min", type=float, show_default="the checkpoint's", help="Smallest noise std.")
@click.option("--sigma-max", type=float, show_default="the checkpoint's",
              help="Largest noise std, where the checkpoint names another than it was trained with.")
@click.option("--snr", type=float, show_default="the checkpoint's", help="The corrector's signal-to-noise ratio.")
@click.option("--precision", type=click.Choice(["fp32"]), default="fp32", help="Of the network's inside.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def export_command(
    source: str, output: Path, sigma_min: float | None, sigma_max: float | None, snr: float | None, precision: str,
    force: bool,
) -> None:
    """Export a checkpoint to one ONNX file, checked against the network.

    SRC is a diffusers ScoreSdeVePipeline folder (either layout, or its unet folder alone) or the id of a hub model.

    \b
    Example: sde-onnx export google/ncsnpp-celebahq-256 -o celebahq.onnx --sigma-max 348
    """
    from sde_onnx.extras import require_export

    require_export()
    from sde_onnx.export import export, from_diffusers
    from sde_onnx.export.to_onnx import check_model_output

    check_model_output(output, force=force)
    checkpoint = from_diffusers(source, sigma_min=sigma_min, sigma_max=sigma_max, snr=snr)
    metadata = export(checkpoint, output, force=force)
    for case, error in metadata.parity.items():
        click.echo(f"relative error {error:.1e} at {case}")
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB, {precision}, sigma {metadata.schedule.sigma_min:g} to "
               f"{metadata.schedule.sigma_max:g}, snr {metadata.snr:g}")

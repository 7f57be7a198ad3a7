"""Commands on what slides look like to the model: heatmap, selftest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_ips.cli.options import Device, MppOption


def heatmap(
    run: Annotated[Path, typer.Argument(help="run folder of classify")],
    formats: Annotated[
        str, typer.Option(help="some of png, tif, geojson, asap, ome, qupath, dicom (comma between), or all")
    ] = "png,tif,geojson",
    scale: Annotated[str, typer.Option(help="uniform (attention x N, fixed scale) or percentile (rank)")] = "uniform",
    evidence: Annotated[
        str, typer.Option(help="selected (of the tiles used), or bag (of all tiles, too; classify must have made it)")
    ] = "selected",
    smooth: Annotated[float, typer.Option(help="blur pictures by so many tile widths; files keep raw values", min=0)] = 0.0,
    origin: Annotated[str, typer.Option(help="of GeoJSON: bounds (QuPath) or level0")] = "bounds",
    only: Annotated[list[str] | None, typer.Option(help="only this slide id; may be repeated")] = None,
    slide_root: Annotated[Path | None, typer.Option(help="where the slides are now, if they have moved")] = None,
    model: Annotated[
        Path | None, typer.Option(help="the run's bundle, for what needs it: all below, and faithfulness of an old run")
    ] = None,
    refine: Annotated[
        bool, typer.Option("--refine", help="finer attention in the top regions and maps within top tiles; encodes them")
    ] = False,
    stride: Annotated[float, typer.Option(help="--refine: from tile to tile, in tile widths", min=0.125, max=1)] = 0.5,
    stability: Annotated[
        str, typer.Option(help="predict again on a shifted grid (shift), and under another stain, too (stain)")
    ] = "",
    device: Device = "auto",
) -> None:
    """A run folder and its slides in; pictures, pages and maps for other tools drawn from the ledgers; encodes nothing.

    With --refine or --stability the model looks again: finer maps and sentences are added to the slides' files and pages.
    """
    from wsi_ips.engine.draw import redraw_run
    from wsi_ips.engine.drawoptions import DrawOptions, read_formats
    from wsi_ips.errors import ConfigError

    if evidence not in ("selected", "bag"):
        raise ConfigError(f"--evidence {evidence}: expected selected or bag")
    options = DrawOptions(
        read_formats(formats), scale, smooth, origin, evidence == "bag", is_lenient="all" in formats  # type: ignore[arg-type]
    )
    if refine or stability:
        _refine(run, model, refine=refine, stride=stride, stability=stability, only=only, slide_root=slide_root, device=device,
                draw=options)  # fmt: skip
        return
    counts = redraw_run(run, options=options, only=tuple(only or ()), slide_root=slide_root, model=model)
    print(f"{counts.drawn} slides drawn, {counts.failed} could not be; see {run / 'index.html'}")
    if counts.failed:
        raise typer.Exit(1)


def _refine(run: Path, model: Path | None, **more: Any) -> None:
    """Add finer maps or stability to the slides of a run."""
    from wsi_ips.engine.refining import RefineRunOptions, refine_run
    from wsi_ips.errors import ConfigError

    if model is None:
        raise ConfigError("--refine and --stability encode again: name the run's bundle by --model")
    options = RefineRunOptions(**more | {"only": tuple(more["only"] or ())})
    counts = refine_run(run, model, options)
    print(f"{counts.done} slides done, {counts.failed} could not be; see {run / 'index.html'}")
    if counts.failed:
        raise typer.Exit(1)


def selftest(
    slide: Annotated[str | None, typer.Argument(help="a slide whose geometry is tested; without it five awkward ones")] = None,
    mpp: MppOption = None,
    keep: Annotated[Path | None, typer.Option(help="folder to keep the files in, to open them elsewhere")] = None,
) -> None:
    """A slide's geometry in; out to stdout: where planted squares are in every output file, in level-0 px."""
    from wsi_ips.engine.selftest import run_selftest

    is_ok = True
    for name, findings in run_selftest(slide, mpp, keep):
        print(f"{name}\n  {'file':<36} {'read by':<15} {'off, px':>8} {'allowed':>8}")
        for f in findings:
            is_ok &= f.is_ok
            print(f"  {f.file:<36} {f.reader:<15} {f.error0:8.2f} {f.allowed0:8.2f}  {'ok' if f.is_ok else 'OFF'}")
    print("every square is where it was planted" if is_ok else "a square is not where it was planted; please report this")
    if not is_ok:
        raise typer.Exit(1)

"""Commands on slides: inspect, manifest, plan, classify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.cli.options import (
    AllowMissing,
    AllowMixed,
    Cache,
    Decode,
    Device,
    EngineOption,
    Ext,
    ManifestArg,
    MppOption,
    Profile,
    Readers,
    SlideRoot,
    Strict,
    model_settings,
    read_manifest,
    say_notes,
    takes_features,
)


def inspect(
    slide: Annotated[str, typer.Argument(help="a slide file, DICOM folder or URI")],
    mpp: MppOption = None,
    model: Annotated[Path | None, typer.Option(help="bundle whose tiles are counted; else 224 px at 0.5 µm/px")] = None,
) -> None:
    """A slide in; out to stdout: reader, levels, mpp and its source, tissue, tiles."""
    from wsi_ips.engine.plan import inspect_slide

    for name, value in inspect_slide(slide, mpp, model_settings(model)):
        print(f"{name:<14} {value}")


def manifest(
    folder: Annotated[Path, typer.Argument(help="folder with slides, searched with its subfolders")],
    out: Annotated[Path, typer.Option(help="CSV to write")] = Path("manifest.csv"),
) -> None:
    """A folder of slides in; a manifest (CSV) out, to be completed by hand."""
    from wsi_ips.slidefiles import write_manifest

    print(f"{write_manifest(folder, out)} slides written to {out}")


def plan(
    manifest: ManifestArg,
    model: Annotated[Path | None, typer.Option(help="bundle whose tiles are planned; else 224 px at 0.5 µm/px")] = None,
    slide_root: SlideRoot = None,
    ext: Ext = None,
    allow_missing: AllowMissing = False,
) -> None:
    """A manifest in; out to stdout: every problem, tiles, expected minutes and gigabytes. Encodes nothing."""
    from wsi_ips.config import ReadSettings
    from wsi_ips.engine.plan import plan_manifest, total_line
    from wsi_ips.errors import ConfigError

    if takes_features(model):
        raise ConfigError(f"{model}: takes features, which were cut and encoded before; there is nothing to plan")
    slides = read_manifest(manifest, slide_root=slide_root, ext=ext, allow_missing=allow_missing)
    rows = plan_manifest(slides, model_settings(model), ReadSettings())
    print("slide_id\tstatus\treason\tn_tiles\tmpp\tmpp_source\ttissue_mm2\treader")
    for r in rows:
        c = r.cells
        print(
            "\t".join(
                [
                    r.slide_id,
                    r.status,
                    r.reason,
                    *(c.get(k, "") for k in ("n_tiles", "mpp", "mpp_source", "tissue_mm2", "reader")),
                ]
            )
        )
    print(total_line(rows))
    if any(r.status == "failed" for r in rows):
        raise typer.Exit(1)


def classify(
    manifest: ManifestArg,
    model: Annotated[Path, typer.Option(help="bundle (folder)")],
    out: Annotated[Path, typer.Option(help="run folder; a second start goes on where the first stopped")],
    mpp: MppOption = None,
    slide_root: SlideRoot = None,
    ext: Ext = None,
    allow_missing: AllowMissing = False,
    only: Annotated[list[str] | None, typer.Option(help="only this slide id; may be repeated")] = None,
    limit: Annotated[int | None, typer.Option(help="only the first so many slides", min=0)] = None,
    shard: Annotated[str, typer.Option(help="part i/n of the manifest, for job arrays")] = "1/1",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="do failed slides again")] = False,
    max_bad_tiles: Annotated[
        float, typer.Option(help="share of tiles (0 to 1) that may be unreadable", min=0, max=1)
    ] = 0.0,
    tile_mpp: Annotated[float | None, typer.Option(help="other resolution than the model's, µm/px", min=0.01)] = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="accept tiles the model was not trained on")
    ] = False,
    allow_mixed: AllowMixed = False,
    formats: Annotated[
        str, typer.Option(help="of maps: some of png, tif, geojson, asap, ome, qupath, dicom (comma between), all, none")
    ] = "png,tif,geojson",
    evidence: Annotated[
        str, typer.Option(help="selected (of the tiles the label was read from), or bag (of every tile in the whole bag, too)")
    ] = "selected",
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="worker processes; 0 chooses", min=0, rich_help_panel="Machine")] = 0,
    readers: Readers = 0,
    memory_gb: Annotated[
        float | None, typer.Option(help="end a worker above so many GiB, and make its batches fit; else above its part of 80 % of the memory", min=0.1, rich_help_panel="Machine")
    ] = None,
    stall_seconds: Annotated[float, typer.Option(help="end a worker without progress, s", min=1, rich_help_panel="Machine")] = 600.0,
    engine: EngineOption = "auto",
    decode: Decode = "cpu",
    cache: Cache = None,
    strict: Strict = False,
    profile: Profile = False,
    show_patients: Annotated[bool, typer.Option("--show-patients", help="name patients in pages; tables name them in any case")] = False,
) -> None:
    """Slides and a bundle in; a run folder out: predictions.csv, patients.csv, index.html, per slide ledger and overlay."""
    from wsi_ips.config import ReadSettings
    from wsi_ips.engine.classify import ClassifyOptions, classify
    from wsi_ips.engine.drawoptions import read_formats
    from wsi_ips.model.bundle_config import read_bundle_settings

    slides = read_manifest(manifest, slide_root=slide_root, ext=ext, allow_missing=allow_missing, mpp=mpp,
                           features=takes_features(model))  # fmt: skip
    tile = read_bundle_settings(model).tile.replace(mpp=tile_mpp) if tile_mpp is not None else None
    options = ClassifyOptions(
        device=device, workers=workers, read=ReadSettings(max_bad_tiles=max_bad_tiles, n_readers=readers), tile=tile, allow_mismatch=allow_mismatch,
        allow_mixed=allow_mixed, retry_failed=retry_failed, only=tuple(only or ()), limit=limit, shard=_shard(shard), stall_seconds=stall_seconds,
        memory_gb=memory_gb, engine=engine, decode=decode, cache=cache, strict=strict, evidence=evidence,
        formats=read_formats(formats), profile=profile, shows_patients=show_patients,
    )  # fmt: skip
    say_notes(slides.notes)
    summary = classify(slides, str(model), out, options)
    print(summary.text())
    if summary.has_failures:
        raise typer.Exit(1)


def _shard(text: str) -> tuple[int, int]:
    from wsi_ips.errors import ConfigError

    part, _, of = text.partition("/")
    if not (part.isdecimal() and of.isdecimal()):  # of isdigit's, int does not read superscripts
        raise ConfigError(f"--shard {text}: expected i/n, 2/10 for instance")
    return int(part), int(of)

"""The command line: thin, and quick to answer; everything heavy is imported inside the command that needs it.

Results go to files, tables to stdout, progress to stderr. Exit status: docs/failures.md.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import wsi_ips

if TYPE_CHECKING:
    from wsi_ips.config import ModelSettings
    from wsi_ips.manifest import Manifest

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Whole-slide pathology: labels, heatmaps and finetuning by Iterative Patch Selection. Research use only.")  # fmt: skip

ManifestArg = Annotated[str, typer.Argument(help="manifest (CSV or .xlsx) with a column slide_path, or one slide")]
SlideRoot = Annotated[
    str | None, typer.Option(help="folder or URI that relative slide paths start from", rich_help_panel="Manifest")
]
Ext = Annotated[
    str | None, typer.Option(help="file ending put behind slide ids without one, .svs say", rich_help_panel="Manifest")
]
MppOption = Annotated[float | None, typer.Option(help="µm per level-0 px, for a single slide that does not say")]
AllowMissing = Annotated[bool, typer.Option(help="a listed file that does not exist is a failed row, not a refusal")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:<i> or mps", rich_help_panel="Machine")]
Offline = Annotated[
    bool, typer.Option("--offline", help="never look at the network for weights", rich_help_panel="Machine")
]
Seed = Annotated[int, typer.Option(help="seed of everything random")]
SettingsFile = Annotated[Path | None, typer.Option(help="YAML with settings that differ from the defaults")]


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", help="print the version and end")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    if version:
        print(f"wsi-ips {wsi_ips.__version__}")
        raise typer.Exit
    if debug:
        os.environ["WSI_IPS_DEBUG"] = "1"


@app.command()
def inspect(
    slide: Annotated[str, typer.Argument(help="a slide file, DICOM folder or URI")],
    mpp: MppOption = None,
    model: Annotated[Path | None, typer.Option(help="bundle whose tiles are counted; else 224 px at 0.5 µm/px")] = None,
) -> None:
    """A slide in; out to stdout: reader, levels, mpp and its source, tissue, tiles."""
    from wsi_ips.engine.plan import inspect_slide

    for name, value in inspect_slide(slide, mpp, _model_settings(model)):
        print(f"{name:<14} {value}")


@app.command()
def manifest(
    folder: Annotated[Path, typer.Argument(help="folder with slides, searched with its subfolders")],
    out: Annotated[Path, typer.Option(help="CSV to write")] = Path("manifest.csv"),
) -> None:
    """A folder of slides in; a manifest (CSV) out, to be completed by hand."""
    from wsi_ips.slidefiles import write_manifest

    print(f"{write_manifest(folder, out)} slides written to {out}")


@app.command()
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

    slides = _read_manifest(manifest, slide_root=slide_root, ext=ext, allow_missing=allow_missing)
    rows = plan_manifest(slides, _model_settings(model), ReadSettings())
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


@app.command()
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
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="worker processes; 0 chooses", min=0, rich_help_panel="Machine")] = 0,
    memory_gb: Annotated[
        float | None, typer.Option(help="end a worker above so many GiB", min=0.1, rich_help_panel="Machine")
    ] = None,
    stall_seconds: Annotated[
        float, typer.Option(help="end a worker without progress, s", min=1, rich_help_panel="Machine")
    ] = 600.0,
) -> None:
    """Slides and a bundle in; a run folder out: predictions.csv, patients.csv, index.html, per slide ledger and overlay."""
    from wsi_ips.config import ReadSettings
    from wsi_ips.engine.classify import ClassifyOptions, classify
    from wsi_ips.model.bundle_config import read_bundle_settings

    slides = _read_manifest(manifest, slide_root=slide_root, ext=ext, allow_missing=allow_missing, mpp=mpp)
    tile = read_bundle_settings(model).tile.replace(mpp=tile_mpp) if tile_mpp is not None else None
    options = ClassifyOptions(
        device=device, workers=workers, read=ReadSettings(max_bad_tiles=max_bad_tiles), tile=tile, allow_mismatch=allow_mismatch,
        retry_failed=retry_failed, only=tuple(only or ()), limit=limit, shard=_shard(shard), stall_seconds=stall_seconds,
        memory_gb=memory_gb,
    )  # fmt: skip
    _say_notes(slides.notes)
    summary = classify(slides, str(model), out, options)
    print(summary.text())
    if summary.has_failures:
        raise typer.Exit(1)


@app.command()
def heatmap(
    run: Annotated[Path, typer.Argument(help="run folder of classify")],
    scale: Annotated[str, typer.Option(help="uniform (attention x N, fixed scale) or percentile (rank)")] = "uniform",
    evidence: Annotated[
        bool, typer.Option("--evidence", help="draw the signed evidence of the used tiles, too")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="only this slide id; may be repeated")] = None,
    slide_root: Annotated[Path | None, typer.Option(help="where the slides are now, if they have moved")] = None,
) -> None:
    """A run folder and its slides in; overlays, tile strips and pages drawn again from the ledgers, without the model."""
    from wsi_ips.engine.draw import redraw_run

    counts = redraw_run(run, scale=scale, with_evidence=evidence, only=tuple(only or ()), slide_root=slide_root)
    print(f"{counts.drawn} slides drawn, {counts.failed} could not be; see {run / 'index.html'}")
    if counts.failed:
        raise typer.Exit(1)


@app.command()
def finetune(
    manifest: Annotated[Path, typer.Argument(help="manifest with labels; columns label, patient_id, split")],
    out: Annotated[Path, typer.Option(help="bundle (folder) to write")],
    label: Annotated[list[str] | None, typer.Option(help="label column; may be repeated, one task each")] = None,
    classes: Annotated[
        str | None, typer.Option(help="order of classes, comma between; binary: negative,positive")
    ] = None,
    settings: SettingsFile = None,
    init: Annotated[
        Path | None, typer.Option(help="bundle to start from, instead of the encoder's own weights")
    ] = None,
    slide_root: SlideRoot = None,
    ext: Ext = None,
    seed: Annotated[int | None, typer.Option(help="seed of everything random; default: the settings' own")] = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="accept tiles the encoder was not trained on")
    ] = False,
    device: Device = "auto",
    offline: Offline = False,
) -> None:
    """Labelled slides in; a bundle with model card out, trained from pixels. The test split is not touched."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # must stand before the hub's library is imported
    from wsi_ips.engine.finetune import FinetuneOptions, finetune_manifest

    columns = tuple(label or ("label",))
    slides = _read_manifest(manifest, slide_root=slide_root, ext=ext, label_columns=columns)
    options = FinetuneOptions(columns, tuple(classes.split(",")) if classes else (), settings, init, seed, device,
                              allow_mismatch, offline)  # fmt: skip
    _say_notes(slides.notes)
    print(finetune_manifest(slides, out, options))


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="folder to write; an earlier demo there is replaced")] = Path("demo"),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Nothing in; out: synthetic slides, a bundle finetuned from scratch, labels, heatmaps, index.html, metrics.json."""
    from wsi_ips.engine.demo import run_demo

    print(run_demo(out, seed=seed, device=device))


@app.command()
def doctor() -> None:
    """Nothing in; out to stdout: versions, devices, readable formats, known bad combinations and their cures."""
    from wsi_ips.engine.doctor import examine

    findings = examine()
    for f in findings:
        print(f"{'ok  ' if f.is_good else 'BAD '} {f.subject:<18} {f.text}")
    if not all(f.is_good for f in findings):
        raise typer.Exit(2)


def main() -> None:
    """Run the command line; errors of this package become one message and an exit status."""
    from wsi_ips.errors import WsiIpsError, exit_status

    if "--debug" in sys.argv[1:]:  # before or behind the command
        sys.argv.remove("--debug")
        os.environ["WSI_IPS_DEBUG"] = "1"

    signal.signal(signal.SIGTERM, _terminate)
    # before torch is loaded: threads that spin at barriers collapse when anything else runs on the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except (WsiIpsError, OSError) as error:
        if os.environ.get("WSI_IPS_DEBUG"):
            raise
        print(f"wsi-ips: {error}", file=sys.stderr)
        sys.exit(exit_status(error) if isinstance(error, WsiIpsError) else 2)
    except _TerminatedError:
        print("wsi-ips: terminated; finished slides are kept, the same command goes on", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)


class _TerminatedError(BaseException):
    """SIGTERM, on the same way out as Ctrl-C."""


def _terminate(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second signal ends at once
    raise _TerminatedError


def _read_manifest(path: str | Path, *, mpp: float | None = None, **options: Any) -> Manifest:
    from wsi_ips.manifest import manifest_or_slide

    return manifest_or_slide(str(path), mpp, **options)


def _model_settings(model: Path | None) -> ModelSettings:
    from wsi_ips.config import ModelSettings
    from wsi_ips.model.bundle_config import read_bundle_settings

    return read_bundle_settings(model) if model else ModelSettings()


def _shard(text: str) -> tuple[int, int]:
    from wsi_ips.errors import ConfigError

    part, _, of = text.partition("/")
    if not (part.isdigit() and of.isdigit()):
        raise ConfigError(f"--shard {text}: expected i/n, 2/10 for instance")
    return int(part), int(of)


def _say_notes(notes: Any) -> None:
    for note in notes:
        print(f"note {note.code}: {note.message}", file=sys.stderr)


if __name__ == "__main__":
    main()

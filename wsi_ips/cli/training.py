"""Commands that learn and judge: finetune, demo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from wsi_ips.cli.options import (
    Device,
    Ext,
    Offline,
    Seed,
    SettingsFile,
    SlideRoot,
    read_manifest,
    say_notes,
)


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
    from wsi_ips.training.finetune import FinetuneOptions, finetune_manifest

    columns = tuple(label or ("label",))
    slides = read_manifest(manifest, slide_root=slide_root, ext=ext, label_columns=columns)
    options = FinetuneOptions(columns, tuple(classes.split(",")) if classes else (), settings, init, seed, device,
                              allow_mismatch, offline)  # fmt: skip
    say_notes(slides.notes)
    print(finetune_manifest(slides, out, options))


def demo(
    out: Annotated[Path, typer.Argument(help="folder to write; an earlier demo there is replaced")] = Path("demo"),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Nothing in; out: synthetic slides, a bundle finetuned from scratch, labels, heatmaps, index.html, metrics.json."""
    from wsi_ips.training.demo import run_demo

    print(run_demo(out, seed=seed, device=device))

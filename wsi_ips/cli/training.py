"""Commands that learn and judge: finetune, evaluate, demo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_ips.cli.options import (
    AllowMissing,
    Cache,
    Device,
    Ext,
    Offline,
    Seed,
    SettingsFile,
    SlideRoot,
    Strict,
    read_manifest,
    say_notes,
    takes_features,
)

LabelColumns = Annotated[
    list[str] | None, typer.Option(help="label column; may be repeated, one task each", rich_help_panel="Tasks")
]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        help="COLUMN=KIND: binary, multiclass, multilabel, ordinal, regression, survival; may be repeated",
        rich_help_panel="Tasks",
    ),
]
Events = Annotated[
    list[str] | None,
    typer.Option(help="survival: TIME_COLUMN=EVENT_COLUMN (1 seen, 0 not seen)", rich_help_panel="Tasks"),
]
Classes = Annotated[
    str | None,
    typer.Option(help="order of classes, comma between; binary: negative,positive", rich_help_panel="Tasks"),
]
Init = Annotated[Path | None, typer.Option(help="bundle to start from, instead of the encoder's own weights")]
Folds = Annotated[
    int | None, typer.Option(help="cross-validate in so many folds, by patient", min=2, max=50, rich_help_panel="Proof")
]
Seeds = Annotated[
    int | None, typer.Option(help="train so often, with seeds that follow", min=1, rich_help_panel="Proof")
]
Sanity = Annotated[
    bool, typer.Option("--sanity", help="train on shuffled labels, too: chance is expected", rich_help_panel="Proof")
]
MemoryGb = Annotated[
    float | None, typer.Option(help="memory for activations, GiB", min=0.01, rich_help_panel="Machine")
]
AllowMismatch = Annotated[bool, typer.Option("--allow-mismatch", help="accept tiles the encoder was not trained on")]


def finetune(
    manifest: Annotated[Path, typer.Argument(help="manifest with labels; columns label, patient_id, split")],
    out: Annotated[Path, typer.Option(help="bundle (folder) to write; checkpoints and report go to OUT.training")],
    label: LabelColumns = None,
    kind: Kinds = None,
    event: Events = None,
    classes: Classes = None,
    settings: SettingsFile = None,
    init: Init = None,
    folds: Folds = None,
    seeds: Seeds = None,
    sanity: Sanity = False,
    slide_root: SlideRoot = None,
    ext: Ext = None,
    allow_missing: AllowMissing = False,
    seed: Annotated[int | None, typer.Option(help="seed of everything random; default: the settings' own")] = None,
    allow_mismatch: AllowMismatch = False,
    memory_gb: MemoryGb = None,
    cache: Cache = None,
    strict: Strict = False,
    device: Device = "auto",
    offline: Offline = False,
) -> None:
    """Labelled slides in; a bundle with model card out, and a report with intervals. Started again, it goes on."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # must stand before the hub's library is imported
    from wsi_ips.config import load_settings
    from wsi_ips.recipe import FinetuneSettings
    from wsi_ips.training.finetune import FinetuneOptions, finetune_manifest, label_columns

    chosen, columns = load_settings(FinetuneSettings, settings), tuple(label or ("label",))
    events = _pairs("--event", event)
    wanted = label_columns(chosen, columns, events)
    slides = read_manifest(manifest, slide_root=slide_root, ext=ext, allow_missing=allow_missing, label_columns=wanted,
                           features=chosen.model.encoder.name == "features" or takes_features(init))  # fmt: skip
    options = FinetuneOptions(
        columns, tuple(c.strip() for c in classes.split(",")) if classes else (), _pairs("--kind", kind), events, chosen, init=init, seed=seed,
        folds=folds, seeds=seeds, memory_gb=memory_gb, sanity=sanity, device=device, allow_mismatch=allow_mismatch,
        offline=offline, cache=cache, strict=strict,
    )  # fmt: skip
    say_notes(slides.notes)
    print(finetune_manifest(slides, out, options).text())


def _pairs(option: str, texts: list[str] | None) -> dict[str, Any]:
    from wsi_ips.errors import ConfigError

    for text in texts or ():
        if not all(text.partition("=")):
            raise ConfigError(f"{option} {text}: expected two names with = between")
    return {name: value for name, _, value in (text.partition("=") for text in texts or ())}


def evaluate(
    run: Annotated[Path, typer.Argument(help="run folder of classify")],
    manifest: Annotated[Path, typer.Option(help="table with labels (CSV or .xlsx), matched by slide_id")],
    label: Annotated[
        list[str] | None,
        typer.Option(help="TASK=COLUMN, or COLUMN for a single task; survival: TASK=TIME,EVENT; may be repeated"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; default: test where the manifest has any, else all")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="run folder of another model, compared on the same slides")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write; default: RUN/evaluation")] = None,
    resamples: Annotated[int, typer.Option(help="resamplings of patients behind every interval", min=100)] = 1000,
    seed: Seed = 0,
) -> None:
    """A finished run and labels in; out: index.html, metrics.json, metrics.csv, cases.csv, figures; a table to stdout."""
    from wsi_ips.training.evaluate import EvaluateOptions, evaluate_run

    options = EvaluateOptions(tuple(label or ()), split, against, out, resamples, seed)
    summary = evaluate_run(run, manifest, options)
    say_notes(summary.notes)
    print(summary.text())


def demo(
    out: Annotated[Path, typer.Argument(help="folder to write; an earlier demo there is replaced")] = Path("demo"),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Nothing in; out: synthetic slides, a bundle finetuned from scratch, labels, heatmaps, index.html, metrics.json."""
    from wsi_ips.training.demo import run_demo

    print(run_demo(out, seed=seed, device=device))

"""`demo`: the whole path on slides made here: cohort, finetune from scratch, labels, heatmaps, and how good they are.

The synthetic slides know where their lesions are, so the attention can be held against the truth, tile by tile.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wsi_ips.config import load_settings
from wsi_ips.engine.classify import ClassifyOptions, RunSummary, classify
from wsi_ips.engine.progress import timed
from wsi_ips.engine.runpages import slide_links
from wsi_ips.errors import ConfigError, StoppedError
from wsi_ips.manifest import Manifest, load_manifest
from wsi_ips.recipe import FinetuneSettings
from wsi_ips.report.faithfulness import faith_summary
from wsi_ips.report.page import index_html
from wsi_ips.results import SlidePrediction, read_ledger
from wsi_ips.runfolder import RunFolder
from wsi_ips.stats.metrics import auroc_interval, tile_auroc
from wsi_ips.stopping import write_whole
from wsi_ips.synthetic import lesion_fraction, make_cohort, read_lesions
from wsi_ips.training.finetune import FinetuneOptions, finetune_manifest

__all__ = ["DEMO_SETTINGS", "run_demo"]

# found by experiment; docs/demo-learnability.md says what each is for
DEMO_SETTINGS: dict[str, Any] = {
    "model": {
        "encoder": {"name": "resnet10t", "weights": "none", "kwargs": {"channels": [16, 32, 64, 128], "stem_width": 8}},
        "attention": {"dim": 64, "n_heads": 4},
        "selection": {"memory_size": 96, "chunk_size": 64},
        "tile": {"size_px": 64, "mpp": 1.0},
    },
    "train": {
        "epochs": 22,
        "random_epochs": 5,
        "explore": 0.25,
        "batch_slides": 2,
        "lr": 1e-3,
        "weight_decay": 0.1,
        "keep": "last",
        "augment": {"hed_jitter": 0.1, "bag_mix": 0.2},
    },
}

_MARK = ".wsi-ips-demo"
_INTRO = (
    "<p>Slides painted for this demonstration, a model trained on them from nothing but slide labels, and what it makes of "
    "the test slides. <b>Research use only; these are not real tissues.</b></p>"
)


def run_demo(out: str | Path, *, seed: int = 0, device: str = "auto") -> str:
    """Run the demonstration and say how it went.

    Args:
        out: folder; cohort/, model/, run/, index.html and metrics.json appear there.
        seed: of cohort and training.
        device: auto, cpu, cuda, ...

    Raises:
        ConfigError: the folder holds something else.
        StoppedError: a test slide could not be labelled.
    """
    started, folder, seconds = time.monotonic(), _empty_folder(Path(out)), dict[str, float]()
    with timed(seconds, "make slides"):
        manifest = load_manifest(make_cohort(folder / "cohort", seed=seed))
    with timed(seconds, "finetune"):
        settings = load_settings(FinetuneSettings, DEMO_SETTINGS)
        # the test slides are kept for `classify`, below
        seen = replace(manifest, records=tuple(r for r in manifest.records if r.split != "test"))
        options = FinetuneOptions(settings=settings, seed=seed, device=device, cache="off")
        finetune_manifest(seen, folder / "model", options)
    test = replace(manifest, records=tuple(r for r in manifest.records if r.split == "test"))
    with timed(seconds, "classify"):
        summary = classify(test, str(folder / "model"), folder / "run", ClassifyOptions(device=device))
    if summary.has_failures:
        raise StoppedError(
            f"{summary.counts.get('failed')} test slides could not be labelled; see {folder / 'run' / 'index.html'}"
        )
    with timed(seconds, "judge"):
        metrics = _judge(test, folder)
    metrics |= {
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "seconds_by_stage": {k: round(v, 1) for k, v in seconds.items()},
    }
    write_whole(folder / "metrics.json", json.dumps(metrics, indent=1).encode())
    write_whole(folder / "index.html", _page(test, folder, metrics))
    return _story(metrics, summary, folder)


def _judge(test: Manifest, folder: Path) -> dict[str, Any]:
    truth, score, patients, by_tile, by_evidence = [], [], [], [], []
    falls = []  # by evidence and by chance, on slides called with some certainty
    for r in test.records:
        p = _prediction(folder, r.slide_id)
        truth.append(r.labels["label"] == p.tasks[0].classes[1])
        score.append(float(p.outputs[0]))
        patients.append(r.patient_id)
        if truth[-1]:
            lesions = read_lesions(folder / "cohort" / "lesions" / f"{r.slide_id}.geojson")
            share = lesion_fraction(p.coords, p.extent0, lesions)
            by_tile.append(tile_auroc(p.attention[:, 0], share))
            by_evidence.append(tile_auroc(p.evidence[:, 0], share[p.selected]))
            faith = faith_summary(p)
            if faith is not None and faith.whole >= 0.8 and p.outputs[0] > 0:
                falls.append((faith.drop_evidence, faith.drop_random))
    slide = auroc_interval(np.array(truth), np.array(score), patients)
    return {
        "slide_auroc": round(slide.value, 4), "slide_auroc_ci": [round(slide.low, 4), round(slide.high, 4)], "n_test": slide.n,
        "n_test_patients": len(set(patients)), "tile_auroc": round(float(np.nanmean(by_tile)), 4),
        "tile_auroc_min": round(float(np.nanmin(by_tile)), 4), "n_tile_auroc": int(np.sum(~np.isnan(by_tile))),
        "evidence_auroc": round(float(np.nanmean(by_evidence)), 4), "evidence_auroc_min": round(float(np.nanmin(by_evidence)), 4),
        "n_deletion": len(falls), "deletion_evidence": round(float(np.mean(falls, axis=0)[0]), 5) if falls else None,
        "deletion_random": round(float(np.mean(falls, axis=0)[1]), 5) if falls else None,
    }  # fmt: skip


def _prediction(folder: Path, slide_id: str) -> SlidePrediction:
    return read_ledger(RunFolder(folder / "run").slide_folder(slide_id) / f"{slide_id}.ledger.h5")


def _page(test: Manifest, folder: Path, metrics: dict[str, Any]) -> bytes:
    run = RunFolder(folder / "run")
    rows, links, tasks = [], {}, None
    for r in test.records:
        record, p = run.read_record(r.slide_id) or {}, _prediction(folder, r.slide_id)
        tasks = p.tasks
        cells = {k: str(record.get(k, "")) for k in ("status", "reason", "message")}
        rows.append({"slide_id": r.slide_id, "patient_id": r.patient_id, **cells, **record.get("cells", {})})
        links[r.slide_id] = slide_links(run, r.slide_id, record, "run/")
    low, high = metrics["slide_auroc_ci"]
    figures = [("slide AUROC", f"{metrics['slide_auroc']:.3f}"), ("95 % interval, by patient", f"{low:.3f} to {high:.3f}" if low < high else "no spread: all in order"),
               ("tile AUROC of attention", f"{metrics['tile_auroc']:.3f}"),
               ("AUROC of evidence, tiles used", f"{metrics['evidence_auroc']:.3f}"), ("seconds", f"{metrics['seconds']:.0f}")]  # fmt: skip
    return index_html(rows, tasks or (), title="wsi-ips demo", links=links, figures=figures, intro_html=_INTRO)


def _story(metrics: dict[str, Any], summary: RunSummary, folder: Path) -> str:
    low, high = metrics["slide_auroc_ci"]
    times = ", ".join(f"{k} {v:.0f} s" for k, v in metrics["seconds_by_stage"].items())
    certain = "" if low < high else "; all in order, so resampling shows no spread: that is not certainty"
    return "\n".join([
        f"slide AUROC {metrics['slide_auroc']:.3f} (95 % interval {low:.3f} to {high:.3f}, {metrics['n_test']} slides of "
        f"{metrics['n_test_patients']} patients, seed {metrics['seed']}{certain})",
        f"tile AUROC of attention against lesions {metrics['tile_auroc']:.3f} (mean over {metrics['n_tile_auroc']} positive slides, "
        f"lowest {metrics['tile_auroc_min']:.3f}); of evidence among the tiles used {metrics['evidence_auroc']:.3f} "
        f"(lowest {metrics['evidence_auroc_min']:.3f})",
        *_deletion(metrics),
        f"{metrics['seconds']:.0f} s: {times}; largest worker {summary.peak_bytes / 2**30:.2f} GiB",
        f"open {folder / 'index.html'}",
    ])  # fmt: skip


def _deletion(metrics: dict[str, Any]) -> list[str]:
    if not metrics["n_deletion"]:
        return []
    return [f"removing the first 1 to 16 tiles by evidence lowers the probability by {metrics['deletion_evidence']:.3f} on average, in random "
            f"order by {metrics['deletion_random']:.4f} ({metrics['n_deletion']} positive slides with probability 0.8 or more)"]  # fmt: skip


def _empty_folder(folder: Path) -> Path:
    """Take a new or empty folder, or replace an earlier demo; anything else is not touched."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MARK).exists())):
        raise ConfigError(f"{folder}: holds something that is no demo; give another folder")
    try:
        shutil.rmtree(folder, ignore_errors=False) if folder.exists() else None
        folder.mkdir(parents=True)
        (folder / _MARK).touch()
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error
    return folder

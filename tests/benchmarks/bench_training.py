"""What the options of finetuning are worth, on painted cohorts with known answers: tables with intervals.

    python tests/benchmarks/bench_training.py WORK stale elastic --seeds 3
    python tests/benchmarks/bench_training.py WORK context --seeds 3
    python tests/benchmarks/bench_training.py WORK mix --seeds 3

`stale`: re-selection from stale embeddings against scoring every tile every epoch: scan forwards, recall of the true top
M, test AUROC. `elastic`: one model tested at M / 8 to 4 M, trained with M fixed and with M drawn. `context`: grades that
depend on the lesion's fraction, label from the top M alone against top M and pooled rest. `mix`: ResizeMix off, of bags,
of tiles. Every figure comes with n, seeds and an interval by patients; WORK keeps cohorts, models and JSON, and a second
start goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsi_ips.config import load_settings
from wsi_ips.engine.encoding import slide_embeddings
from wsi_ips.engine.scan import plan_slide
from wsi_ips.manifest import load_manifest
from wsi_ips.model.bundle import load_bundle
from wsi_ips.model.ledger import scores_from_logits, top_rows
from wsi_ips.recipe import FinetuneSettings
from wsi_ips.slide.reader import open_slide
from wsi_ips.stats.metrics import auroc_interval
from wsi_ips.synthetic import make_cohort, make_grading_cohort
from wsi_ips.training.against import compare_cases
from wsi_ips.training.finetune import FinetuneOptions, FinetuneResult, finetune_manifest

M = 78  # N / 20 of the painted slides, whose N is about 1,560
SIZES = (M // 8, M // 4, M // 2, M, 2 * M, 4 * M)
BASE: dict[str, Any] = {
    "model": {
        "encoder": {"name": "resnet10t", "weights": "none", "kwargs": {"channels": [16, 32, 64, 128], "stem_width": 8}},
        "attention": {"dim": 64, "n_heads": 4},
        "selection": {"memory_size": M, "chunk_size": 128},
        "tile": {"size_px": 32, "mpp": 0.5},
    },
    "train": {
        "epochs": 16, "random_epochs": 4, "explore": 0.25, "batch_slides": 2, "lr": 1e-3, "weight_decay": 0.1,
        "augment": {"hed_jitter": 0.1},
    },
    "read": {"hold_gb": 4.0},
}  # fmt: skip


def settings_with(**changes: dict[str, Any]) -> FinetuneSettings:
    """BASE with other values, by section."""
    found = copy.deepcopy(BASE)
    for section, values in changes.items():
        found[section] = {**found[section], **values}
    return load_settings(FinetuneSettings, found)


def cohort(work: Path, seed: int) -> Path:
    """60 training, 20 validation, 100 test slides of 1,000 tiles or more."""
    folder = work / f"cohort_{seed}"
    path = folder / "manifest.csv"
    return path if path.is_file() else make_cohort(folder, n_train=60, n_val=20, n_test=100, seed=100 + seed, scale=0.65)


def trained(manifest: Path, out: Path, settings: FinetuneSettings, seed: int, *columns: str) -> FinetuneResult:
    """Train, or read what was trained before."""
    slides = load_manifest(manifest, label_columns=columns or ("label",))
    return finetune_manifest(slides, out, FinetuneOptions(settings=settings, seed=seed, cache="off"))


def _save(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(row), flush=True)
    return row


def stale(work: Path, seed: int) -> dict[str, Any]:
    """Scan forwards an epoch after the first two selecting epochs, recall, and test AUROC, for both ways."""
    row: dict[str, Any] = {"seed": seed}
    judged = {}
    for name, rescan in (("full", {}), ("stale", {"mode": "stale", "check_every": 5})):
        settings = settings_with(train={"rescan": rescan})
        result = trained(cohort(work, seed), work / f"{name}_{seed}", settings, seed)
        history = result.fits[0].history
        late = history[settings.train.random_epochs + 2 :]
        found = result.evaluation.tasks[0].metrics["auroc"]
        row[name] = {
            "scans": float(np.mean([e.n_scanned for e in late])), "auroc": [found.value, found.low, found.high], "n": found.n,
            "scans_by_epoch": [e.n_scanned for e in history], "recall": [e.recall for e in late],
            "true_recall": [e.true_recall for e in history if not np.isnan(e.true_recall)],
            "seconds": round(sum(e.seconds for e in history), 1),
        }  # fmt: skip
        judged[name] = result.cases
    row["fewer"] = row["full"]["scans"] / row["stale"]["scans"]
    row["stale_less_full"] = compare_cases(judged["stale"], judged["full"])[-1].found._asdict()
    return _save(work / f"stale_{seed}.json", row)


def elastic(work: Path, seed: int) -> dict[str, Any]:
    """Test AUROC by test-time M, of models trained with M fixed and with M drawn from M / 8 to 8 M."""
    row: dict[str, Any] = {"seed": seed, "M": list(SIZES)}
    for name, factor in (("full", 1.0), ("elastic", 8.0)):
        settings = settings_with(train={"elastic": factor})
        trained(cohort(work, seed), work / f"{name}_{seed}", settings, seed)
        curve = by_memory(load_manifest(cohort(work, seed)), work / f"{name}_{seed}")
        row[name] = {"auroc": curve, "drop": max(c[0] for c in curve) - min(c[0] for c in curve)}
    return _save(work / f"elastic_{seed}.json", row)


def by_memory(manifest: Any, bundle_folder: Path) -> list[list[float]]:
    """AUROC with interval on the test slides for every M: one encoding, the exact top M for each."""
    bundle = load_bundle(bundle_folder)
    classifier, settings = bundle.single.eval(), bundle.settings
    head, read = classifier.double_head(), FinetuneSettings().read
    test = [r for r in manifest.records if r.split == "test"]
    outputs = np.empty((len(SIZES), len(test)))
    for i, r in enumerate(test):
        with open_slide(r.slide_path, r.mpp) as slide:
            grid = plan_slide(slide, settings, read).grid
            found = slide_embeddings(slide, grid, classifier, read).embeddings.astype(np.float32)
        scan = classifier.scan(found, len(found))
        scores = scores_from_logits(scan.logits)
        for k, m in enumerate(SIZES):
            outputs[k, i] = float(head.label(torch.from_numpy(scan.features[top_rows(scores, m)]))[0])
    truth = np.array([r.label == settings.tasks[0].classes[1] for r in test])
    patients = [r.patient_id for r in test]
    found_by_m = [auroc_interval(truth, one, patients) for one in outputs]
    return [[f.value, f.low, f.high] for f in found_by_m]


def context(work: Path, seed: int) -> dict[str, Any]:
    """Grade (quadratic weighted kappa) and fraction (R2) with the label from the top M alone, and with the rest pooled."""
    folder = work / f"grading_{seed}"
    path = folder / "manifest.csv"
    if not path.is_file():
        path = make_grading_cohort(folder, n_train=60, n_val=20, n_test=100, seed=200 + seed)
    row: dict[str, Any] = {"seed": seed}
    tasks = [{"name": "grade", "kind": "ordinal", "classes": ["0", "1", "2", "3"]}, {"name": "fraction", "kind": "regression"}]
    for name, on in (("top_m", False), ("context", True)):
        settings = settings_with(
            model={"selection": {"memory_size": 24, "chunk_size": 128, "context": on}, "tasks": tasks}, train={"explore": 0.0}
        )
        result = trained(path, work / f"{name}_{seed}", settings, seed, "grade", "fraction")
        row[name] = {t.task.name: {k: [v.value, v.low, v.high] for k, v in t.metrics.items() if k in ("qwk", "mae", "r2")}
                     for t in result.evaluation.tasks}  # fmt: skip
    return _save(work / f"context_{seed}.json", row)


def mix(work: Path, seed: int) -> dict[str, Any]:
    """Test AUROC without mixing, with bags mixed, with tiles mixed."""
    row: dict[str, Any] = {"seed": seed}
    for name, how in (("full", {}), ("bag_mix", {"bag_mix": 0.5}), ("tile_mix", {"tile_mix": 0.5})):
        settings = settings_with(train={"augment": {"hed_jitter": 0.1, **how}})
        result = trained(cohort(work, seed), work / f"{name}_{seed}", settings, seed)
        found = result.evaluation.tasks[0].metrics["auroc"]
        row[name] = {"auroc": [found.value, found.low, found.high], "n": found.n}
    return _save(work / f"mix_{seed}.json", row)


def main() -> None:
    """Run the studies asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("studies", nargs="+", choices=["stale", "elastic", "context", "mix"])
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for study in arguments.studies:
            globals()[study](arguments.work, seed)


if __name__ == "__main__":
    main()

"""Lung cancer from ready-made embeddings: LUAD against LUSC on 498 real TCGA slides, only the head is learned.

    python pipelines/tcga_bags.py WORK --data DATA --config pipelines/configs/tcga_bags.yaml
    python pipelines/tcga_bags.py WORK --only prepare        embeddings and manifest only
    python pipelines/tcga_bags.py WORK --only baselines      what needs no model

In: `tcga_bags/` of the data folder (one tensor a slide, regions x 192; academic use only). Out, in WORK: features/,
manifest.csv with folds by patient, the trainings with their reports, and metrics.json: AUROC pooled over the folds,
calibration after each fold's temperature (fitted on its validation slides), seconds, and the AUROC of a logistic
regression on each slide's mean embedding, with the difference. Intervals resample patients.

Source of the embeddings: Chen et al., Scaling Vision Transformers to Gigapixel Images via Hierarchical Self-Supervised
Learning, CVPR 2022 (2206.02647).
"""

from __future__ import annotations

import argparse
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarking import (
    Row,
    at_least,
    auroc,
    data_folder,
    deal_folds,
    ended,
    figure,
    linear_scores,
    program,
    read_rows,
    say,
    write_rows,
)

from wsi_ips import (
    FinetuneOptions,
    FinetuneSettings,
    finetune_manifest,
    load_manifest,
    load_settings,
    paired_bootstrap,
)

POSITIVE = "LUSC"
N_FOLDS = 5
_CONFIG = Path(__file__).parent / "configs" / "tcga_bags.yaml"


def prepare(data: Path, work: Path, seed: int) -> list[Row]:
    """Unpack the embeddings and write manifest.csv, with the fold that tests each slide, patients whole."""
    folder = work / "features"
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with zipfile.ZipFile(data / "tcga_bags" / "lung_hipt192.zip") as archive:
        for row in read_rows(data / "tcga_bags" / "lung_labels.csv"):
            path = folder / f"{row['slide_id']}.pt"
            path.write_bytes(archive.read(path.name))
            known = {"slide_id": row["slide_id"], "patient_id": row["case_id"], "label": row["label"]}
            # no slide is there to open: the embeddings stand for it
            rows.append(known | {"site": row["site"], "features_path": str(path.resolve())})
    fold = deal_folds({r["patient_id"]: r["label"] for r in rows}, N_FOLDS, seed)
    rows = [r | {"fold": str(fold[r["patient_id"]])} for r in rows]
    write_rows(work / "manifest.csv", rows)
    return rows


def mean_embeddings(rows: Sequence[Row]) -> np.ndarray:
    """Average each slide's embeddings: (n, 192) float64."""
    import torch  # the files are tensors

    return np.stack([torch.load(r["features_path"], weights_only=True).double().mean(0).numpy() for r in rows])


def judge(rows: Sequence[Row], outputs: np.ndarray, name: str) -> dict[str, Any]:
    """Judge out-of-fold logits (n,) of the rows, as figures that start with `name`."""
    y, folds, patients = _columns(rows)
    return {
        f"{name}_auroc": figure(lambda i: auroc(y[i], outputs[i]), patients),
        f"{name}_auroc_by_fold": [round(auroc(y[folds == k], outputs[folds == k]), 4) for k in np.unique(folds)],
    }


def compare(rows: Sequence[Row], outputs: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    """Hold the AUROC of two sets of out-of-fold logits (n,) against each other, on the same resamples of patients."""
    y, _, patients = _columns(rows)
    found = paired_bootstrap(lambda s, i: auroc(y[i], s[i]), outputs, baseline, patients)
    figures = {"value": found.difference, "low": found.low, "high": found.high}
    return {"auroc_difference": {k: round(v, 4) for k, v in figures.items()} | {"n": found.n, "p": round(found.p, 4)}}


def train(rows: Sequence[Row], work: Path, settings: FinetuneSettings, seed: int, device: str) -> dict[str, Any]:
    """Cross-validate by the folds of the rows; the report's own figures, and every slide's calibrated logit."""
    started = time.monotonic()
    options = FinetuneOptions(classes=("LUAD", POSITIVE), settings=settings, seed=seed, folds=N_FOLDS, device=device)
    result = finetune_manifest(load_manifest(work / "manifest.csv", features=True), work / f"seed_{seed}", options)
    outputs = dict(
        zip(result.cases.slide_ids, result.cases.outputs[:, 0] / result.cases.tasks[0].temperature, strict=True)
    )
    ece = result.evaluation.tasks[0].metrics["ece"]
    return {
        "outputs": np.array([outputs[r["slide_id"]] for r in rows]),
        "ece": {"value": round(ece.value, 4), "low": round(ece.low, 4), "high": round(ece.high, 4), "n": ece.n},
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> int:
    """Run the program; returns the exit status."""
    parser = program(__doc__, _CONFIG)
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the folds and of the first training")
    parser.add_argument("--seeds", type=at_least(1), default=1, help="trainings of all folds")
    arguments = parser.parse_args()
    return ended(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    settings = load_settings(FinetuneSettings, arguments.config)
    rows = prepare(data_folder(arguments.data, "tcga_bags"), arguments.work, arguments.seed)
    y, folds, patients = _columns(rows)
    if arguments.only == "prepare":
        print(f"{len(rows)} slides of {len(set(patients))} patients: {arguments.work / 'manifest.csv'}")
        return
    metrics: dict[str, Any] = {"n_slides": len(rows), "n_patients": len(set(patients)), "n_folds": N_FOLDS}
    baseline = linear_scores(mean_embeddings(rows), y, folds)
    metrics |= judge(rows, baseline, "mean_embedding")
    for seed in range(arguments.seed, arguments.seed + arguments.seeds) if arguments.only is None else ():
        found = train(rows, arguments.work, settings, seed, arguments.device)
        metrics |= judge(rows, found["outputs"], f"seed_{seed}")
        metrics |= {f"seed_{seed}_{k}": v for k, v in compare(rows, found["outputs"], baseline).items()}
        metrics |= {f"seed_{seed}_ece_after_temperature": found["ece"], f"seed_{seed}_seconds": found["seconds"]}
    say(metrics, arguments.work / "metrics.json")


def _columns(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Truth (n,) bool, fold (n,) int and patient of each row."""
    y = np.array([r["label"] == POSITIVE for r in rows])
    return y, np.array([int(r["fold"]) for r in rows]), [r["patient_id"] for r in rows]


if __name__ == "__main__":
    sys.exit(main())

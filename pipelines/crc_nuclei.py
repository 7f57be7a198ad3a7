"""Colon nuclei as bags: from 32-px crops of nuclei and image labels, find the epithelial ones.

    python pipelines/crc_nuclei.py WORK --data DATA --config pipelines/configs/crc_nuclei.yaml
    python pipelines/crc_nuclei.py WORK --only prepare        slides and manifest only
    python pipelines/crc_nuclei.py WORK --only baselines      what needs no model

In: `crc_nuclei/` of the data folder (50 H&E images, 11,229 crops; research use only). Out, in WORK: one mosaic slide an
image, manifest.csv, truth.csv, and metrics.json: AUROC of the image label (an epithelial nucleus is there), pooled over
the folds; AUROC of attention and evidence for epithelial nuclei; bag size and mean colour alone on the same folds. Intervals
resample images.

Source of the task: Ilse, Tomczak, Welling, Attention-based Deep Multiple Instance Learning, ICML 2018 (1802.04712).
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarking import (
    Row,
    Scored,
    at_least,
    attention_aurocs,
    auroc,
    cross_validate,
    data_folder,
    deal_folds,
    ended,
    evidence_aurocs,
    figure,
    linear_scores,
    program,
    read_rows,
    say,
    write_rows,
)
from PIL import Image

from wsi_ips import FinetuneSettings, load_settings, make_mosaic

TILE_PX = 32
MPP = 0.5  # 20x
POSITIVE = "epithelial"
N_FOLDS = 5
_CONFIG = Path(__file__).parent / "configs" / "crc_nuclei.yaml"
# haematoxylin, eosin, DAB; Ruifrok and Johnston 2001
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])

Truth = dict[str, dict[tuple[int, int], bool]]


def prepare(data: Path, work: Path) -> tuple[list[Row], Truth]:
    """Lay each image's nuclei on a slide; write manifest.csv, truth.csv and features.csv.

    Returns:
        Rows of the manifest (patient = image), and for each slide whether the tile at a corner is epithelial.
    """
    (work / "slides").mkdir(parents=True, exist_ok=True)
    nuclei: dict[str, list[Row]] = defaultdict(list)
    for row in read_rows(data / "crc_nuclei" / "crc_nuclei.csv"):
        nuclei[row["image"]].append(row)
    rows: list[Row] = []
    known: list[dict[str, object]] = []
    colours: list[dict[str, object]] = []
    with zipfile.ZipFile(data / "crc_nuclei" / "crc_nuclei.zip") as archive:
        for image in sorted(nuclei, key=int):
            # the index lists class after class; on the slide nothing but the crop may tell
            order = np.random.default_rng(int(image)).permutation(len(nuclei[image]))
            laid = [nuclei[image][i] for i in order]
            tiles = [np.asarray(Image.open(io.BytesIO(archive.read(n["path"]))).convert("RGB")) for n in laid]
            slide_id = f"img{int(image):03d}"
            path, mask = work / "slides" / f"{slide_id}.tif", work / "slides" / f"{slide_id}.geojson"
            plan = make_mosaic(path, tiles, tile_px=TILE_PX, mpp=MPP, mask_path=mask)
            label = "positive" if any(n["class"] == POSITIVE for n in laid) else "negative"
            rows.append(_manifest_row(slide_id, label, path, mask))
            known += [
                {"slide_id": slide_id, "x0": x0, "y0": y0, "class": n["class"]}
                for n, (x0, y0) in zip(laid, plan.coords.tolist(), strict=True)
            ]
            values = bag_features(np.stack(tiles))
            colours.append({"slide_id": slide_id, **{f"f{i}": f"{v:.6f}" for i, v in enumerate(values)}})
    write_rows(work / "manifest.csv", rows)
    write_rows(work / "truth.csv", known)
    write_rows(work / "features.csv", colours)
    return rows, read_truth(work / "truth.csv")


def read_truth(path: Path) -> Truth:
    """Read truth.csv: by slide and corner, whether the nucleus is epithelial."""
    truth: Truth = defaultdict(dict)
    for row in read_rows(path):
        truth[row["slide_id"]][int(row["x0"]), int(row["y0"])] = row["class"] == POSITIVE
    return dict(truth)


def with_folds(rows: Sequence[Row], seed: int) -> list[Row]:
    """Give each image the fold that tests it, both classes dealt evenly."""
    fold = deal_folds({r["patient_id"]: r["label"] for r in rows}, N_FOLDS, seed)
    return [r | {"fold": str(fold[r["patient_id"]])} for r in rows]


def bag_features(tiles: np.ndarray) -> np.ndarray:
    """Log of the bag's size; mean and standard deviation of R, G, B; mean haematoxylin, eosin, DAB: (10,).

    Source: Ruifrok and Johnston, Analytical and Quantitative Cytology and Histology 23(4), 2001.
    """
    px = tiles.reshape(-1, 3).astype(np.float64)
    unit = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
    stains = -np.log((px + 1.0) / 256.0) @ np.linalg.inv(unit)
    return np.concatenate([[np.log(len(tiles))], px.mean(0), px.std(0), stains.mean(0)])


def baselines(rows: Sequence[Row], features: np.ndarray) -> dict[str, Any]:
    """Score by bag size alone and by mean colour alone, on the folds of the rows."""
    y = np.array([r["label"] == "positive" for r in rows])
    folds, images = np.array([int(r["fold"]) for r in rows]), [r["patient_id"] for r in rows]
    found: dict[str, Any] = {}
    for name, columns in (("bag_size", slice(0, 1)), ("mean_colour", slice(1, None))):
        found[f"{name}_auroc"] = _seeds_figure(y, [linear_scores(features[:, columns], y, folds)], images)
    return found


def score(runs: Sequence[Sequence[Scored]], truth: Truth) -> dict[str, Any]:
    """Judge bags and attention.

    Args:
        runs: a seed each; every image once, in one order, scored by a model that did not learn from it.
        truth: by slide and corner, whether the nucleus is epithelial.
    """
    first = runs[0]
    y = np.array([s.is_positive for s in first])
    images = [s.patient_id for s in first]
    outputs = [np.array([s.output for s in run]) for run in runs]
    judged = [attention_aurocs(run, truth) for run in runs]
    by_bag = np.mean([each for each, _, _ in judged], axis=0)  # NaN is decided by the truth, so in all seeds alike
    has = ~np.isnan(by_bag)
    evidence = np.stack([evidence_aurocs(run, truth) for run in runs])  # what is selected differs between seeds
    seen = ~np.isnan(evidence).all(axis=0)
    by_evidence = np.nanmean(evidence[:, seen], axis=0)
    return {
        "bag_auroc": _seeds_figure(y, outputs, images),
        **{f"bag_auroc_seed_{k}": _seeds_figure(y, [o], images) for k, o in enumerate(outputs)},
        "attention_auroc_mean_over_bags": figure(
            lambda i: float(np.mean(by_bag[has][i])), [s.patient_id for s, h in zip(first, has, strict=True) if h]
        ),
        "attention_auroc_pooled_by_seed": [round(auroc(hit, attention), 4) for _, attention, hit in judged],
        "n_positive_bags_with_other_nuclei": int(has.sum()),
        "evidence_auroc_mean_over_bags": figure(
            lambda i: float(np.mean(by_evidence[i])), [s.patient_id for s, h in zip(first, seen, strict=True) if h]
        ),
    }


def main() -> int:
    """Run the program; returns the exit status."""
    parser = program(__doc__, _CONFIG)
    parser.add_argument("--seeds", type=at_least(1), default=3, help="trainings of all folds")
    arguments = parser.parse_args()
    return ended(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    settings = load_settings(FinetuneSettings, arguments.config)
    rows, truth = prepare(data_folder(arguments.data, "crc_nuclei"), arguments.work)
    if arguments.only == "prepare":
        print(f"{len(rows)} slides, {sum(map(len, truth.values()))} nuclei: {arguments.work / 'manifest.csv'}")
        return
    metrics: dict[str, Any] = {"n_images": len(rows), "n_folds": N_FOLDS, "n_seeds": arguments.seeds}
    rows = with_folds(rows, 0)
    metrics |= baselines(rows, _features(arguments.work / "features.csv"))
    if arguments.only is None:
        runs = cross_validate(rows, arguments.work, settings, positive="positive", seed=0, n_seeds=arguments.seeds,
                              device=arguments.device)  # fmt: skip
        metrics |= score(runs, truth)
    say(metrics, arguments.work / "metrics.json")


def _features(path: Path) -> np.ndarray:
    return np.array([[float(v) for k, v in row.items() if k != "slide_id"] for row in read_rows(path)])


def _seeds_figure(y: np.ndarray, outputs: Sequence[np.ndarray], images: Sequence[str]) -> dict[str, float]:
    """Mean AUROC of several seeds' outputs (n,), with an interval by resampling images."""
    return figure(lambda i: float(np.mean([auroc(y[i], one[i]) for one in outputs])), images)


def _manifest_row(slide_id: str, label: str, path: Path, mask: Path) -> Row:
    files: Mapping[str, str] = {"slide_path": str(path.resolve()), "mask_path": str(mask.resolve())}
    return {"slide_id": slide_id, "patient_id": slide_id, "label": label, **files}


if __name__ == "__main__":
    sys.exit(main())

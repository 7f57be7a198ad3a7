"""Breast mosaics: slides laid out of real labelled tiles, with a known few of tumour among many without.

    python pipelines/idc_mosaics.py WORK --data DATA --config pipelines/configs/idc_mosaics.yaml
    python pipelines/idc_mosaics.py WORK --only prepare        slides and manifest only
    python pipelines/idc_mosaics.py WORK --only baselines      what needs no model

In: `idc_tiles/` of the data folder (72 patients, 50-px tiles, 1 = invasive ductal carcinoma). Out, in WORK: four slides a
patient, two with 5 to 30 % tumour tiles and two with none, so that neither patient nor stain tells the label;
manifest.csv with a split by patient, truth.csv, and metrics.json: for trainings on 25, 50 and 100 % of the training
patients the AUROC of test slides and of the attention against the tiles' labels. Intervals resample patients.

Source of the tiles: Cruz-Roa et al., SPIE Medical Imaging 2014; Janowczyk and Madabhushi, J. Pathol. Inform. 7, 2016.
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
    data_folder,
    deal_folds,
    ended,
    evidence_aurocs,
    figure,
    linear_scores,
    program,
    read_rows,
    say,
    train_and_score,
    write_rows,
)
from PIL import Image

from wsi_ips import FinetuneSettings, load_settings, make_mosaic

TILE_PX = 50
MPP = 1.0  # 40x scans, reduced to 10x
N_TILES = (60, 120)
TUMOUR_SHARE = (0.05, 0.30)
PAIRS = 2  # of a positive and a negative slide, a patient
FEWEST_NORMAL = 8  # tiles without tumour a patient must have: 64 with their turns
SIDES = {0: "test", 1: "test", 2: "test", 3: "val", 4: "val"}  # of ten parts; the other five train
SHARES = (0.25, 0.5, 1.0)
_CONFIG = Path(__file__).parent / "configs" / "idc_mosaics.yaml"

Pool = dict[bool, list[np.ndarray]]  # tiles with and without tumour
Truth = dict[str, dict[tuple[int, int], bool]]


def read_pools(data: Path) -> dict[str, Pool]:
    """Read the whole tiles of each patient; the smaller ones of slide edges are left out."""
    pools: dict[str, Pool] = defaultdict(lambda: {False: [], True: []})
    with zipfile.ZipFile(data / "idc_tiles" / "idc_tiles.zip") as archive:
        for row in read_rows(data / "idc_tiles" / "idc_tiles.csv"):
            if (int(row["width"]), int(row["height"])) == (TILE_PX, TILE_PX):
                tile = np.asarray(Image.open(io.BytesIO(archive.read(row["path"]))).convert("RGB"))
                pools[row["patient"]][row["label"] == "1"].append(tile)
    return {p: pool for p, pool in sorted(pools.items()) if len(pool[False]) >= FEWEST_NORMAL}


def deal_slide(pool: Pool, rng: np.random.Generator, *, is_positive: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """Draw the tiles of a slide in random places: the tiles and whether each is tumour, (n,) bool.

    A tile is used again turned or flipped, never twice the same way where there are enough.
    """
    n = int(rng.integers(N_TILES[0], N_TILES[1] + 1))
    n = min(n, 8 * len(pool[False]))
    n_tumour = max(1, round(float(rng.uniform(*TUMOUR_SHARE)) * n)) if is_positive else 0
    tiles = [*_draw(pool[True], n_tumour, rng), *_draw(pool[False], n - n_tumour, rng)]
    order = rng.permutation(n)
    return [tiles[i] for i in order], order < n_tumour


def prepare(pools: Mapping[str, Pool], work: Path, seed: int = 0) -> tuple[list[Row], Truth, np.ndarray]:
    """Lay the slides; write manifest.csv and truth.csv.

    Returns:
        Rows of the manifest, for each slide whether the tile at a corner is tumour, and mean colours (n, 6) of slides.
    """
    (work / "slides").mkdir(parents=True, exist_ok=True)
    part = deal_folds({p: bool(pool[True]) for p, pool in pools.items()}, 10, seed)
    rows: list[Row] = []
    truth: Truth = {}
    colours = []
    for number, (patient, pool) in enumerate(sorted(pools.items())):
        rng = np.random.default_rng([seed, number])
        kinds = [True, False] * PAIRS if pool[True] else [False] * PAIRS
        for i, is_positive in enumerate(kinds):
            tiles, is_tumour = deal_slide(pool, rng, is_positive=is_positive)
            slide_id = f"{patient}_{i + 1}"
            path, mask = work / "slides" / f"{slide_id}.tif", work / "slides" / f"{slide_id}.geojson"
            plan = make_mosaic(path, tiles, tile_px=TILE_PX, mpp=MPP, mask_path=mask)
            truth[slide_id] = {(x, y): bool(t) for (x, y), t in zip(plan.coords.tolist(), is_tumour, strict=True)}
            label = "positive" if is_positive else "negative"
            files = {"slide_path": str(path.resolve()), "mask_path": str(mask.resolve())}
            split = SIDES.get(part[patient], "train")
            rows.append({"slide_id": slide_id, "patient_id": patient, "label": label, "split": split, **files})
            px = np.stack(tiles).reshape(-1, 3)
            colours.append(np.concatenate([px.mean(0), px.std(0)]))
    write_rows(work / "manifest.csv", rows)
    write_rows(work / "truth.csv", [{"slide_id": s, "x0": x, "y0": y, "tumour": int(t)}
                                    for s, tiles_of in truth.items() for (x, y), t in tiles_of.items()])  # fmt: skip
    return rows, truth, np.array(colours)


def with_share(rows: Sequence[Row], share: float, seed: int) -> list[Row]:
    """Keep a share of the training patients, at least four; a larger share holds the smaller ones. Others all stay."""
    patients = sorted({r["patient_id"] for r in rows if r["split"] == "train"})
    order = np.random.default_rng([seed, 5]).permutation(patients).tolist()
    kept = set(order[: max(4, round(share * len(order)))])
    return [r for r in rows if r["split"] != "train" or r["patient_id"] in kept]


def baseline(rows: Sequence[Row], colours: np.ndarray) -> dict[str, Any]:
    """Score the test slides by their mean colour, learned on all training slides."""
    is_test = np.array([r["split"] == "test" for r in rows])
    used = is_test | np.array([r["split"] == "train" for r in rows])
    y = np.array([r["label"] == "positive" for r in rows])
    scores = linear_scores(colours[used], y[used], is_test[used].astype(int))[is_test[used]]
    patients = [r["patient_id"] for r in rows if r["split"] == "test"]
    return {"mean_colour_auroc": figure(lambda i: auroc(y[is_test][i], scores[i]), patients)}


def score(scored: Sequence[Scored], truth: Truth, name: str) -> dict[str, Any]:
    """Judge the slides and the attention of one training, as figures that start with `name`."""
    y, output = np.array([s.is_positive for s in scored]), np.array([s.output for s in scored])
    patients = [s.patient_id for s in scored]
    each, pooled, is_tumour = attention_aurocs(scored, truth)
    found = [i for i in range(len(scored)) if not np.isnan(each[i])]
    evidence = evidence_aurocs(scored, truth)
    with_evidence = [i for i in range(len(scored)) if not np.isnan(evidence[i])]
    return {
        f"{name}_slide_auroc": figure(lambda i: auroc(y[i], output[i]), patients),
        f"{name}_attention_auroc_mean_over_slides": figure(
            lambda i: float(each[found][i].mean()), [patients[i] for i in found]
        ),
        f"{name}_attention_auroc_pooled": round(auroc(is_tumour, pooled), 4),
        f"{name}_evidence_auroc_mean_over_slides": figure(
            lambda i: float(np.mean(evidence[with_evidence][i])), [patients[i] for i in with_evidence]
        ),
    }


def main() -> int:
    """Run the program; returns the exit status."""
    parser = program(__doc__, _CONFIG)
    parser.add_argument("--seed", type=at_least(0), default=0, help="of slides, split and training")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the training patients, 0 to 1")
    arguments = parser.parse_args()
    return ended(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    settings = load_settings(FinetuneSettings, arguments.config)
    pools = read_pools(data_folder(arguments.data, "idc_tiles"))
    rows, truth, colours = prepare(pools, arguments.work, arguments.seed)
    if arguments.only == "prepare":
        print(f"{len(rows)} slides of {len(pools)} patients: {arguments.work / 'manifest.csv'}")
        return
    metrics: dict[str, Any] = {"n_slides": len(rows), "n_patients": len(pools), "seed": arguments.seed}
    metrics |= baseline(rows, colours)
    for share in arguments.shares if arguments.only is None else ():
        part, name = with_share(rows, share, arguments.seed), f"share_{100 * share:g}"
        scored = train_and_score(
            part, arguments.work / name, settings, positive="positive", seed=arguments.seed, device=arguments.device
        )
        metrics[f"{name}_n_train_slides"] = sum(r["split"] == "train" for r in part)
        metrics |= score(scored, truth, name)
    say(metrics, arguments.work / "metrics.json")


def _draw(tiles: Sequence[np.ndarray], n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw n of the eight turns and flips of each tile, each at most once where there are as many."""
    turned: list[np.ndarray] = []
    for number in rng.choice(8 * len(tiles), n, replace=n > 8 * len(tiles)) if n else ():
        tile = np.rot90(tiles[number // 8], number % 4)
        turned.append(np.ascontiguousarray(tile[:, ::-1] if number % 8 >= 4 else tile))
    return turned


if __name__ == "__main__":
    sys.exit(main())

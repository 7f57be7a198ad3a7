"""What the benchmark programs share, no program itself: where the data is, folds, one training with its judged slides, figures.

Nothing of the data is kept here, and what is made of it goes to a work folder of the user's.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wsi_ips import (
    ClassifyOptions,
    FinetuneOptions,
    FinetuneResult,
    FinetuneSettings,
    WsiIpsError,
    classify,
    exit_status,
    finetune_manifest,
    load_manifest,
    patient_bootstrap,
    read_ledger,
)

__all__ = ["Row", "Scored", "at_least", "attention_aurocs", "auroc", "cross_validate", "data_folder", "deal_folds", "ended",
           "evidence_aurocs", "figure", "linear_scores", "program", "read_rows", "say", "train_and_score", "write_rows"]  # fmt: skip

Row = dict[str, str]
_ROOT = Path(__file__).resolve().parents[1]
_REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn


@dataclass(frozen=True)
class Scored:
    """What a model that never learned from a slide says of it."""

    slide_id: str
    patient_id: str
    is_positive: bool
    output: float  # logit of the positive class
    coords: np.ndarray  # (N, 2) int64, level-0 px
    attention: np.ndarray  # (N,) float, sums to 1
    selected: np.ndarray  # (m,) int64 rows of the tiles the output was read from
    evidence: np.ndarray  # (m,) float, towards the positive class


def program(doc: str | None, config: Path) -> argparse.ArgumentParser:
    """What every benchmark program can be told."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for what is prepared, models and metrics.json")
    parser.add_argument("--data", help="folder of data sets; default WSI_IPS_DATA or ../shared/data")
    parser.add_argument("--config", type=Path, default=config, help="YAML with finetune settings")
    parser.add_argument("--only", choices=["prepare", "baselines"], help="stop early")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """Make what reads a whole number of the command line, for argparse; smaller ones are refused with the option's name."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, {least} or more")
        return number

    return read


def ended(work: Callable[[], None]) -> int:
    """Do a program's work; an error of the package becomes its sentence and the exit status."""
    try:
        work()
    except WsiIpsError as error:
        print(error, file=sys.stderr)
        return exit_status(error)
    return 0


def data_folder(given: str | None, needed: str) -> Path:
    """Find the folder of data sets: as given, else WSI_IPS_DATA, else `shared/data` beside the checkout.

    Raises:
        WsiIpsError: `needed` is not in it.
    """
    folder = Path(given or os.environ.get("WSI_IPS_DATA") or _ROOT.parent / "shared" / "data")
    if not (folder / needed).exists():
        raise WsiIpsError(f"{folder / needed} is not there; give the folder of data sets by --data or WSI_IPS_DATA")
    return folder


def read_rows(path: Path) -> list[Row]:
    """Read a CSV, every cell as text."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Write rows of the same keys as CSV; returns the path."""
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def deal_folds(groups: Mapping[str, object], n_folds: int, seed: int) -> dict[str, int]:
    """Deal groups (patients) out to folds, those of one kind evenly.

    Args:
        groups: kind of each group; every kind is shuffled and dealt on where the one before ended.
    """
    rng = np.random.default_rng([seed, 3])
    names: list[str] = []
    for kind in sorted({str(k) for k in groups.values()}):
        names += rng.permutation(sorted(g for g, k in groups.items() if str(k) == kind)).tolist()
    return {name: i % n_folds for i, name in enumerate(names)}


def train_and_score(
    rows: Sequence[Row], out: Path, settings: FinetuneSettings, *, positive: str, seed: int, device: str = "auto"
) -> list[Scored]:
    """Train on the rows of split train (val chooses the epoch) and score those of split test.

    Args:
        rows: of a manifest, with label, patient_id and split; paths absolute.
        out: folder; model/, run/ and manifests appear there. A second start goes on.
        positive: label whose logit is kept; the other class comes first.
    """
    judged = [r for r in rows if r["split"] == "test"]
    learned = [r for r in rows if r["split"] != "test"]  # the test slides are scored once, below
    _finetune(learned, out, settings, positive, FinetuneOptions(seed=seed, device=device))
    return _score(judged, out / "model", out / "run", positive, device)


def cross_validate(
    rows: Sequence[Row], out: Path, settings: FinetuneSettings, *, positive: str, seed: int, n_seeds: int = 1,
    device: str = "auto",
) -> list[list[Scored]]:  # fmt: skip
    """Train once a fold (column `fold`) and seed; score each slide by the models that did not see it.

    Returns:
        For every seed all slides, in the order of rows.
    """
    n_folds = len({r["fold"] for r in rows})
    options = FinetuneOptions(seed=seed, seeds=n_seeds, folds=n_folds, device=device)
    result = _finetune(rows, out, settings, positive, options)
    by_id = {r["slide_id"]: r for r in rows}
    found: dict[int, dict[str, Scored]] = {}
    for fit in result.fits:
        judged = [by_id[m.record.slide_id] for m in fit.job.cohort.test]
        for s in _score(judged, fit.model, fit.model.with_name("run"), positive, device):
            found.setdefault(fit.job.train.seed, {})[s.slide_id] = s
    return [[one[r["slide_id"]] for r in rows] for one in found.values()]


def _finetune(
    rows: Sequence[Row], out: Path, settings: FinetuneSettings, positive: str, options: FinetuneOptions
) -> FinetuneResult:
    out.mkdir(parents=True, exist_ok=True)
    classes = tuple(sorted({r["label"] for r in rows}, key=lambda label: label == positive))
    manifest = load_manifest(write_rows(out / "manifest.csv", rows), features=_has_features(rows))
    return finetune_manifest(manifest, out / "model", replace(options, classes=classes, settings=settings, cache="off"))


def _score(rows: Sequence[Row], model: Path, run: Path, positive: str, device: str) -> list[Scored]:
    manifest = load_manifest(write_rows(model.parent / f"{run.name}.csv", rows), features=_has_features(rows))
    summary = classify(manifest, str(model), run, ClassifyOptions(device=device, cache="off", formats=()))
    if summary.has_failures:
        raise WsiIpsError(f"{run}: {summary.text()}; see {run / 'index.html'}")
    found = []
    for r in rows:
        p = read_ledger(run / "slides" / r["slide_id"] / f"{r['slide_id']}.ledger.h5")
        output, attention = float(p.outputs[0]), np.asarray(p.attention[:, 0], np.float64)
        evidence = np.asarray(p.evidence[:, 0], np.float64)
        found.append(Scored(r["slide_id"], r["patient_id"], r["label"] == positive, output, p.coords, attention, p.selected,
                            evidence))  # fmt: skip
    return found


def _has_features(rows: Sequence[Row]) -> bool:
    return "features_path" in rows[0]


def linear_scores(features: np.ndarray, is_positive: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Score every case by a logistic regression on the other folds.

    Of several regularisations the one is taken that ends best on these very cases: a baseline that nothing is held back
    from, so that what beats it beats any honest choice.

    Args:
        features: (n, F), standardised here.
        is_positive: (n,) bool.
        folds: (n,) number of the fold that tests a case.

    Returns:
        (n,) logits.
    """
    tried = []
    for c in _REGULARISATIONS:
        scores = np.empty(len(features))
        for fold in np.unique(folds):
            own = folds == fold
            model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
            scores[own] = model.fit(features[~own], is_positive[~own]).decision_function(features[own])
        tried.append(scores)
    return max(tried, key=lambda scores: auroc(is_positive, scores))


def auroc(is_positive: np.ndarray, score: np.ndarray) -> float:
    """AUROC by midranks; NaN where one class is absent."""
    y = np.asarray(is_positive, bool)
    n, n_pairs = int(y.sum()), int(y.sum()) * int((~y).sum())
    return float((rankdata(score)[y].sum() - n * (n + 1) / 2) / n_pairs) if n_pairs else float("nan")


def attention_aurocs(
    scored: Sequence[Scored], truth: Mapping[str, Mapping[tuple[int, int], bool]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hold attention against the truth of tiles.

    Args:
        scored: slides; negative ones have no tile to find and are left out.
        truth: by slide and corner (x0, y0), whether the tile is what the label is about.

    Returns:
        AUROC of each slide (n,), NaN for negative slides and where all tiles are alike; attention x N and truth of all
        tiles of the positive slides, (tiles,) each.

    Raises:
        WsiIpsError: a tile of the model has no truth.
    """
    each, pooled, known = np.full(len(scored), np.nan), [np.empty(0)], [np.empty(0, bool)]
    for i, s in enumerate(scored):
        if not s.is_positive:
            continue
        is_hit = _truth_of(s, truth)
        each[i] = auroc(is_hit, s.attention)
        pooled.append(s.attention * len(s.attention))
        known.append(is_hit)
    return each, np.concatenate(pooled), np.concatenate(known)


def evidence_aurocs(scored: Sequence[Scored], truth: Mapping[str, Mapping[tuple[int, int], bool]]) -> np.ndarray:
    """Hold evidence against the truth of the tiles it is given for: AUROC among the selected of each slide.

    Returns:
        (n,), NaN for negative slides and where all selected tiles are alike.
    """
    each = np.full(len(scored), np.nan)
    for i, s in enumerate(scored):
        if s.is_positive:
            each[i] = auroc(_truth_of(s, truth)[s.selected], s.evidence)
    return each


def _truth_of(s: Scored, truth: Mapping[str, Mapping[tuple[int, int], bool]]) -> np.ndarray:
    """Whether each tile (N,) is what the label is about."""
    corners = [(int(x0), int(y0)) for x0, y0 in s.coords]
    unknown = [c for c in corners if c not in truth[s.slide_id]]
    if unknown:
        raise WsiIpsError(
            f"{s.slide_id}: no tile was laid at {unknown[0]}; are mask and tile size those of the mosaic?"
        )
    return np.array([truth[s.slide_id][c] for c in corners])


def figure(metric: Callable[[np.ndarray], float], patients: Sequence[str]) -> dict[str, float]:
    """Compute a metric of row numbers with its 95 % interval by resampling patients, as a row of metrics.json."""
    found = patient_bootstrap(metric, patients)
    return {"value": round(found.value, 4), "low": round(found.low, 4), "high": round(found.high, 4), "n": found.n}


def say(metrics: Mapping[str, Any], path: Path) -> None:
    """Write metrics.json and print its figures as a table."""
    path.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    for name, value in metrics.items():
        if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
            print(f"{name:42s} {value['value']:7.3f}   {value['low']:.3f} to {value['high']:.3f}   n {value['n']}")
        else:
            print(f"{name:42s} {value if isinstance(value, str) else json.dumps(value)}")

"""Whole trainings on files of features, where the answer is planted: kinds of task, folds, seeds, context, shuffled labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from wsi_ips.config import load_settings
from wsi_ips.engine.classify import ClassifyOptions, classify
from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.manifest import load_manifest
from wsi_ips.model.bundle import load_bundle
from wsi_ips.recipe import FinetuneSettings
from wsi_ips.results import read_ledger
from wsi_ips.training.finetune import FinetuneOptions, FinetuneResult, finetune_manifest, label_columns

WIDTH = 8
BASE: dict[str, Any] = {
    "model": {"encoder": {"name": "features"}, "attention": {"dim": 16, "n_heads": 2, "dropout": 0.0},
              "selection": {"memory_size": 8, "chunk_size": 32}},
    "train": {"epochs": 10, "batch_slides": 8, "lr": 1e-2, "weight_decay": 0.01},
}  # fmt: skip


def _settings(**changes: Any) -> FinetuneSettings:
    return load_settings(FinetuneSettings, {k: {**BASE.get(k, {}), **changes.get(k, {})} for k in {*BASE, *changes}})


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of 60 slides of 40 patients: a share of 24 vectors is shifted, and every label follows from the share."""
    folder = tmp_path_factory.mktemp("bags")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        patient = i if i < 20 else 20 + (i - 20) // 2  # 20 patients with one slide, 20 with two
        share = (0.0, 0.25, 0.5, 0.75)[patient // 6 % 4]  # every split has every share
        x = rng.normal(size=(24, WIDTH)).astype(np.float32)
        x[: round(24 * share), 0] += 4.0
        if i % 2:
            torch.save(torch.from_numpy(x), folder / f"s{i:02d}.pt")
        else:
            with h5py.File(folder / f"s{i:02d}.h5", "w") as f:
                f["features"] = x
        rows.append({
            "slide_id": f"s{i:02d}", "features_path": f"s{i:02d}.{'pt' if i % 2 else 'h5'}", "patient_id": f"P{patient:02d}",
            "site": "AB"[i % 2], "split": ("train", "train", "train", "val", "test", "test")[patient % 6],
            "label": "tumour" if share > 0.0 else "normal", "grade": str(round(4 * share)), "share": f"{100 * share:g}",
            "months": f"{(1.0 - share) * 40 + 1 + float(rng.random()):.2f}", "died": str(int(i % 5 > 0)),
            "marks": "none" if share == 0 else "low" if share < 0.5 else "low;high",
        })  # fmt: skip
    with (folder / "bags.csv").open("w", newline="") as out:
        table = csv.DictWriter(out, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder / "bags.csv"


@pytest.fixture
def train(bags: Path, tmp_path: Path) -> Callable[..., FinetuneResult]:
    """Finetune on the bags; columns and options as given."""

    def run(
        settings: FinetuneSettings,
        columns: tuple[str, ...] = ("label",),
        drop: str = "",
        folder: str = "model",
        **options: Any,
    ) -> FinetuneResult:
        events = options.get("events")
        wanted = label_columns(settings, columns, events)
        path = bags
        if drop:
            table = list(csv.DictReader(bags.open()))
            path = bags.with_name(f"without_{drop}.csv")
            with path.open("w", newline="") as out:
                writer = csv.DictWriter(out, [k for k in table[0] if k != drop])
                writer.writeheader()
                writer.writerows([{k: v for k, v in r.items() if k != drop} for r in table])
        manifest = load_manifest(path, label_columns=wanted, features=True)
        given = FinetuneOptions(
            label_columns=columns, settings=settings, cache="off", device="cpu", quiet=True, n_resamples=50, **options
        )
        return finetune_manifest(manifest, tmp_path / folder, given)

    return run


def _metric(result: FinetuneResult, task: str, name: str) -> float:
    assert result.evaluation is not None
    return next(t for t in result.evaluation.tasks if t.task.name == task).metrics[name].value


def test_every_kind_of_task_learns_at_once_with_gaps(train: Callable[..., FinetuneResult]) -> None:
    """Six questions of one slide, one query each; each is answered far better than by chance on test patients."""
    tasks = [
        {"name": "label", "classes": ["normal", "tumour"]},
        {"name": "kind", "column": "grade", "kind": "multiclass"},
        {"name": "marks", "kind": "multilabel"},
        {"name": "grade", "kind": "ordinal"},
        {"name": "share", "kind": "regression"},
        {"name": "months", "kind": "survival", "event_column": "died", "n_intervals": 3},
    ]
    result = train(
        _settings(
            model={**BASE["model"], "selection": {"memory_size": 24}, "tasks": tasks},
            train={**BASE["train"], "epochs": 20},
        )
    )
    assert _metric(result, "label", "auroc") > 0.9
    assert _metric(result, "kind", "auroc") > 0.8
    assert _metric(result, "marks", "auroc") > 0.9
    assert _metric(result, "grade", "qwk") > 0.7
    assert _metric(result, "share", "r2") > 0.6
    assert _metric(result, "months", "c_index") > 0.75
    stored = {t.name: t for t in load_bundle(result.bundle).settings.tasks}
    assert stored["kind"].classes == ("0", "1", "2", "3")
    assert stored["marks"].classes == ("high", "low")
    assert 20 < stored["share"].center < 60
    assert len(stored["months"].cuts) == 2


def test_folds_judge_every_slide_by_models_that_did_not_see_its_patient(
    train: Callable[..., FinetuneResult], tmp_path: Path, bags: Path
) -> None:
    """Each slide is tested once; no patient of a fold's test is in its training or validation; the bundle is all folds."""
    result = train(_settings(), drop="split", folds=3)
    assert sorted(result.cases.slide_ids) == [f"s{i:02d}" for i in range(60)]
    for fit in result.fits:
        sides = [
            {m.record.patient_id for m in side}
            for side in (fit.job.cohort.train, fit.job.cohort.val, fit.job.cohort.test)
        ]
        assert not (sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2])
    assert _metric(result, "label", "auroc") > 0.9
    bundle = load_bundle(result.bundle)
    assert len(bundle.classifier.members) == 3
    manifest = load_manifest(bags, features=True)
    assert not classify(
        manifest, str(result.bundle), tmp_path / "run", ClassifyOptions(limit=2, device="cpu", quiet=True)
    ).has_failures
    p = read_ledger(tmp_path / "run" / "slides" / "s00" / "s00.ledger.h5")
    assert p.logits.shape[2] == 6  # two heads of three members
    x = load_bundle(result.fits[0].model).single
    own = [load_bundle(f.model).single for f in result.fits]
    features = np.split(p.values, 3, axis=1)
    outputs = [m.read_out(np.ascontiguousarray(v)).outputs for m, v in zip(own, features, strict=True)]
    assert p.outputs == pytest.approx(np.mean(outputs, axis=0), abs=1e-5)
    assert x.dim == 16


@pytest.mark.slow
def test_a_refit_learns_from_everybody(train: Callable[..., FinetuneResult]) -> None:
    """One model, trained on all slides for the folds' median number of epochs; the figures stay those of the folds."""
    result = train(_settings(split={"final": "refit"}), drop="split", folds=2)
    bundle = load_bundle(result.bundle)
    training = bundle.extra["training"]
    assert (training["n_train"], training["n_val"]) == (60, 0)
    assert training["settings"]["epochs"] == round(np.median([f.best_epoch for f in result.fits]))
    assert len(result.cases) == 60
    assert bundle.single.dim == 16
    again = train(_settings(split={"final": "refit"}), drop="split", folds=2)  # a second start finds it done
    assert again.hash == result.hash


def test_the_epoch_kept_is_the_best_or_the_last(train: Callable[..., FinetuneResult]) -> None:
    # the score on 10 validation slides is soon 1.0; then the smaller loss decides
    best, last = (train(_settings(train={"epochs": 6, "keep": keep}), folder=keep).fits[0] for keep in ("best", "last"))
    assert [e.val_loss for e in best.history] == [e.val_loss for e in last.history]
    scores = [(round(e.val_score, 6), -e.val_loss) for e in best.history]
    assert best.best_epoch == 1 + scores.index(max(scores))
    assert last.best_epoch == 6
    with pytest.raises(ConfigError, match="patience 3"):
        _settings(train={"patience": 3, "keep": "last"})


def test_seeds_show_their_spread(train: Callable[..., FinetuneResult]) -> None:
    """Trainings that differ by seed alone have the same splits; report and metrics give each."""
    result = train(_settings(train={**BASE["train"], "epochs": 3}), seeds=2)
    assert [f.job.train.seed for f in result.fits] == [0, 1]
    assert len({tuple(m.record.slide_id for m in f.job.cohort.val) for f in result.fits}) == 1
    assert result.evaluation is not None
    assert [s.name for s in result.evaluation.tasks[0].seeds] == ["seed 0", "seed 1"]
    assert "seed alone" in (result.work / "index.html").read_text()


def test_shuffled_labels_teach_nothing(train: Callable[..., FinetuneResult]) -> None:
    """The check's interval holds chance while the real training is far above it; the report says so."""
    result = train(_settings(train={**BASE["train"], "epochs": 6}), drop="split", folds=2, sanity=True)
    found = json.loads((result.work / "metrics.json").read_text())["sanity"]
    assert found["low"] <= 0.5 <= found["high"]
    assert _metric(result, "label", "auroc") > 0.9
    assert "shuffled labels" in (result.work / "index.html").read_text()


@pytest.mark.slow
def test_context_finds_what_the_top_m_cannot(train: Callable[..., FinetuneResult], tmp_path: Path) -> None:
    """The share of shifted vectors among 24 is read with a memory of 3 only when the rest is pooled, too."""
    model = {**BASE["model"], "tasks": [{"name": "share", "kind": "regression"}]}
    r2 = {}
    for on in (False, True):
        settings = _settings(
            model={**model, "selection": {"memory_size": 3, "context": on}}, train={**BASE["train"], "epochs": 20}
        )
        result = train(settings, seed=int(on))
        r2[on] = _metric(result, "share", "r2")
        (tmp_path / "model").rename(tmp_path / f"model_{on}")
        (tmp_path / "model.training").rename(tmp_path / f"model_{on}.training")
    assert r2[True] > r2[False] + 0.1
    assert r2[True] > 0.5


def test_a_new_projector_is_told_the_statistics_of_the_vectors(train: Callable[..., FinetuneResult]) -> None:
    """Its batch norm is frozen, so they are measured before the first step; as for an encoder from scratch."""
    attention = {**BASE["model"]["attention"], "projector_norm": "batch"}
    settings = _settings(model={"attention": attention}, train={"epochs": 1, "lr": 1e-6})
    norm = load_bundle(train(settings).bundle).single.projector[2]
    assert norm.running_mean.abs().min() > 1e-4
    assert (norm.running_var - 1.0).abs().min() > 1e-4


def test_a_head_is_told_the_width_of_the_vectors(train: Callable[..., FinetuneResult]) -> None:
    """The bundle knows it; another width is refused by name."""
    result = train(_settings(train={**BASE["train"], "epochs": 1}))
    assert load_bundle(result.bundle).settings.encoder.width == WIDTH
    wrong = _settings(model={**BASE["model"], "encoder": {"name": "features", "width": 5}})
    with pytest.raises(ManifestError, match="only 0 training"):
        train(wrong, seed=1)

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
from wsi_ips.errors import ConfigError, ManifestError, SlideError
from wsi_ips.manifest import load_manifest
from wsi_ips.model.bundle import load_bundle
from wsi_ips.recipe import FinetuneSettings
from wsi_ips.results import read_ledger
from wsi_ips.training import fit as fit_module
from wsi_ips.training import loop as loop_module
from wsi_ips.training.evaluate import EvaluateOptions, evaluate_run
from wsi_ips.training.finetune import FinetuneOptions, FinetuneResult, finetune_manifest, label_columns
from wsi_ips.training.labelling import Labelled

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
        table: Path = bags,
        **options: Any,
    ) -> FinetuneResult:
        events = options.get("events")
        wanted = label_columns(settings, columns, events)
        path = table
        if drop:
            rows = list(csv.DictReader(bags.open()))
            path = bags.with_name(f"without_{drop}.csv")
            with path.open("w", newline="") as out:
                writer = csv.DictWriter(out, [k for k in rows[0] if k != drop])
                writer.writeheader()
                writer.writerows([{k: v for k, v in r.items() if k != drop} for r in rows])
        manifest = load_manifest(path, label_columns=wanted, features=True)
        given = FinetuneOptions(
            label_columns=columns, settings=settings, cache="off", device="cpu", quiet=True, n_resamples=50, **options
        )
        return finetune_manifest(manifest, tmp_path / folder, given)

    return run


def _metric(result: FinetuneResult, task: str, name: str) -> float:
    assert result.evaluation is not None
    return next(t for t in result.evaluation.tasks if t.task.name == task).metrics[name].value


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_shuffled_labels_teach_nothing(train: Callable[..., FinetuneResult]) -> None:
    """The check's interval holds chance while the real training is far above it; the report says so."""
    result = train(_settings(train={**BASE["train"], "epochs": 6}), drop="split", folds=2, sanity=True)
    found = json.loads((result.work / "metrics.json").read_text())["sanity"]
    assert found["low"] <= 0.5 <= found["high"]
    assert _metric(result, "label", "auroc") > 0.9
    assert "shuffled labels" in (result.work / "index.html").read_text()


@pytest.mark.slow
def test_the_check_would_see_a_leak(tmp_path: Path) -> None:
    """150 held-out slides: shuffled labels end near chance, where the labels themselves are learned well."""
    rng = np.random.default_rng(3)
    rows = ["slide_id,features_path,patient_id,label,split"]
    for i in range(300):
        x = rng.normal(size=(6, WIDTH)).astype(np.float32)
        x[:2, 0] += 5.0 * (i % 2)
        torch.save(torch.from_numpy(x), tmp_path / f"s{i}.pt")
        rows.append(f"s{i},s{i}.pt,P{i},{'ab'[i % 2]},{('train', 'val')[i // 2 % 2]}")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    options = FinetuneOptions(settings=_settings(train={**BASE["train"], "epochs": 2}), cache="off", device="cpu",
                              quiet=True, n_resamples=200, sanity=True)  # fmt: skip
    result = finetune_manifest(load_manifest(tmp_path / "m.csv", features=True), tmp_path / "m", options)
    found = json.loads((result.work / "metrics.json").read_text())["sanity"]
    assert found["n"] == 150
    # the interval is about 0.09 either way: a leak of a third of the labels would lie outside
    assert 0.35 < found["low"] < found["value"] < found["high"] < 0.65
    assert _metric(result, "label", "auroc") > 0.95


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
        train(wrong, folder="other")


def test_the_temperature_is_that_of_the_validation_slides(
    train: Callable[..., FinetuneResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is fitted once, on the logits and targets of validation alone, and the bundle carries it."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def fit(outputs: np.ndarray, targets: np.ndarray, _: Any) -> float:
        seen.append((outputs, targets))
        return 1.5

    monkeypatch.setattr(fit_module, "fit_temperature", fit)
    result = train(_settings(train={"epochs": 1}))
    (fitted,) = seen
    val = result.fits[0].cases.in_part("val")
    assert val.slide_ids == tuple(m.record.slide_id for m in result.fits[0].job.cohort.val)
    assert np.array_equal(fitted[0], val.outputs)
    assert np.array_equal(fitted[1], val.targets)
    assert load_bundle(result.bundle).settings.tasks[0].temperature == 1.5


def test_balanced_class_weights_are_those_of_the_training_slides(
    train: Callable[..., FinetuneResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """n / (2 n_k) of training alone reaches the steps."""
    seen: list[Any] = []
    real = loop_module.Learner

    def watch(*arguments: Any) -> Any:
        seen.append(arguments[4])
        return real(*arguments)

    monkeypatch.setattr(loop_module, "Learner", watch)
    result = train(_settings(train={"epochs": 1, "class_weights": "balanced"}))
    y = np.array([m.targets[0] for m in result.fits[0].job.cohort.train])
    assert seen == [((len(y) / (2 * np.sum(y == 0.0)), len(y) / (2 * np.sum(y == 1.0))),)]


def test_seeds_start_from_other_heads(train: Callable[..., FinetuneResult]) -> None:
    """At a rate that moves nothing the two models differ all the same, or their spread would be too small."""
    result = train(_settings(train={"epochs": 1, "lr": 1e-9}), seeds=2)
    one, other = (load_bundle(f.model).single.attention.query for f in result.fits)
    assert float((one - other).detach().abs().max()) > 1e-3


def test_folds_share_the_geometric_mean_of_their_temperatures(
    train: Callable[..., FinetuneResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temperatures 1 and 4 of two folds: the ensemble answers at 2."""
    found = iter([1.0, 4.0])
    monkeypatch.setattr(fit_module, "fit_temperature", lambda *_: next(found))
    result = train(_settings(train={"epochs": 1}), drop="split", folds=2)
    assert [f.tasks[0].temperature for f in result.fits] == [1.0, 4.0]
    assert load_bundle(result.bundle).settings.tasks[0].temperature == 2.0


def test_of_several_seeds_the_first_is_the_bundle_and_validation_chooses_thresholds(
    train: Callable[..., FinetuneResult],
) -> None:
    """No ensemble of seeds: the first one's weights; no threshold but the one in use is chosen by the slides it is judged on."""
    result = train(_settings(train={"epochs": 2}), seeds=2)
    kept, first = (load_bundle(p).single.state_dict() for p in (result.bundle, result.fits[0].model))
    assert all(torch.equal(kept[k], first[k]) for k in first)
    assert result.evaluation is not None
    assert {row.name == "in use": row.chosen_on for row in result.evaluation.tasks[0].operating} == {
        True: "",
        False: "val",
    }


def test_the_scale_of_numbers_is_that_of_the_training_slides(train: Callable[..., FinetuneResult]) -> None:
    """Neither validation nor test slides have a part in centre and spread."""
    result = train(_settings(train={"epochs": 1}), columns=("share",), kinds={"share": "regression"})
    y = np.array([m.targets[0] for m in result.fits[0].job.cohort.train])
    task = load_bundle(result.bundle).settings.tasks[0]
    assert (task.center, task.spread) == pytest.approx((y.mean(), y.std()))


@pytest.mark.slow
def test_a_training_that_lost_a_slide_on_the_way_goes_on_later(
    train: Callable[..., FinetuneResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best so far is kept and said to be that; the same command ends with the undisturbed training's bundle."""
    real = loop_module.Loop._learn

    def lose(self: Any, epoch: int, *rest: Any) -> None:
        if epoch == 2:
            raise SlideError("E_TILE", "a tile is gone")
        real(self, epoch, *rest)

    settings = _settings(train={"epochs": 3})
    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Loop, "_learn", lose)
        short = train(settings)
    assert (len(short.fits[0].history), short.fits[0].is_complete) == (1, False)
    assert "a tile is gone" in " ".join(n.message for n in short.fits[0].notes)
    again, whole = train(settings), train(settings, folder="whole")
    assert len(again.fits[0].history) == 3
    assert again.hash == whole.hash


def test_each_side_does_its_own_part(
    train: Callable[..., FinetuneResult], bags: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop learns on the training slides and chooses by the validation slides; it is never given another one."""
    seen: list[tuple[list[str], list[str]]] = []
    real = loop_module.Loop.run

    def watch(self: Any, learn: list[Any], held: list[Any]) -> Any:
        seen.append(([p.member.record.slide_id for p in learn], [p.member.record.slide_id for p in held]))
        return real(self, learn, held)

    monkeypatch.setattr(loop_module.Loop, "run", watch)
    result = train(_settings(train={"epochs": 1}))
    table = list(csv.DictReader(bags.open()))
    assert seen == [tuple([r["slide_id"] for r in table if r["split"] == side] for side in ("train", "val"))]
    assert sorted(result.cases.slide_ids) == [r["slide_id"] for r in table if r["split"] == "test"]


def test_a_new_projector_is_measured_on_training_slides_alone(
    train: Callable[..., FinetuneResult], bags: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics that the model is frozen on are learned, too: validation slides have no part in them."""
    measured: list[str] = []
    monkeypatch.setattr(
        fit_module, "measure_projector", lambda _, learn, *__: measured.extend(p.member.record.slide_id for p in learn)
    )
    attention = {**BASE["model"]["attention"], "projector_norm": "batch"}
    train(_settings(model={"attention": attention}, train={"epochs": 1}))
    assert measured == [r["slide_id"] for r in csv.DictReader(bags.open()) if r["split"] == "train"]


def test_folds_that_are_not_asked_for_are_named(train: Callable[..., FinetuneResult], bags: Path) -> None:
    """A column of folds is not used in silence, and neither are test slides that no fold judges."""
    table = list(csv.DictReader(bags.open()))
    path = bags.with_name("with_fold.csv")
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, [*table[0], "fold"])
        writer.writeheader()
        writer.writerows([r | {"fold": str(int(r["patient_id"][1:]) % 2)} for r in table])
    for folds, code in ((None, "E_FOLDS_UNUSED"), (2, "E_TEST_UNUSED")):
        result = train(_settings(train={"epochs": 1}), table=path, folder=code, folds=folds)
        assert code in (result.work / "index.html").read_text()


def test_a_refit_takes_the_epochs_that_the_folds_needed(
    train: Callable[..., FinetuneResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folds whose best epoch of three was the second: everybody is learned from for two."""
    scores = [0.5, 0.9, 0.7] * 2

    def judge(_: Any, held: list[Any], *__: Any) -> Labelled:
        return Labelled(1.0, scores.pop(0) if held else float("nan"), np.zeros((len(held), 1)))

    monkeypatch.setattr(loop_module, "judge", judge)
    result = train(_settings(split={"final": "refit"}, train={"epochs": 3}), drop="split", folds=2)
    training = load_bundle(result.bundle).extra["training"]
    assert [f.best_epoch for f in result.fits] == [2, 2]
    assert (training["settings"]["epochs"], training["n_train"], training["n_val"]) == (2, 60, 0)


@pytest.mark.slow
def test_judged_patients_that_the_model_knows_are_told(
    train: Callable[..., FinetuneResult], bags: Path, tmp_path: Path
) -> None:
    """Evaluated on all slides, a run says how many are of patients that taught; on the test slides alone it says nothing."""
    result = train(_settings(train={**BASE["train"], "epochs": 1}))
    classify(load_manifest(bags, features=True), str(result.bundle), tmp_path / "run", ClassifyOptions(device="cpu", cache="off"))
    rows = list(csv.DictReader(bags.open()))
    with (tmp_path / "labels.csv").open("w", newline="") as out:  # names and labels alone: no slide, no features
        table = csv.DictWriter(out, ["slide_id", "patient_id", "label", "split"], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    known = sum(r["split"] != "test" for r in rows)
    for split, n in (("all", known), ("test", 0)):
        options = EvaluateOptions(split=split, n_resamples=100, out=tmp_path / split)
        text = evaluate_run(tmp_path / "run", tmp_path / "labels.csv", options).text()
        assert (f"run: {n} of {len(rows)} judged slides are of patients the model learned from" in text) is bool(n)
        assert ("beware" in text) is bool(n)


def test_one_file_of_another_width_does_not_decide_for_all(
    train: Callable[..., FinetuneResult], bags: Path, tmp_path: Path
) -> None:
    """The first file is the odd one: it is named, and the others are learned from."""
    rows = list(csv.DictReader(bags.open()))
    torch.save(torch.zeros(4, 3), tmp_path / "odd.pt")
    rows[0]["features_path"] = str(tmp_path / "odd.pt")
    for r in rows[1:]:
        r["features_path"] = str(bags.parent / r["features_path"])
    with (tmp_path / "m.csv").open("w", newline="") as out:
        table = csv.DictWriter(out, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    options = FinetuneOptions(settings=_settings(train={**BASE["train"], "epochs": 1}), cache="off", device="cpu", quiet=True)
    result = finetune_manifest(load_manifest(tmp_path / "m.csv", features=True), tmp_path / "m", options)
    assert load_bundle(result.bundle).settings.encoder.width == WIDTH
    assert "features of width 3, the model takes 8" in " ".join(n.message for n in result.fits[0].notes)

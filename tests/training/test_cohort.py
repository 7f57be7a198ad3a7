"""Labels into tasks, patients into splits, leaks refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from wsi_ips.errors import ManifestError
from wsi_ips.manifest import Manifest, SlideRecord
from wsi_ips.training.cohort import split_cohort, tasks_of


def _manifest(rows: Iterable[tuple[str, str, str, str | None]]) -> Manifest:
    records = tuple(SlideRecord(f"s{i}", f"/x/s{i}.svs", patient, labels={"label": label}, split=split)
                    for i, (patient, label, split, *_) in enumerate(rows))  # fmt: skip
    return Manifest(records, Path("m.csv"), (), "0")


def _rows(n: int) -> list[tuple[str, str, None]]:
    return [(f"p{i // 2}", "tumor" if (i // 2) % 3 == 0 else "normal", None) for i in range(n)]


def test_two_labels_make_a_binary_task_in_stated_order() -> None:
    """Sorted by default, and as asked otherwise; the last class is the positive one."""
    manifest = _manifest(_rows(12))
    assert tasks_of(manifest, ["label"])[0].classes == ("normal", "tumor")
    asked = tasks_of(manifest, ["label"], {"label": ("tumor", "normal")})[0]
    assert (asked.kind, asked.classes) == ("binary", ("tumor", "normal"))


def test_numbers_are_ordered_by_value() -> None:
    """Grade 10 comes after grade 9."""
    manifest = _manifest([("a", "10", None), ("b", "9", None), ("c", "2", None)])
    task = tasks_of(manifest, ["label"])[0]
    assert (task.kind, task.classes) == ("multiclass", ("2", "9", "10"))


def test_one_class_or_an_unknown_label_is_refused() -> None:
    """The message names the column and what was found."""
    with pytest.raises(ManifestError, match="'label': learning needs two classes, found tumor"):
        tasks_of(_manifest([("a", "tumor", None)]), ["label"])
    with pytest.raises(ManifestError, match="labels tumour are not among"):
        tasks_of(_manifest([("a", "tumour", None), ("b", "normal", None)]), ["label"], {"label": ("normal", "tumor")})


def test_a_split_made_here_keeps_patients_and_classes() -> None:
    """No patient on two sides, every class on both, the same for the same seed."""
    manifest = _manifest(_rows(60))
    tasks = tasks_of(manifest, ["label"])
    cohort = split_cohort(manifest, tasks, val_fraction=0.25, seed=3)
    train, val = ({m.record.patient_id for m in side} for side in (cohort.train, cohort.val))
    assert not train & val
    assert len(cohort.train) + len(cohort.val) == 60
    assert all({m.targets[0] for m in side} == {0, 1} for side in (cohort.train, cohort.val))
    again = split_cohort(manifest, tasks, val_fraction=0.25, seed=3)
    assert [m.record.slide_id for m in again.val] == [m.record.slide_id for m in cohort.val]


def test_the_manifests_own_split_is_followed_and_test_is_kept_apart() -> None:
    """Empty means unused."""
    rows = [
        ("a", "x", "train"),
        ("b", "y", "train"),
        ("c", "x", "val"),
        ("d", "y", "val"),
        ("e", "x", "test"),
        ("f", "y", ""),
    ]
    manifest = _manifest(rows)
    cohort = split_cohort(manifest, tasks_of(manifest, ["label"]), val_fraction=0.5, seed=0)
    assert [len(side) for side in (cohort.train, cohort.val, cohort.test)] == [2, 2, 1]


def test_a_patient_on_two_sides_is_an_error_that_names_the_patient() -> None:
    """Leaks are refused, with all the patients."""
    manifest = _manifest([("a", "x", "train"), ("a", "y", "test"), ("b", "y", "train"), ("b", "x", "val")])
    with pytest.raises(ManifestError) as caught:
        split_cohort(manifest, tasks_of(manifest, ["label"]), val_fraction=0.5, seed=0)
    assert len(caught.value.problems) == 2
    assert "patient a: slides in test and train" in str(caught.value)


def test_a_class_absent_from_validation_is_refused_before_training() -> None:
    """Better now than after a night."""
    manifest = _manifest([("a", "x", "train"), ("b", "y", "train"), ("c", "x", "val")])
    with pytest.raises(ManifestError, match="val: no slide of class y"):
        split_cohort(manifest, tasks_of(manifest, ["label"]), val_fraction=0.5, seed=0)


def test_missing_labels_and_missing_patients_are_said() -> None:
    """Unlabelled rows are not used; default patients draw a warning."""
    manifest = _manifest([*_rows(24), ("z", "", None)])
    cohort = split_cohort(manifest, tasks_of(manifest, ["label"]), val_fraction=0.25, seed=0)
    assert any(n.code == "E_NO_LABEL" and n.message.startswith("1 slides") for n in cohort.notes)

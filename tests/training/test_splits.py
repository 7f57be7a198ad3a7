"""Patients (or sites) into splits and folds: nobody on two sides, classes spread evenly, the same whatever the order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import nan

import numpy as np
import pytest

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.manifest import SlideRecord
from wsi_ips.recipe import SplitSettings
from wsi_ips.tasks import TaskSettings
from wsi_ips.training.splits import make_cohort_split, make_folds
from wsi_ips.training.strata import refuse_absent, strata_of
from wsi_ips.training.targets import Cohort, Member

BINARY = (TaskSettings(classes=("normal", "tumor")),)
FIVE = SplitSettings(n_folds=5)


def _tested(fold: Cohort) -> list[float]:
    return [m.targets[0] for m in fold.test]


def _member(i: int, patient: str, targets: Sequence[float], **more: object) -> Member:
    record = SlideRecord(f"s{i:03d}", f"/x/s{i}.svs", patient, row=i + 2)
    return Member(replace(record, **more), tuple(targets))  # type: ignore[arg-type]


def _members(n_patients: int, *, slides: int = 2, n_sites: int = 0) -> list[Member]:
    """Every third patient has a tumour; `slides` slides a patient; sites by number of patient."""
    return [
        _member(i, f"p{i // slides:03d}", [float(i // slides % 3 == 0)],
                site=f"site{i // slides * 7 % n_sites}" if n_sites else "")
        for i in range(n_patients * slides)
    ]  # fmt: skip


def _patients(members: Sequence[Member]) -> set[str]:
    return {m.record.patient_id for m in members}


def _ids(cohort: Cohort) -> list[list[str]]:
    return [[m.record.slide_id for m in side] for side in (cohort.train, cohort.val, cohort.test)]


def _codes(cohort: Cohort) -> list[str]:
    return [n.code for n in cohort.notes]


def test_a_split_made_here_keeps_patients_whole_and_classes_even() -> None:
    """60 patients, 20 with tumour; of either class a quarter is held out, and a fifth of all for the test."""
    split = SplitSettings(val_fraction=0.25, test_fraction=0.2)
    cohort = make_cohort_split(_members(60), BINARY, split, seed=3)
    train, val, test = (_patients(side) for side in (cohort.train, cohort.val, cohort.test))
    assert len(train | val | test) == 60
    assert len(train) + len(val) + len(test) == 60
    has_tumour = {m.record.patient_id for m in _members(60) if m.targets[0] == 1.0}
    assert (len(test), len(test & has_tumour)) == (12, 4)
    assert (len(val), len(val & has_tumour)) == (12, 4)
    assert _codes(cohort).count("E_SPLIT_MADE") == 2


@pytest.mark.parametrize("make", [
    lambda m, seed: [make_cohort_split(m, BINARY, SplitSettings(test_fraction=0.2), seed)],
    lambda m, seed: make_folds(m, BINARY, FIVE, seed),
    lambda m, seed: make_folds(m, BINARY, SplitSettings(n_folds=3, by_site=True), seed),
])  # fmt: skip
def test_splits_depend_on_seed_and_content_not_on_the_order_of_rows(
    make: Callable[[Sequence[Member], int], list[Cohort]],
) -> None:
    """The same sides for a shuffled manifest; others for another seed."""
    members = _members(30, n_sites=10)
    order = np.random.default_rng(1).permutation(len(members))
    shuffled = [replace(members[i], record=replace(members[i].record, row=k)) for k, i in enumerate(order)]
    wanted = [_ids(c) for c in make(members, 7)]
    assert [_ids(c) for c in make(shuffled, 7)] == wanted
    assert [_ids(c) for c in make(members, 8)] != wanted


def test_folds_test_every_patient_once_and_spread_classes_within_one() -> None:
    """37 patients, 13 with tumour, in 5 folds: 7 or 8 patients a fold, 2 or 3 with tumour."""
    members = _members(37, slides=3)
    folds = make_folds(members, BINARY, FIVE, seed=0)
    assert [f.name for f in folds] == [f"fold {k}" for k in range(5)]
    tested = Counter(m.record.slide_id for f in folds for m in f.test)
    assert tested == Counter(m.record.slide_id for m in members)
    for fold in folds:
        train, val, test = (_patients(side) for side in (fold.train, fold.val, fold.test))
        assert len(train | val | test) == len(train) + len(val) + len(test) == 37
        assert len(test) in (7, 8)
        assert sum(int(p[1:]) % 3 == 0 for p in test) in (2, 3)
        assert len(val) in (7, 8)  # a quarter of 29 or 30


@pytest.mark.parametrize("seed", range(5))
def test_folds_spread_values_by_quarters(seed: int) -> None:
    """Regression, 40 patients in 5 folds: each tests 2 of the lowest ten, 2 of the next ten, and so on."""
    values = np.random.default_rng(0).exponential(1.0, 40)
    members = [_member(i, f"p{i}", [float(v)]) for i, v in enumerate(values)]
    edges = np.quantile(values, [0.25, 0.5, 0.75])
    for fold in make_folds(members, (TaskSettings(kind="regression"),), FIVE, seed=seed):
        assert Counter(np.searchsorted(edges, _tested(fold)).tolist()) == {0: 2, 1: 2, 2: 2, 3: 2}


@pytest.mark.parametrize("seed", range(5))
def test_folds_spread_events_and_their_times(seed: int) -> None:
    """Survival, 10 of 40 patients with a seen event, in 5 folds: each tests 2 events, one early and one late."""
    task = TaskSettings(kind="survival", event_column="e", cuts=(1.0,), classes=("a", "b"))
    times = np.random.default_rng(0).exponential(1.0, 40)
    members = [_member(i, f"p{i}", [float(t), float(i % 4 == 0)]) for i, t in enumerate(times)]
    middle = float(np.median(times[::4]))
    for fold in make_folds(members, (task,), FIVE, seed=seed):
        seen = [m.targets[0] for m in fold.test if m.targets[1] == 1.0]
        assert (len(fold.test), len(seen), sum(t > middle for t in seen)) == (8, 2, 1)


@pytest.mark.parametrize("seed", range(5))
def test_rare_labels_of_a_multilabel_task_are_spread_and_their_lack_is_a_warning(seed: int) -> None:
    """Of three slides with the rare label each fold tests one; a label nobody has does not stop the training."""
    task = TaskSettings(kind="multilabel", classes=("common", "rare", "never"))
    members = [_member(i, f"p{i}", [1.0, float(i < 3), 0.0]) for i in range(30)]
    folds = make_folds(members, (task,), SplitSettings(n_folds=3), seed=seed)
    assert [sum(m.targets[1] for m in f.test) for f in folds] == [1.0, 1.0, 1.0]
    assert any("have never" in n.message for n in folds[0].notes if n.code == "E_SMALL_COHORT")


@pytest.mark.parametrize("seed", range(5))
def test_large_sites_are_dealt_first(seed: int) -> None:
    """Sites of 18, 16, 10 and 8 patients in two folds: 18 + 8 and 16 + 10, whatever the seed."""
    sites = ["d"] * 8 + ["b"] * 16 + ["a"] * 18 + ["c"] * 10
    members = [_member(i, f"p{i:02d}", [float(i % 2)], site=site) for i, site in enumerate(sites)]
    folds = make_folds(members, BINARY, SplitSettings(n_folds=2, by_site=True, val_fraction=0.5), seed=seed)
    assert [len(f.test) for f in folds] == [26, 26]


def test_with_by_site_a_site_is_on_one_side() -> None:
    """Ten sites in three folds; classes still spread as well as whole sites allow."""
    members = _members(60, n_sites=10)
    for fold in make_folds(members, BINARY, SplitSettings(n_folds=3, by_site=True), seed=0):
        sides = [{m.record.site for m in side} for side in (fold.train, fold.val, fold.test)]
        assert all(sides)
        assert sum(map(len, sides)) == 10
        assert 3 <= len(sides[2]) <= 4
        assert 5 <= sum(m.targets[0] for m in fold.test) / 2 <= 9  # 20 in all


def test_sites_that_share_a_patient_stay_together() -> None:
    """Neither the patient nor either site is torn."""
    members = _members(28, n_sites=5)
    members[1] = replace(members[1], record=replace(members[1].record, site="site1"))  # p000: site0 and site1
    for fold in make_folds(members, BINARY, SplitSettings(n_folds=3, by_site=True), seed=0):
        for side in (fold.train, fold.val, fold.test):
            sites = {m.record.site for m in side}
            assert ("site0" in sites) == ("site1" in sites)


def test_too_few_or_unnamed_sites_are_refused_with_their_number() -> None:
    """Two sites cannot fill five folds."""
    with pytest.raises(ManifestError, match=r"2 sites \(site0, site1\) cannot fill 5 folds"):
        make_folds(_members(20, n_sites=2), BINARY, SplitSettings(n_folds=5, by_site=True), seed=0)
    with pytest.raises(ManifestError, match="40 slides name no site"):
        make_cohort_split(_members(20), BINARY, SplitSettings(by_site=True), seed=0)


def test_two_sites_are_one_for_each_side() -> None:
    """However the shares lie, no side is left empty."""
    cohort = make_cohort_split(_members(40, n_sites=2), BINARY, SplitSettings(by_site=True, val_fraction=0.1), seed=0)
    assert [len({m.record.site for m in side}) for side in (cohort.train, cohort.val)] == [1, 1]


def test_the_manifests_own_split_is_followed_and_empty_means_unused() -> None:
    """Three sides as the column says; the sixth slide is on none."""
    sides = ["train", "train", "val", "val", "test", ""]
    members = [_member(i, f"p{i}", [float(i % 2)], split=side) for i, side in enumerate(sides)]
    cohort = make_cohort_split(members, BINARY, SplitSettings(test_fraction=0.5), seed=0)
    assert _ids(cohort) == [["s000", "s001"], ["s002", "s003"], ["s004"]]
    assert "E_SPLIT_MADE" not in _codes(cohort)


def test_a_missing_validation_split_is_drawn_from_training_only() -> None:
    """The test slides stay what they are."""
    members = [_member(i, f"p{i}", [float(i % 2)], split="test" if i >= 16 else "train") for i in range(20)]
    cohort = make_cohort_split(members, BINARY, SplitSettings(val_fraction=0.25), seed=0)
    assert _ids(cohort)[2] == ["s016", "s017", "s018", "s019"]
    assert len(cohort.val) == 4
    assert sum(m.targets[0] for m in cohort.val) == 2


def test_fault_054_leaks_are_refused_with_all_the_patients() -> None:
    """Both patients are named, with their sides."""
    sides = {"a": ["train", "test"], "b": ["train", "val"], "c": ["val", "val"]}
    rows = [(p, s) for p, both in sides.items() for s in both]
    members = [_member(i, p, [float(i % 2)], split=s) for i, (p, s) in enumerate(rows)]
    with pytest.raises(ManifestError) as caught:
        make_cohort_split(members, BINARY, SplitSettings(), seed=0)
    assert len(caught.value.problems) == 2
    assert "patient a: slides in test and train" in caught.value.problems[0]
    assert "patient b: slides in train and val" in caught.value.problems[1]


def test_a_site_on_two_sides_of_a_given_split_is_refused_when_sites_must_stay_whole() -> None:
    """The manifest's own split is held to what the settings promise."""
    members = [
        _member(i, f"p{i}", [float(i % 2)], split="train" if i < 6 else "val", site=f"h{i % 5}") for i in range(8)
    ]
    make_cohort_split(members, BINARY, SplitSettings(), seed=0)
    with pytest.raises(ManifestError, match="site h1: slides in train and val"):
        make_cohort_split(members, BINARY, SplitSettings(by_site=True), seed=0)


def test_folds_by_number_test_the_slides_of_that_number() -> None:
    """Column `fold`: 0, 1, 2, and empty is unused; the column wins over the number of folds asked for."""
    members = [_member(i, f"p{i}", [float(i % 2)], folds={"fold": ["0", "1", "10", ""][i // 8]}) for i in range(32)]
    folds = make_folds(members, BINARY, SplitSettings(n_folds=7), seed=0)
    assert [f.name for f in folds] == ["fold 0", "fold 1", "fold 10"]
    assert [_ids(f)[2][0] for f in folds] == ["s000", "s008", "s016"]
    assert all(len(f.train) + len(f.val) == 16 and len(f.val) == 4 for f in folds)


def test_fold_columns_give_the_side_in_each_fold() -> None:
    """Columns fold_0, fold_1 as other tools write them; they win over `fold`."""
    sides = [("train", "test"), ("val", "val"), ("test", "train"), ("", "")]
    members = [_member(i, f"p{i}", [float(i % 2)],
                       folds={"fold": "0", "fold_0": sides[i // 4][0], "fold_1": sides[i // 4][1]})
               for i in range(16)]  # fmt: skip
    first, second = make_folds(members, BINARY, SplitSettings(), seed=0)
    starts = [[side[0] for side in _ids(fold)] for fold in (first, second)]
    assert starts == [["s000", "s004", "s008"], ["s008", "s004", "s000"]]
    assert (first.name, second.name) == ("fold 0", "fold 1")


def test_fault_054_a_patient_on_two_sides_of_any_fold_is_refused() -> None:
    """Columns of folds and numbers of folds alike; fold and patient are named."""
    columns = [
        _member(i, f"p{i // 2}", [float(i % 2)], folds={"fold_0": "train" if i < 5 else "test"}) for i in range(8)
    ]
    with pytest.raises(ManifestError, match="fold 0: patient p2: slides in test and train"):
        make_folds(columns, BINARY, SplitSettings(), seed=0)
    numbers = [_member(i, f"p{i // 2}", [float(i % 2)], folds={"fold": str(int(i >= 5))}) for i in range(8)]
    with pytest.raises(ManifestError, match="patient p2"):
        make_folds(numbers, BINARY, SplitSettings(), seed=0)


def test_the_manifests_test_split_stays_out_of_folds_made_here() -> None:
    """Cross-validation never touches what was set apart; a note says how many."""
    members = [_member(i, f"p{i}", [float(i % 2)], split="test" if i >= 40 else "train") for i in range(50)]
    folds = make_folds(members, BINARY, FIVE, seed=0)
    assert {m.record.slide_id for f in folds for side in (f.train, f.val, f.test) for m in side} == {
        f"s{i:03d}" for i in range(40)
    }
    assert any(n.message.startswith("10 slides that 'split' calls test") for n in folds[0].notes)


def test_a_patient_in_folds_and_in_the_test_split_is_refused() -> None:
    """The bundle of all folds would be judged on patients it has learned from; all of them are named."""
    members = [_member(i, f"p{i % 40}", [float(i % 2)], split="test" if i >= 40 else "train") for i in range(42)]
    with pytest.raises(ManifestError) as caught:
        make_folds(members, BINARY, FIVE, seed=0)
    assert caught.value.problems == tuple(
        f"patient p{k}: slides in test and train or val; a patient belongs on one side" for k in (0, 1)
    )


def test_a_test_split_that_is_asked_for_is_drawn_from_the_training_slides_of_a_column() -> None:
    """The column names training and validation only; by patient, the validation slides stay what they are."""
    members = [_member(i, f"p{i // 2}", [float(i // 2 % 2)], split="val" if i >= 32 else "train") for i in range(40)]
    cohort = make_cohort_split(members, BINARY, SplitSettings(test_fraction=0.25), seed=0)
    assert _ids(cohort)[1] == [f"s{i:03d}" for i in range(32, 40)]
    assert len(cohort.test) == 8
    assert not {m.record.patient_id for m in cohort.test} & {m.record.patient_id for m in cohort.train}
    assert any(n.message.startswith("test split made here: 8 slides") for n in cohort.notes)


def test_columns_of_folds_that_differ_from_what_was_asked_are_told() -> None:
    """Three numbers, five asked for: three folds, and a note."""
    members = [_member(i, f"p{i}", [float(i % 2)], folds={"fold": str(i // 2 % 3)}) for i in range(24)]
    assert len(folds := make_folds(members, BINARY, FIVE, seed=0)) == 3
    assert any("5 folds were asked for, the manifest's columns name 3" in n.message for n in folds[0].notes)
    folds = make_folds(members, BINARY, SplitSettings(n_folds=3), seed=0)
    assert not any("asked for" in n.message for n in folds[0].notes)


def test_a_slip_in_a_label_is_guessed() -> None:
    """A class that is absent from a side and reads almost like another one."""
    task = (TaskSettings(name="label", kind="multiclass", classes=("Negative", "Positive", "Positve")),)
    members = [_member(i, f"p{i}", [float(i % 2)], split="train" if i < 8 else "val") for i in range(16)]
    members[0] = _member(0, "p0", [2.0], split="train")
    with pytest.raises(ManifestError, match=r"val: no slide of class Positve .*is 'Positve' a slip for 'Positive'\?"):
        make_cohort_split(members, task, SplitSettings(), seed=0)


def test_folds_that_cannot_be_made_are_refused() -> None:
    """No number of folds; fewer patients than folds; one fold number; a fold column without test slides."""
    with pytest.raises(ConfigError, match=r"split\.n_folds is 0"):
        make_folds(_members(20), BINARY, SplitSettings(), seed=0)
    with pytest.raises(ManifestError, match="4 patients"):
        make_folds(_members(4), BINARY, FIVE, seed=0)
    with pytest.raises(ManifestError, match="all slides are in fold 3"):
        make_folds([_member(i, f"p{i}", [0.0], folds={"fold": "3"}) for i in range(4)], BINARY, FIVE, seed=0)
    with pytest.raises(ManifestError, match="column 'fold_1': no slide in test"):
        make_folds([_member(0, "p", [0.0], folds={"fold_1": "train"})], BINARY, FIVE, seed=0)


def test_fault_112_a_class_absent_from_a_side_is_refused_before_training() -> None:
    """Better now than after a night; all sides and folds at once."""
    members = [_member(i, f"p{i}", [float(i == 1)], split="train" if i < 2 else "val") for i in range(3)]
    with pytest.raises(ManifestError, match=r"val: no slide of class tumor \(label\)"):
        make_cohort_split(members, BINARY, SplitSettings(), seed=0)
    rare = [_member(i, f"p{i}", [float(i < 2)]) for i in range(20)]
    with pytest.raises(ManifestError) as caught:
        make_folds(rare, BINARY, SplitSettings(n_folds=2), seed=0)
    assert [p.split(":")[0] for p in caught.value.problems] == ["fold 0, val", "fold 1, val"]


def test_a_class_of_two_patients_has_one_on_either_side() -> None:
    """Rare classes are not lost to rounding, however small the share."""
    members = [_member(i, f"p{i}", [float(i < 2)]) for i in range(40)]
    cohort = make_cohort_split(members, BINARY, SplitSettings(val_fraction=0.05), seed=0)
    assert [sum(m.targets[0] for m in side) for side in (cohort.train, cohort.val)] == [1.0, 1.0]


def test_fault_054_what_is_missing_is_said() -> None:
    """Unlabelled slides are counted and not used; patients that are only slides draw a warning."""
    members = [*_members(24), _member(99, "z", [nan])]
    members[0] = replace(members[0], record=replace(members[0].record, patient_is_default=True))
    cohort = make_cohort_split(members, BINARY, SplitSettings(), seed=0)
    assert sum(map(len, _ids(cohort))) == 48
    assert any(n.code == "E_NO_LABEL" and n.message.startswith("1 slides") for n in cohort.notes)
    assert "E_NO_PATIENT" in _codes(cohort)
    with pytest.raises(ManifestError, match="no slide has a label"):
        make_cohort_split([_member(0, "z", [nan])], BINARY, SplitSettings(), seed=0)


def test_small_cohorts_are_said_to_be_small_with_numbers() -> None:
    """24 patients with 2 slides: 18 train (36 slides, 12 with tumour), 6 validate; 400 patients: no warning."""
    cohort = make_cohort_split(_members(24), BINARY, SplitSettings(), seed=0)
    said = [n.message.split(",")[0] for n in cohort.notes if n.code == "E_SMALL_COHORT"]
    assert said == ["36 training slides", "18 training patients", "6 validation patients"]
    few = [_member(i, f"p{i}", [float(i < 8)]) for i in range(400)]
    said = [n.message for n in make_cohort_split(few, BINARY, SplitSettings(), seed=0).notes]
    assert any(text.startswith("6 training slides of tumor (label), fewer than 10") for text in said)
    assert "E_SMALL_COHORT" not in _codes(make_cohort_split(_members(400), BINARY, SplitSettings(), seed=0))


def test_a_side_that_nobody_is_in_is_asked_for_nothing() -> None:
    """A refit has no validation slides; classes are asked of training alone."""
    task = TaskSettings(classes=("no", "yes"))
    refuse_absent({"train": _members(6)}, (task,))
    with pytest.raises(ManifestError, match="train: no slide of class yes"):
        refuse_absent({"train": [m for m in _members(6) if m.targets == (0.0,)]}, (task,))


def test_a_slide_that_two_folds_test_is_refused_before_training() -> None:
    """Repeated random splits are no cross-validation: a slide judges once, and the columns are named."""
    members = [
        _member(i, f"p{i}", [float(i % 2)], folds={"fold_1": "test" if i < 4 else "train", "fold_2": "test" if 2 <= i < 8 else "train"})
        for i in range(20)
    ]  # fmt: skip
    with pytest.raises(ManifestError, match=r"fold_1, fold_2: 2 slides are test in more than one fold \(s002, s003\)"):
        make_folds(members, (TaskSettings(classes=("no", "yes")),), SplitSettings(n_folds=2), 0)


def test_test_slides_without_a_label_of_a_task_are_a_warning() -> None:
    """Two tasks, the second unknown on the test side: training goes on, and what cannot be judged is said."""
    sides = ["train"] * 4 + ["val"] * 4 + ["test"] * 2
    members = [
        _member(i, f"p{i}", [float(i % 2), nan if side == "test" else float(i)], split=side)
        for i, side in enumerate(sides)
    ]
    tasks = (TaskSettings(classes=("no", "yes")), TaskSettings(name="size", kind="regression"))
    notes = make_cohort_split(members, tasks, SplitSettings(), 0).notes
    assert any("test: 0 of 2 slides have a label (size)" in n.message for n in notes)


def test_each_side_that_is_drawn_follows_the_seed() -> None:
    """Another seed is another test split, not another validation split alone."""
    split = SplitSettings(test_fraction=0.2)
    tests = [{m.record.slide_id for m in make_cohort_split(_members(60), BINARY, split, seed).test} for seed in (1, 2)]
    assert tests[0] != tests[1]


def test_a_patients_kind_is_the_commonest_of_its_slides() -> None:
    """Two normal slides and one tumour: normal; one of each: the highest; without a label: unknown."""
    members = [_member(i, p, [t]) for i, (p, t) in enumerate([
        ("a", 0.0), ("a", 0.0), ("a", 1.0), ("b", 0.0), ("b", 1.0), ("c", nan),
    ])]  # fmt: skip
    assert strata_of(members, BINARY[0]) == {"a": 0, "b": 1, "c": -1}


def test_a_task_may_lack_classes_of_a_fixed_list() -> None:
    """Where the list comes from outside, a class without a slide is no reason to refuse; for other tasks it still is."""
    fixed, open_ = (TaskSettings(classes=("no", "yes"), allow_absent=allowed) for allowed in (True, False))
    negative = {"train": [m for m in _members(6) if m.targets == (0.0,)]}
    refuse_absent(negative, (fixed,))
    with pytest.raises(ManifestError, match="train: no slide of class yes"):
        refuse_absent(negative, (open_,))

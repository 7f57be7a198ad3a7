"""Shuffled labels: who gets whose, and that a training on them can be had at all."""

from __future__ import annotations

from collections import Counter

import pytest

from wsi_ips.manifest import SlideRecord
from wsi_ips.training.sanity import shuffled
from wsi_ips.training.targets import Cohort, Member


def _member(slide: str, patient: str, target: float) -> Member:
    return Member(SlideRecord(slide, f"/x/{slide}.svs", patient), (target,))


def _labels(members: tuple[Member, ...]) -> list[float]:
    return [m.targets[0] for m in members]


def test_patients_exchange_labels_and_validation_becomes_the_test() -> None:
    """One slide a patient: the same labels in another order, no side for choosing, the real test slides left out."""
    members = [_member(f"s{i}", f"p{i}", float(i % 2)) for i in range(40)]
    cohort = Cohort(tuple(members[:24]), tuple(members[24:36]), tuple(members[36:]), ())
    found = shuffled(cohort, 0)
    assert found.val == ()
    assert [m.record for m in found.train] == [m.record for m in cohort.train]
    assert [m.record for m in found.test] == [m.record for m in cohort.val]
    assert Counter(_labels(found.train + found.test)) == Counter(_labels(cohort.train + cohort.val))
    assert _labels(found.train) != _labels(cohort.train)
    assert shuffled(cohort, 0) == found
    assert shuffled(cohort, 1) != found


def test_a_patient_with_slides_of_two_classes_passes_both_on() -> None:
    """Normal and tumour slide of each patient: neither class is lost."""
    members = [_member(f"s{i}_{k}", f"p{i}", float(k)) for i in range(12) for k in (0, 1)]
    found = shuffled(Cohort(tuple(members[:16]), tuple(members[16:]), (), ()), 0)
    assert Counter(_labels(found.train)) == {0.0: 8, 1.0: 8}


@pytest.mark.parametrize("seed", range(20))
def test_training_keeps_a_rare_class(seed: int) -> None:
    """Two patients of a class, one on either side: after shuffling training still has one, or it would be refused."""
    members = [_member(f"s{i}", f"p{i}", float(i in (0, 19))) for i in range(20)]
    found = shuffled(Cohort(tuple(members[:12]), tuple(members[12:]), (), ()), seed)
    assert 1.0 in _labels(found.train)

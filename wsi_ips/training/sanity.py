"""The check that a training finds nothing where there is nothing: the same training on shuffled labels.

If held-out slides are still told apart better than by chance, something other than the label leaks from training into
judging. No epoch is chosen here, for choosing among epochs would flatter.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np

from wsi_ips.training.targets import Cohort, Member

__all__ = ["shuffled"]

_TRIES = 100  # deals among which one is sought that leaves training every class


def shuffled(cohort: Cohort, seed: int) -> Cohort:
    """Deal the targets of training and validation slides out anew among patients; validation slides become the test.

    Every patient gets the targets of one other patient, drawn without putting back, one slide after the other and from
    the first again where there are fewer; so the shares of classes stay about the same. A deal is tried again while
    training lacks a value that it had. The real test slides have no part in it.
    """
    targets_of: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for m in (*cohort.train, *cohort.val):
        targets_of[m.record.patient_id].append(m.targets)
    patients, rng = sorted(targets_of), np.random.default_rng([seed, 11])

    def anew(side: tuple[Member, ...], giver: dict[str, str]) -> tuple[Member, ...]:
        given: Counter[str] = Counter()
        members = []
        for m in side:
            theirs = targets_of[giver[m.record.patient_id]]
            members.append(Member(m.record, theirs[given[m.record.patient_id] % len(theirs)]))
            given[m.record.patient_id] += 1
        return tuple(members)

    had, deals = _values(cohort.train), []
    for _ in range(_TRIES):
        giver = dict(zip(patients, (patients[i] for i in rng.permutation(len(patients))), strict=True))
        train, test = anew(cohort.train, giver), anew(cohort.val, giver)
        # first of all each side knows every question, then training every answer
        lacks = [len(_columns(cohort.train) - _columns(side)) for side in (train, test)]
        deals.append((sum(lacks), len(had - _values(train)), Cohort(train, (), test, ())))
        if not any(deals[-1][:2]):
            break
    return min(deals, key=lambda deal: deal[:2])[2]


def _values(members: tuple[Member, ...]) -> set[tuple[int, float]]:
    """Known targets by column."""
    return {(i, t) for m in members for i, t in enumerate(m.targets) if not math.isnan(t)}


def _columns(members: tuple[Member, ...]) -> set[int]:
    return {i for i, _ in _values(members)}

"""The check that a training finds nothing where there is nothing: the same training on shuffled labels.

If held-out slides are still told apart better than by chance, something other than the label leaks from training into
judging. No epoch is chosen here, for choosing among epochs would flatter.
"""

from __future__ import annotations

import numpy as np

from wsi_ips.training.targets import Cohort, Member

__all__ = ["shuffled"]


def shuffled(cohort: Cohort, seed: int) -> Cohort:
    """Deal the targets of training and validation slides out anew among patients; validation slides become the test.

    Every patient's slides get the targets of one other patient, drawn without putting back, so the shares of classes
    stay about the same; the real test slides have no part in it.
    """
    members = (*cohort.train, *cohort.val)
    patients = sorted({m.record.patient_id for m in members})
    first = {m.record.patient_id: m.targets for m in reversed(members)}
    dealt = np.random.default_rng([seed, 11]).permutation(len(patients))
    target_of = {p: first[patients[i]] for p, i in zip(patients, dealt, strict=True)}

    def anew(side: tuple[Member, ...]) -> tuple[Member, ...]:
        return tuple(Member(m.record, target_of[m.record.patient_id]) for m in side)

    return Cohort(anew(cohort.train), (), anew(cohort.val), ())

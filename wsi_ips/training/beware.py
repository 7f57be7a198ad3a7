"""What the figures of an evaluation must not be read without."""

from __future__ import annotations

from collections.abc import Sequence

from wsi_ips.errors import Note
from wsi_ips.training.cases import CaseTable
from wsi_ips.training.evaluation import Evaluation
from wsi_ips.training.run_outputs import RunOutputs
from wsi_ips.training.targets import Member
from wsi_ips.training.workfolder import patient_hash

__all__ = ["LEARNED", "beware", "unjudged"]

LEARNED = "patients the model learned from, or was chosen by"


def beware(
    cases: CaseTable, evaluation: Evaluation, judged: Sequence[Member], left_out: Sequence[str], notes: Sequence[Note],
    runs: Sequence[RunOutputs],
) -> tuple[str, ...]:  # fmt: skip
    """Say in sentences what makes the figures better, or surer, than they are.

    Args:
        cases: that judge.
        evaluation: of them.
        judged: the same as the manifest has them.
        left_out: why slides are not judged, one a slide.
        notes: of the manifest.
        runs: the judged run, and the one it is compared with.
    """
    said = [f"{n.code}: {n.message}" for n in notes]
    for run in runs:
        known = set(run.facts.get("model", {}).get("learned_from") or ())
        n = sum(patient_hash(p) in known for p in cases.patient_ids)
        if n:
            said.append(f"{run.path.name}: {n} of {len(cases)} judged slides are of {LEARNED}: "
                        "the figures look better than they are.")  # fmt: skip
    said += [f"Task {t} is not judged: no judged slide has a label for it." for t in unjudged(cases, evaluation)]
    learned = sum(m.record.split in ("train", "val") for m in judged)
    if learned:
        said.append(
            f"{learned} of the judged slides belong to the split train or val: a model that learned from them looks better than it is."
        )
    if any(m.record.patient_is_default for m in judged):
        said.append(
            "Some rows name no patient: each such slide counts as a patient of its own, so intervals may be too narrow."
        )
    n_unfinished = sum(why.startswith("labelled, but") for why in left_out)
    if n_unfinished:
        said.append(
            f"{n_unfinished} labelled slides have no finished prediction and are not in any figure; they are listed below."
        )
    return tuple(said)


def unjudged(cases: CaseTable, evaluation: Evaluation) -> list[str]:
    """Name the tasks that no judged slide has a label for."""
    done = {t.task.name for t in evaluation.tasks}
    return [t.name for t in cases.tasks if t.name not in done]

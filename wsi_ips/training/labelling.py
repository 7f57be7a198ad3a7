"""Labels of held-out slides with the present weights, by the same read-out as at inference, and what they are worth.

Shapes: B slides, P outputs, Q targets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from wsi_ips.engine.scan import scan_embeddings, scan_slide
from wsi_ips.errors import SlideError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.evidence import DoubleHead
from wsi_ips.stats.metrics import primary_score
from wsi_ips.tasks import split_outputs, split_targets
from wsi_ips.training.bags import Bags, Planned
from wsi_ips.training.losses import slide_loss
from wsi_ips.training.team import Team

__all__ = ["Labelled", "judge", "label_readable", "label_slides"]


class Labelled(NamedTuple):
    """What the validation slides say."""

    loss: float
    score: float  # mean over tasks of the primary metric; NaN when none is defined
    outputs: np.ndarray  # (B, P) float64


def judge(classifier: IPSClassifier, held: list[Planned], bags: Bags, team: Team) -> Labelled:
    """Label the slides and hold the labels against the truth."""
    tasks = classifier.settings.tasks
    outputs = label_slides(classifier, held, bags, team)
    if not held:
        return Labelled(float("nan"), float("nan"), outputs)
    targets = np.array([p.member.targets for p in held], dtype=np.float64)
    loss = float(slide_loss(torch.from_numpy(outputs), torch.from_numpy(targets), tasks))
    scores = [primary_score(o, y, task) for task, o, y in
              zip(tasks, split_outputs(outputs, tasks), split_targets(targets, tasks), strict=True)]  # fmt: skip
    defined = [s for s in scores if not np.isnan(s)]
    return Labelled(loss, float(np.mean(defined)) if defined else float("nan"), outputs)


def label_slides(classifier: IPSClassifier, held: list[Planned], bags: Bags, team: Team | None = None) -> np.ndarray:
    """Logits (B, P) float64 of slides; with a team each process does its share and all know all.

    Raises:
        SlideError: one of them cannot be read (any more).
    """
    outputs, failed = label_readable(classifier, held, bags, team)
    if failed:
        raise failed[min(failed)]
    return outputs


def label_readable(
    classifier: IPSClassifier, held: list[Planned], bags: Bags, team: Team | None = None
) -> tuple[np.ndarray, dict[int, SlideError]]:
    """Logits (B, P) float64 as of `label_slides`, NaN where a slide cannot be read, and why, by row."""
    team = team or Team()
    classifier.eval()
    head = classifier.double_head()
    mine: list[tuple[int, np.ndarray | SlideError]] = []
    for i in team.share(list(range(len(held)))):
        try:
            mine.append((i, _label(classifier, head, held[i], bags)))
        except SlideError as error:
            mine.append((i, error))
    outputs = np.full((len(held), sum(t.n_outputs for t in classifier.settings.tasks)), np.nan)
    failed: dict[int, SlideError] = {}
    for i, found in (one for part in team.gather(mine) for one in part):
        if isinstance(found, SlideError):
            failed[i] = found
        else:
            outputs[i] = found
    return outputs, failed


def _label(classifier: IPSClassifier, head: DoubleHead, planned: Planned, bags: Bags) -> np.ndarray:
    if bags.are_tiles and planned.grid is not None:
        with bags.slides.open(planned.member.record, classifier.settings.icc) as slide:
            scan = scan_slide(slide, planned.grid, classifier, bags.read)
        bags.n_encoded += scan.n_encoded
    else:
        scan = scan_embeddings(bags.embeddings(planned, classifier), classifier)
    return head.label(torch.from_numpy(scan.features), scan.context).numpy()

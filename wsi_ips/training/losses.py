"""What a task's logits are held against: one loss a slide and task, and how a step puts them together.

A step may be cut over processes: `slide_losses` gives each slide's own loss, `known` says which are there, and
`combine` divides by what is known in the whole step, so that the parts' sums add up to the loss of one process.

Shapes: B slides, T tasks, P outputs and Q targets of all tasks, K classes of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus

from wsi_ips.tasks import TaskSettings, split_targets

__all__ = [
    "ClassWeights",
    "MixedTargets",
    "balanced_weights",
    "combine",
    "known",
    "slide_loss",
    "slide_losses",
]

ClassWeights = Sequence[Sequence[float]]
"""By task: one weight a class; multilabel (absent, present) for each class in turn; empty for kinds without."""


class MixedTargets(NamedTuple):
    """Targets of slides some of which are a mixture of two."""

    targets: Tensor  # (B, Q) of the slide itself
    others: Tensor  # (B, Q) of the slide mixed in; anything where share is 1
    share: Tensor  # (B,) of the slide itself, in 0 .. 1


def balanced_weights(targets: np.ndarray, tasks: tuple[TaskSettings, ...]) -> tuple[tuple[float, ...], ...]:
    """Weigh classes by inverse frequency, n / (K n_k), so that the mean over known slides is 1.

    Args:
        targets: (n, Q) of the training slides, NaN where unknown.
        tasks: all.

    Returns:
        `ClassWeights`. A class that no slide has weighs 1.
    """

    def weigh(y: np.ndarray, n_classes: int) -> tuple[float, ...]:
        counts = [int((y == k).sum()) for k in range(n_classes)]
        return tuple(sum(counts) / (n_classes * c) if c else 1.0 for c in counts)

    weights: list[tuple[float, ...]] = []
    for task, y in zip(tasks, split_targets(targets, tasks), strict=True):
        if task.kind in ("binary", "multiclass", "ordinal"):
            weights.append(weigh(y[:, 0], len(task.classes)))
        elif task.kind == "multilabel":
            weights.append(tuple(w for k in range(y.shape[1]) for w in weigh(y[:, k], 2)))
        else:
            weights.append(())
    return tuple(weights)


def known(targets: Tensor | MixedTargets, tasks: tuple[TaskSettings, ...]) -> Tensor:
    """Say how much of each slide's loss is there.

    Args:
        targets: (B, Q), NaN where unknown.
        tasks: all.

    Returns:
        (B, T) float64: 1 known, 0 unknown; multilabel: 1 when any class is known; mixed: by share.
    """
    if isinstance(targets, MixedTargets):
        share = targets.share.to(torch.float64)[:, None]
        return share * known(targets.targets, tasks) + (1.0 - share) * known(targets.others, tasks)
    parts = torch.split(targets, [t.n_targets for t in tasks], dim=1)
    is_known = [
        ~y.isnan().all(dim=1) if task.kind == "multilabel" else ~y.isnan().any(dim=1)
        for task, y in zip(tasks, parts, strict=True)
    ]
    return torch.stack(is_known, dim=1).to(torch.float64)


def slide_losses(
    outputs: Tensor,
    targets: Tensor | MixedTargets,
    tasks: tuple[TaskSettings, ...],
    class_weights: ClassWeights | None = None,
) -> Tensor:
    """Each slide's loss for each task, unweighted by task, 0 where unknown.

    Binary and multiclass: cross-entropy. Multilabel: binary cross-entropy, mean over the known classes. Ordinal: binary
    cross-entropy of "above class k", mean over the K - 1 cuts. Regression: squared error of (y - center) / spread.
    Survival: negative log-likelihood of discrete-time hazards; who left counts for intervals survived whole.
    Mixed slides: share loss(own) + (1 - share) loss(other).

    Args:
        outputs: (B, P) logits of all tasks.
        targets: (B, Q) as members have them, NaN where unknown; any device.
        tasks: all, resolved.
        class_weights: of `balanced_weights`; None weighs all classes alike.

    Returns:
        (B, T) in the type and on the device of `outputs`.

    Source: survival, Gensheimer and Narasimhan, PeerJ 7:e6257, 2019; ordinal, Niu et al., CVPR 2016; class weights,
    King and Zeng, Polit. Anal. 9, 2001; mixed targets, Zhang et al., mixup, ICLR 2018.
    """
    if isinstance(targets, MixedTargets):
        share = targets.share.to(outputs)[:, None]
        own = slide_losses(outputs, targets.targets, tasks, class_weights)
        return share * own + (1.0 - share) * slide_losses(outputs, targets.others, tasks, class_weights)
    parts = torch.split(outputs, [t.n_outputs for t in tasks], dim=1)
    goals = torch.split(targets.to(outputs.device), [t.n_targets for t in tasks], dim=1)
    weights = class_weights if class_weights is not None else [()] * len(tasks)
    losses = [_task_losses(z, y, t, w) for z, y, t, w in zip(parts, goals, tasks, weights, strict=True)]
    return torch.stack(losses, dim=1)


def combine(losses: Tensor, totals: Tensor, tasks: Sequence[TaskSettings]) -> Tensor:
    """Put a step's losses together: the mean over known slides, then the weighted mean over tasks that have any.

    Args:
        losses: (B, T) of the slides at hand, 0 where unknown.
        totals: (T,) sums of `known` over all slides of the step, those of other processes too.
        tasks: all.

    Returns:
        Scalar float64; over processes these add up to the loss of the whole step. 0 when nothing is known.
    """
    totals = totals.to(losses.device, torch.float64)
    weights = torch.tensor([t.weight for t in tasks], dtype=torch.float64, device=losses.device) * (totals > 0.0)
    means = losses.to(torch.float64).sum(dim=0) / totals.clamp(min=1e-12)
    return (weights * means).sum() / weights.sum().clamp(min=1e-12)


def slide_loss(
    outputs: Tensor,
    targets: Tensor | MixedTargets,
    tasks: tuple[TaskSettings, ...],
    *,
    class_weights: ClassWeights | None = None,
    totals: Tensor | None = None,
) -> Tensor:
    """Loss of a step, or of a process's part of it.

    Args:
        outputs: (B, P) logits of all tasks.
        targets: (B, Q), NaN where unknown, or mixed.
        tasks: all, resolved.
        class_weights: see `slide_losses`.
        totals: (T,) of the whole step; None: these slides are all of it.

    Returns:
        Scalar float64.
    """
    if totals is None:
        totals = known(targets, tasks).sum(dim=0)
    return combine(slide_losses(outputs, targets, tasks, class_weights), totals, tasks)


def _task_losses(z: Tensor, y: Tensor, task: TaskSettings, weights: Sequence[float]) -> Tensor:
    """Losses (B,) of one task from logits (B, P_t) and targets (B, Q_t); 0 where unknown."""
    if task.kind == "multilabel":
        return _multilabel(z, y, weights)
    is_known = ~y.isnan().any(dim=1)
    y = torch.where(is_known[:, None], y, 0.0)  # a NaN times 0 would still be a NaN in the gradient
    if task.kind == "regression":
        loss = ((y[:, 0] - task.center) / task.spread).to(z).sub(z[:, 0]).square()
    elif task.kind == "survival":
        loss = _survival(z, y, task)
    else:
        k = y[:, 0].to(torch.int64)
        if task.kind == "binary":
            loss = binary_cross_entropy_with_logits(z[:, 0], k.to(z), reduction="none")
        elif task.kind == "multiclass":
            loss = cross_entropy(z, k, reduction="none")
        else:
            is_above = (k[:, None] > torch.arange(z.shape[1], device=z.device)).to(z)  # (B, K - 1)
            loss = binary_cross_entropy_with_logits(z, is_above, reduction="none").mean(dim=1)
        if weights:
            loss = loss * torch.tensor(weights, dtype=z.dtype, device=z.device)[k]
    return loss * is_known


def _multilabel(z: Tensor, y: Tensor, weights: Sequence[float]) -> Tensor:
    is_known = ~y.isnan()  # (B, K)
    y = torch.where(is_known, y, 0.0).to(z)
    loss = binary_cross_entropy_with_logits(z, y, reduction="none")
    if weights:
        pair = torch.tensor(weights, dtype=z.dtype, device=z.device).reshape(-1, 2)  # (K, 2) absent, present
        loss = loss * torch.where(y > 0.5, pair[:, 1], pair[:, 0])
    return (loss * is_known).sum(dim=1) / is_known.sum(dim=1).clamp(min=1)


def _survival(z: Tensor, y: Tensor, task: TaskSettings) -> Tensor:
    """-log h_k - sum_{j<k} log(1 - h_j) for an event in interval k; a time on a cut belongs to the interval above."""
    cuts = torch.tensor(task.cuts, dtype=torch.float64, device=y.device)
    at = torch.searchsorted(cuts, y[:, 0].to(torch.float64).contiguous(), right=True)[:, None]  # (B, 1) 0 .. P_t
    interval = torch.arange(z.shape[1], device=z.device)
    has_event = (interval == at) & (y[:, 1:] > 0.5)  # none in "later": there is no hazard of it
    return (softplus(z) * (interval < at) + softplus(-z) * has_event).sum(dim=1)

"""What a task's logits are held against.

Binary: cross-entropy of one sigmoid. Multiclass: cross-entropy of a softmax. Missing targets (-1) are masked out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from wsi_ips.config import TaskSettings
from wsi_ips.errors import ConfigError

__all__ = ["check_trainable", "slide_loss"]

_TRAINABLE = ("binary", "multiclass")


def check_trainable(tasks: tuple[TaskSettings, ...]) -> None:
    """Refuse kinds of task that `finetune` cannot learn.

    Raises:
        ConfigError: names the task.
    """
    for task in tasks:
        if task.kind not in _TRAINABLE:
            raise ConfigError(f"task {task.name!r} is {task.kind}; finetune learns {' and '.join(_TRAINABLE)} tasks")


def slide_loss(outputs: Tensor, targets: Tensor, tasks: tuple[TaskSettings, ...]) -> Tensor:
    """Mean over tasks of the mean loss over slides.

    Args:
        outputs: (B, P) logits of all tasks.
        targets: (B, T) int64 class numbers, -1 where unknown.
    """
    parts = torch.split(outputs, [t.n_outputs for t in tasks], dim=1)
    losses = []
    for task, z, y in zip(tasks, parts, targets.T, strict=True):
        known = y >= 0
        if not bool(known.any()):
            continue
        if task.kind == "binary":
            losses.append(functional.binary_cross_entropy_with_logits(z[known, 0], y[known].to(z.dtype)))
        else:
            losses.append(functional.cross_entropy(z[known], y[known]))
    return torch.stack(losses).mean() if losses else outputs.sum() * 0.0

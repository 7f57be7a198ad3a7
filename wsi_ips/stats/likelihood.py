"""How much a task's probabilities are surprised by the truth, and which rows have a truth at all.

Computed from logits, not from rounded probabilities, so that a confident mistake costs its true price.

Shapes: n cases, P_t outputs and Q_t targets of one task, K classes.
"""

from __future__ import annotations

import numpy as np
from scipy.special import log_expit, log_softmax

from wsi_ips.errors import ModelError
from wsi_ips.stats.survival import cuts_passed
from wsi_ips.tasks import TaskSettings

__all__ = ["known_rows", "negative_log_likelihood"]

_LEAST = 1e-12  # two cumulative logits of an ordinal task that meet leave their class this factor, not none


def known_rows(outputs: np.ndarray, targets: np.ndarray, task: TaskSettings) -> tuple[np.ndarray, np.ndarray]:
    """Keep the rows whose target is known: all of it, or for multilabel at least one label.

    Args:
        outputs: (n, P_t) logits.
        targets: (n, Q_t), NaN where unknown; (n,) will do where Q_t is 1.

    Returns:
        (k, P_t) and (k, Q_t), float64.

    Raises:
        ModelError: shapes that do not fit the task, outputs that are not finite, classes that do not exist.
    """
    z, y = (np.asarray(a, dtype=np.float64) for a in (outputs, targets))
    z, y = (a[:, None] if a.ndim == 1 else a for a in (z, y))
    wanted = f"task {task.name!r} ({task.kind}) needs {task.n_outputs} outputs and {task.n_targets} targets a case"
    if z.shape[1:] != (task.n_outputs,) or y.shape[1:] != (task.n_targets,) or len(z) != len(y):
        raise ModelError(f"{wanted}, and got outputs {z.shape} and targets {y.shape}")
    is_known = ~np.isnan(y)
    keep = is_known.any(axis=1) if task.kind == "multilabel" else is_known.all(axis=1)
    bad = np.flatnonzero(keep & ~np.isfinite(z).all(axis=1))
    if len(bad):
        raise ModelError(f"task {task.name!r}: outputs of row {bad[0]} are not finite: {z[bad[0]]}; leave the row out")
    if task.kind in ("binary", "multiclass", "ordinal"):
        strange = np.flatnonzero(keep & ~np.isin(y[:, 0], np.arange(len(task.classes))))
        if len(strange):
            raise ModelError(
                f"task {task.name!r}: target {y[strange[0], 0]:g} of row {strange[0]} is no class number below "
                f"{len(task.classes)}; write NaN where it is unknown"
            )
    return z[keep], y[keep]


def negative_log_likelihood(outputs: np.ndarray, targets: np.ndarray, task: TaskSettings) -> np.ndarray:
    """Negative log-likelihood of each case's truth, in nats, after the task's temperature.

    Binary, multiclass, ordinal: of the class. Multilabel: mean over the known labels. Survival: of the interval of the
    event, or of having reached the cuts up to when the patient was last seen. Regression has none: NaN.

    Args:
        outputs: (n, P_t) logits.
        targets: (n, Q_t), as `known_rows` returns them.

    Returns:
        (n,) float64.

    Source: discrete-time hazards, Singer and Willett, J. Educ. Stat. 18, 1993.
    """
    z, y = outputs / task.temperature, targets
    rows = np.arange(len(z))
    if task.kind == "binary":
        return -log_expit(np.where(y == 1.0, z, -z))[:, 0]
    if task.kind == "multiclass":
        return -log_softmax(z, axis=1)[rows, y[:, 0].astype(np.int64)]
    if task.kind == "multilabel":
        is_known = ~np.isnan(y)
        return -(log_expit(np.where(y == 1.0, z, -z)) * is_known).sum(axis=1) / is_known.sum(axis=1)
    if task.kind == "ordinal":
        return _ordinal(z, y[:, 0].astype(np.int64), rows)
    if task.kind == "survival":
        return _survival(z, y, task)
    return np.full(len(z), np.nan)


def _ordinal(z: np.ndarray, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    ends = np.full((len(z), 1), np.inf)
    above = np.concatenate([ends, np.minimum.accumulate(z, axis=1), -ends], axis=1)  # (n, K + 1), falling
    a, b = above[rows, y], above[rows, y + 1]
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), without cancellation
    return -(log_expit(a) + log_expit(-b) + np.log(np.maximum(-np.expm1(b - a), _LEAST)))


def _survival(z: np.ndarray, y: np.ndarray, task: TaskSettings) -> np.ndarray:
    passed = cuts_passed(y[:, 0], task.cuts)
    n_cuts = len(task.cuts)
    through = np.arange(n_cuts) < passed[:, None]  # (n, P_t)
    here = (np.arange(n_cuts) == passed[:, None]) & (y[:, 1:] == 1.0)
    return -(log_expit(-z) * through + log_expit(z) * here).sum(axis=1)

"""The questions asked of a slide: their kinds, what the outputs mean, and which numbers are learned from.

Kinds: binary, multiclass, multilabel, ordinal, regression, and survival in discrete time. A model's outputs are
logits, P of them for all tasks together in the order of the tasks; targets are Q numbers a slide, NaN where unknown.

Shapes: P outputs and Q targets of all tasks, K classes of one.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from scipy.special import expit, softmax

from wsi_ips.settings import Settings

__all__ = [
    "TaskSettings",
    "call_value",
    "called_class",
    "evidence_towards",
    "predicted_number",
    "prediction_cells",
    "probabilities",
    "split_outputs",
    "split_targets",
]

TaskKind = Literal["binary", "multiclass", "multilabel", "ordinal", "regression", "survival"]


class TaskSettings(Settings):
    """One question asked of a slide; the order of classes is the order of outputs.

    Survival: `classes` are the intervals that `cuts` make of time, the last one being "later"; there is one output
    a cut, the logit of the hazard of that interval.
    """

    name: str = "label"
    kind: TaskKind = "binary"
    classes: tuple[str, ...] = ()
    """Class names in output order; binary: (negative, positive)."""
    column: str = ""
    """Manifest column of the label (survival: of the time); empty means the task's name."""
    event_column: str = ""
    """Survival: manifest column that is 1 where the event was seen, 0 where the patient left before."""
    threshold: float | None = None
    """Binary: probability of the positive class from which it is called; None means 0.5."""
    n_intervals: int = Field(4, ge=2, le=64)
    """Survival: into how many intervals training cuts time, by quantiles of the seen events."""
    cuts: tuple[float, ...] = ()
    """Survival: inner bounds of the intervals, in the unit of the column; training fills them in when empty."""
    center: float = 0.0
    """Regression: the number that output 0 stands for; training fills in the mean."""
    spread: float = Field(1.0, gt=0.0)
    """Regression: the number that output 1 stands above `center`; training fills in the standard deviation."""
    temperature: float = Field(1.0, gt=0.0)
    """Calibration: logits are divided by it before they become probabilities."""
    allow_absent: bool = False
    """Learn although training or validation holds no slide of some class: the list of classes is fixed from outside."""
    weight: float = Field(1.0, gt=0.0)
    """Weight of the task's loss among several."""

    @model_validator(mode="after")
    def _classes_fit_the_kind(self) -> TaskSettings:
        need = {"binary": 2, "multiclass": 2, "ordinal": 2, "multilabel": 1}.get(self.kind, 0)
        given = len(self.classes)
        if given and (given < need or (self.kind == "binary" and given != 2)):
            raise ValueError(f"task {self.name!r} is {self.kind} and has {given} classes: {self.classes}")
        if len(set(self.classes)) != given:
            raise ValueError(f"task {self.name!r}: a class is named twice: {self.classes}")
        if list(self.cuts) != sorted(set(self.cuts)):
            raise ValueError(f"task {self.name!r}: cuts must rise: {self.cuts}")
        if self.kind == "regression" and given:
            raise ValueError(f"task {self.name!r} is a regression and has no classes; leave out {self.classes}")
        if self.kind == "survival" and given and given != len(self.cuts) + 1:
            raise ValueError(
                f"task {self.name!r}: {len(self.cuts)} cuts make {len(self.cuts) + 1} intervals, not {given}"
            )
        return self

    @property
    def label_column(self) -> str:
        """Manifest column the target is read from."""
        return self.column or self.name

    @property
    def columns(self) -> tuple[str, ...]:
        """All manifest columns the target is read from."""
        both = (self.label_column, self.event_column if self.kind == "survival" else "")
        return tuple(column for column in both if column)

    @property
    def is_resolved(self) -> bool:
        """Whether classes (and survival's cuts) are known, so that a model can be built."""
        return self.kind == "regression" or bool(self.classes)

    @property
    def n_outputs(self) -> int:
        """P_t: binary 1 (the positive class), ordinal K - 1, survival one a cut, regression 1, else K."""
        fixed = {"binary": 1, "regression": 1, "ordinal": len(self.classes) - 1, "survival": len(self.cuts)}
        return fixed.get(self.kind, len(self.classes))

    @property
    def n_targets(self) -> int:
        """Q_t: multilabel K (0 or 1 each), survival 2 (time, event), else 1 (class number or value)."""
        return {"multilabel": len(self.classes), "survival": 2}.get(self.kind, 1)


def split_outputs(outputs: np.ndarray, tasks: tuple[TaskSettings, ...]) -> list[np.ndarray]:
    """Cut (..., P) outputs of all tasks into (..., P_t) of each."""
    return np.split(outputs, np.cumsum([t.n_outputs for t in tasks])[:-1], axis=-1)


def split_targets(targets: np.ndarray, tasks: tuple[TaskSettings, ...]) -> list[np.ndarray]:
    """Cut (..., Q) targets of all tasks into (..., Q_t) of each."""
    return np.split(targets, np.cumsum([t.n_targets for t in tasks])[:-1], axis=-1)


def probabilities(outputs: np.ndarray, task: TaskSettings) -> np.ndarray:
    """Turn the logits (..., P_t) of one task into calibrated probabilities (..., K) in class order.

    Binary: sigmoid, (1 - p, p). Multiclass: softmax. Multilabel: a sigmoid each. Ordinal: differences of the
    cumulative sigmoids P(y > k). Survival: P(event in interval k) = h_k prod_{j<k} (1 - h_j), and what is left for
    "later". Regression has no probabilities: (..., 0). Logits are divided by the task's temperature first.

    >>> probabilities(np.array([0.0]), TaskSettings(classes=("no", "yes"))).tolist()
    [0.5, 0.5]

    Source: discrete-time hazards, Singer and Willett, J. Educ. Stat. 18, 1993.
    """
    z = np.asarray(outputs, dtype=np.float64) / task.temperature
    if task.kind == "binary":
        return np.concatenate([expit(-z), expit(z)], axis=-1)
    if task.kind == "multiclass":
        return softmax(z, axis=-1)
    if task.kind == "multilabel":
        return expit(z)
    if task.kind == "ordinal":
        above = np.minimum.accumulate(expit(z), axis=-1)
    elif task.kind == "survival":
        above = np.cumprod(expit(-z), axis=-1)
    else:
        return z[..., :0]
    ones, zeros = np.ones_like(above[..., :1]), np.zeros_like(above[..., :1])
    return -np.diff(np.concatenate([ones, above, zeros], axis=-1), axis=-1)


def predicted_number(outputs: np.ndarray, task: TaskSettings) -> np.ndarray:
    """The number a task predicts: (..., P_t) -> (...,) float64; larger means more.

    Regression: the value. Binary: probability of the positive class. Ordinal: expected class number. Survival: risk,
    minus the sum of the survival function over the cuts. Multiclass, multilabel: NaN.
    """
    z = np.asarray(outputs, dtype=np.float64)
    if task.kind == "regression":
        return task.center + task.spread * z[..., 0]
    probs = probabilities(z, task)
    if task.kind == "binary":
        return probs[..., 1]
    if task.kind == "ordinal":
        return (probs * np.arange(len(task.classes))).sum(axis=-1)
    if task.kind == "survival":
        return -(1.0 - np.cumsum(probs, axis=-1))[..., :-1].sum(axis=-1)
    return np.full(z.shape[:-1], np.nan)


def called_class(probs: np.ndarray, outputs: np.ndarray, task: TaskSettings) -> str:
    """Name what is called from the (K,) probabilities of one slide.

    The most probable class; binary and multilabel by threshold; ordinal and survival the median class; regression
    the number itself.
    """
    if task.kind == "regression":
        return f"{float(predicted_number(outputs, task)):.6g}"
    if task.kind == "binary":
        return task.classes[int(probs[1] >= (0.5 if task.threshold is None else task.threshold))]
    if task.kind == "multilabel":
        cut = 0.5 if task.threshold is None else task.threshold
        called = ";".join(c for c, p in zip(task.classes, probs, strict=True) if p >= cut)
        return called or "none"  # an empty cell would read as unknown
    if task.kind in ("ordinal", "survival"):
        return task.classes[min(int(np.sum(np.cumsum(probs) < 0.5)), len(task.classes) - 1)]
    return task.classes[int(np.argmax(probs))]


def call_value(outputs: np.ndarray, task: TaskSettings, of: np.ndarray) -> np.ndarray:
    """Follow what one slide was called through other outputs: (..., P_t) -> (...,) float64.

    Binary and multiclass: probability of the class that is called from `of` (P_t,). Multilabel: probability of the
    class that is most probable in `of`. Ordinal, regression, survival: the predicted number.
    """
    called = _followed_class(task, of)
    return predicted_number(outputs, task) if called is None else probabilities(outputs, task)[..., called]


def evidence_towards(evidence: np.ndarray, task: TaskSettings, of: np.ndarray) -> np.ndarray:
    """Sign differences of logits (n, P_t) so that more speaks for what was called from `of` (P_t,): (n,) float64."""
    e, called = np.asarray(evidence, dtype=np.float64), _followed_class(task, of)
    if called is None:
        return e.mean(axis=-1)
    if task.kind == "binary":
        return e[:, 0] if called == 1 else -e[:, 0]
    return e[:, called]


def _followed_class(task: TaskSettings, of: np.ndarray) -> int | None:
    if task.kind in ("ordinal", "regression", "survival"):
        return None
    probs = probabilities(np.asarray(of), task)
    return int(np.argmax(probs)) if task.kind == "multilabel" else task.classes.index(called_class(probs, of, task))


def prediction_cells(outputs: np.ndarray, tasks: tuple[TaskSettings, ...]) -> dict[str, str]:
    """Lay the calls and probabilities of a slide out as cells: pred, prob_<class> .., threshold, risk (survival).

    Several tasks: `<task>`, `<task>_prob_<class>`, `<task>_threshold`, `<task>_risk`.
    """
    cells: dict[str, str] = {}
    for task, z in zip(tasks, split_outputs(outputs, tasks), strict=True):
        probs = probabilities(z, task)
        prefix = "" if len(tasks) == 1 else f"{task.name}_"
        cells["pred" if len(tasks) == 1 else task.name] = called_class(probs, z, task)
        for name, p in zip(task.classes, probs, strict=False):
            cells[f"{prefix}prob_{name}"] = f"{p:.6f}"
        if task.kind in ("binary", "multilabel"):
            cells[f"{prefix}threshold"] = f"{0.5 if task.threshold is None else task.threshold:.6g}"
        if task.kind == "survival":
            cells[f"{prefix}risk"] = f"{float(predicted_number(z, task)):.6f}"
    return cells

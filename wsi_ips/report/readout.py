"""What a prediction says, in words and numbers fit for a picture or a page: the call, and what evidence speaks for."""

from __future__ import annotations

import numpy as np

from wsi_ips.config import TaskSettings
from wsi_ips.results import SlidePrediction
from wsi_ips.tasks import called_class, probabilities, split_outputs

__all__ = ["RESEARCH_USE", "call_text", "evidence_for_call", "outputs_said", "shown_number"]

RESEARCH_USE = "Research use only. Attention shows where the model looked, not disease."


def shown_number(value: float) -> str:
    """Write a number with three digits that matter, without an exponent below a million.

    >>> [shown_number(v) for v in (38.24, 0.0123, 1234.7, 0.0, 5)]
    ['38.2', '0.0123', '1,235', '0', '5']
    """
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def call_text(prediction: SlidePrediction, task: int = 0) -> str:
    """Say what a slide was called, "label: tumor (probability 0.932)"."""
    settings = prediction.tasks[task]
    outputs = split_outputs(prediction.outputs, prediction.tasks)[task]
    probs = probabilities(outputs, settings)
    called = called_class(probs, outputs, settings)
    if settings.kind == "regression":
        return f"{settings.name}: {called}"
    if settings.kind == "multilabel":
        each = ", ".join(f"{c} {p:.3f}" for c, p in zip(settings.classes, probs, strict=True))
        return f"{settings.name}: {called.replace(';', ', ') or 'none'} (probabilities: {each})"
    return f"{settings.name}: {called} (probability {probs[settings.classes.index(called)]:.3f})"


def evidence_for_call(
    prediction: SlidePrediction, task: int = 0, table: np.ndarray | None = None
) -> tuple[np.ndarray, str]:
    """Pick the evidence that belongs to the call.

    Args:
        prediction: what the pass found.
        task: index into `prediction.tasks`.
        table: (n, P) differences of logits; None takes those of the selected tiles.

    Returns:
        (n,) differences of logits, and what a positive one speaks for. Binary: always the positive class. Multiclass:
        the called class. Multilabel: the most probable class. Ordinal and regression: a higher value (ordinal: the
        mean over its cumulative logits).
    """
    settings = prediction.tasks[task]
    whole = prediction.evidence if table is None else table
    evidence = split_outputs(whole, prediction.tasks)[task].astype(np.float64)  # (n, P_t)
    if settings.kind == "binary":
        return evidence[:, 0], settings.classes[1]
    if settings.kind in ("multiclass", "multilabel"):
        k = _likeliest(prediction, settings, task)
        return evidence[:, k], settings.classes[k]
    return evidence.mean(axis=1), f"a higher {settings.name}"


def outputs_said(task: TaskSettings) -> tuple[str, ...]:
    """Say what a higher logit of each output speaks for: P_t texts.

    >>> outputs_said(TaskSettings(kind="ordinal", classes=("low", "middle", "high")))
    ('above low', 'above middle')
    """
    if task.kind == "binary":
        return task.classes[1:]
    if task.kind == "ordinal":
        return tuple(f"above {name}" for name in task.classes[:-1])
    if task.kind == "survival":
        return tuple(f"an event in {name}" for name in task.classes[:-1])
    return task.classes or (f"a higher {task.name}",)


def _likeliest(prediction: SlidePrediction, settings: TaskSettings, task: int) -> int:
    return int(np.argmax(probabilities(split_outputs(prediction.outputs, prediction.tasks)[task], settings)))

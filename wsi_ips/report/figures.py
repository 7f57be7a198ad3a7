"""Figures of a training's report: how it learned, and how good the result is; numbers in, SVG and PNG out.

Drawn with Agg and the object-oriented interface alone, in a fixed style and without dates, so that the same numbers
give the same bytes. Colours are those of Okabe and Ito, which colour-blind readers tell apart; lines differ in style,
too. Text is drawn as it stands: a class called "$x$" is no formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wsi_ips.report.figure_style import GREY, drawn_twice

__all__ = ["BandCurve", "Learning", "ReliabilityBin", "StepCurve", "confusion_figure", "learning_figure",
           "precision_recall_figure", "regression_figure", "reliability_figure", "roc_figure", "selection_figure",
           "survival_figure"]  # fmt: skip

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: tuple[str, ...] = ("-", "--", "-.", ":")
_MOST_NAMED = 6  # lines that a legend names one by one


class Learning(NamedTuple):
    """How one training went; one number an epoch, NaN where there was none."""

    name: str  # "fold 2", "seed 3"; "" when there is only one
    loss: Sequence[float]
    val_loss: Sequence[float]
    score: Sequence[float]  # primary metric on the validation slides
    best_epoch: int  # from 1; 0 when none was kept


class BandCurve(NamedTuple):
    """A curve over 0..1 with its 95 % band."""

    name: str  # for the legend, with n
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    low: Sequence[float] | np.ndarray
    high: Sequence[float] | np.ndarray


class ReliabilityBin(NamedTuple):
    """Cases of similar probability; the share that came true should equal it."""

    confidence: float  # mean probability, 0..1
    share: float  # of them that came true, 0..1
    n: int


class StepCurve(NamedTuple):
    """Share without the event over time, of one group."""

    name: str  # for the legend, with n and events
    time: Sequence[float] | np.ndarray  # rising, from 0
    share: Sequence[float] | np.ndarray  # from each time on
    censored: Sequence[float] | np.ndarray  # times at which somebody left


def _one(width: float = 5.4, height: float = 4.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _short(text: str, most: int = 28) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _line_style(i: int) -> tuple[str, str]:
    return _COLOURS[i % len(_COLOURS)], _DASHES[i // len(_COLOURS) % len(_DASHES)]


@drawn_twice
def learning_figure(lines: Sequence[Learning], metric: str) -> Figure:
    """Draw loss and validation metric over the epochs, the kept epoch marked; several trainings as thin lines.

    Args:
        lines: one a training.
        metric: name of the primary metric, "AUROC".
    """
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    is_single, named = len(lines) == 1, len(lines) <= _MOST_NAMED
    for i, line in enumerate(lines):
        colour, _ = _line_style(0 if not named else i)
        width, opacity = (1.8, 1.0) if is_single else (1.0, 0.85)
        epochs = np.arange(1, len(line.loss) + 1)
        left.plot(epochs, line.loss, color=colour, lw=width, alpha=opacity, label=_only(i, "training"))
        left.plot(epochs, line.val_loss, color=colour, lw=width, ls="--", alpha=opacity, label=_only(i, "validation"))
        name = line.name if named and not is_single else ""
        right.plot(epochs, line.score, color=colour, lw=width, alpha=opacity, label=name or None)
        if 1 <= line.best_epoch <= len(epochs):
            at = line.best_epoch - 1
            label = _only(i, f"kept: epoch {line.best_epoch}" if is_single else "kept epochs")
            mark = {"color": colour, "marker": "o", "ls": "none", "ms": 6, "mec": "white"}
            right.plot(epochs[at], line.score[at], label=label, **mark)
            left.plot(epochs[at], line.val_loss[at], **mark)
    for axes, what in ((left, "loss"), (right, f"{metric} on validation slides")):
        axes.set(xlabel="epoch", ylabel=what)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.get_legend_handles_labels()[1] and (is_single or axes is left):
            axes.legend()
    if not is_single and right.get_legend_handles_labels()[1]:  # many names would cover the lines
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    if not named:
        right.set_title(f"{len(lines)} trainings", loc="left")
    return figure


def _only(i: int, label: str) -> str | None:
    return label if i == 0 else None


def _bands(axes: Axes, curves: Sequence[BandCurve]) -> None:
    for i, c in enumerate(curves):
        colour, dash = _line_style(i)
        axes.fill_between(c.x, c.low, c.high, color=colour, alpha=0.16 if len(curves) < 4 else 0.07, lw=0)
        axes.plot(c.x, c.y, color=colour, ls=dash, lw=1.8, label=_short(c.name, 60))
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")


@drawn_twice
def roc_figure(curves: Sequence[BandCurve]) -> Figure:
    """Draw ROC curves with bands: x is 1 - specificity, y sensitivity."""
    figure, axes = _one(5.2, 5.2 + 0.18 * max(0, len(curves) - 2))
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":")
    _bands(axes, curves)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC, with 95 % bands")
    figure.legend(loc="outside lower left")
    return figure


@drawn_twice
def precision_recall_figure(curves: Sequence[BandCurve], prevalence: Sequence[float] = ()) -> Figure:
    """Draw precision over recall with bands; dotted: what guessing gives, the class's share of the cases."""
    figure, axes = _one(5.2, 5.2 + 0.18 * max(0, len(curves) - 2))
    for i, share in enumerate(prevalence):
        axes.axhline(share, color=_line_style(i)[0], lw=1, ls=":")
    _bands(axes, curves)
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", title="Precision and recall, with 95 % bands")
    figure.legend(loc="outside lower left")
    return figure


@drawn_twice
def confusion_figure(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw how many cases of each true class (rows) were called what (columns); shading is the share of the row."""
    k, names = len(classes), [_short(c, 18) for c in classes]
    side = 3.0 + 0.62 * k
    figure, axes = _one(side + 0.8, side)
    total = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(total, 1)
    axes.pcolormesh(np.arange(k + 1) - 0.5, np.arange(k + 1) - 0.5, share, cmap="Blues", vmin=0.0, vmax=1.0)
    for row in range(k):
        for column in range(k):
            dark = share[row, column] > 0.55
            text = f"{counts[row, column]}" + (f"\n{100 * share[row, column]:.0f} %" if total[row, 0] else "")
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "#1f2430", fontsize=10)
    axes.set_xticks(range(k), names)
    if max(map(len, names)) > 8 or k > 4:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(k), [f"{n} ({t})" for n, t in zip(names, total[:, 0], strict=True)])
    axes.grid(visible=False)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set(xlabel="called", ylabel="true (cases)", title="Counts, and share of the true class")
    return figure


@drawn_twice
def reliability_figure(bins: Sequence[ReliabilityBin], before: Sequence[ReliabilityBin] = ()) -> Figure:
    """Draw the share that came true over the stated probability, with the number of cases below.

    Args:
        bins: as the model says it now.
        before: without the calibration temperature, drawn thin.
    """
    figure = Figure(figsize=(5.2, 5.4), layout="constrained")
    top, low = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    top.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="perfect")
    for some, colour, dash, label in ((before, _COLOURS[1], "--", "before"), (bins, _COLOURS[0], "-", "calibrated")):
        full = [b for b in some if b.n]
        name = label if before else "model"
        if full:
            top.plot([b.confidence for b in full], [b.share for b in full], color=colour, ls=dash, marker="o", ms=4.5, lw=1.4,
                     label=name)  # fmt: skip
    full = [b for b in bins if b.n]
    low.bar([b.confidence for b in full], [b.n for b in full], width=0.045, color=_COLOURS[0])
    most = max((b.n for b in full), default=1)
    for b in full:
        low.text(b.confidence, b.n + 0.03 * most, str(b.n), ha="center", va="bottom", fontsize=9)
    low.set(xlabel="probability the model states", ylabel="cases", ylim=(0, 1.35 * most), xlim=(-0.03, 1.03))
    low.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    top.set(ylabel="share that came true", ylim=(-0.03, 1.03), title="Calibration")
    top.legend(loc="upper left")
    return figure


@drawn_twice
def survival_figure(groups: Sequence[StepCurve], time_label: str, subtitle: str = "") -> Figure:
    """Draw Kaplan-Meier curves of groups by predicted risk; ticks mark who left before the event."""
    figure, axes = _one(6.4, 4.6)
    for i, g in enumerate(groups):
        colour, dash = _line_style(i)
        time, share = np.asarray(g.time, dtype=float), np.asarray(g.share, dtype=float)
        axes.step(time, share, where="post", color=colour, ls=dash, lw=1.8, label=_short(g.name, 60))
        left = np.asarray(g.censored, dtype=float)
        at = share[np.maximum(np.searchsorted(time, left, side="right") - 1, 0)] if len(time) else left
        axes.plot(left, at, color=colour, marker="|", ls="none", ms=7)
    axes.set(
        xlabel=time_label, ylabel="share without the event", ylim=(-0.02, 1.03), title=subtitle or "By predicted risk"
    )
    axes.set_xlim(left=0)
    axes.legend()
    return figure


@drawn_twice
def regression_figure(truth: np.ndarray, predicted: np.ndarray, name: str) -> Figure:
    """Draw predicted over true values, with the line on which they agree."""
    figure, axes = _one(5.0, 4.8)
    both = np.concatenate([truth, predicted]) if len(truth) else np.array([0.0, 1.0])
    pad = 0.05 * (float(np.ptp(both)) or 1.0)
    ends = (float(both.min()) - pad, float(both.max()) + pad)
    axes.plot(ends, ends, color=GREY, lw=1, ls=":", label="agreement")
    axes.plot(truth, predicted, color=_COLOURS[0], marker="o", ms=4.5, ls="none", alpha=0.65, mec="none",
              label=f"{len(truth)} cases")  # fmt: skip
    axes.set(xlabel=f"true {_short(name)}", ylabel=f"predicted {_short(name)}", xlim=ends, ylim=ends, aspect="equal")
    axes.legend(loc="upper left")
    return figure


@drawn_twice
def selection_figure(n_encoded: Sequence[float], recall: Sequence[float] = (), floor: float | None = None) -> Figure:
    """Draw what selection cost an epoch, and how much of the true choice the audit found.

    Args:
        n_encoded: tiles through the encoder, by epoch.
        recall: audited recall of the true top M, 0..1, by epoch; NaN where every tile was scored.
        floor: recall below which the next epoch scores every tile.
    """
    has_recall = bool(np.isfinite(np.asarray(recall, dtype=float)).any()) if len(recall) else False
    figure = Figure(figsize=(9.6 if has_recall else 5.2, 3.4), layout="constrained")
    panels = figure.subplots(1, 2 if has_recall else 1, squeeze=False)[0]
    panels[0].bar(np.arange(1, len(n_encoded) + 1), n_encoded, color=_COLOURS[0], width=0.7)
    panels[0].set(xlabel="epoch", ylabel="encoder forwards (tiles)", ylim=(0, None))
    if has_recall:
        epochs = np.arange(1, len(recall) + 1)
        panels[1].plot(epochs, recall, color=_COLOURS[2], marker="o", ms=4.5, lw=1.4, label="audited recall")
        if floor is not None:
            panels[1].axhline(floor, color=_COLOURS[1], ls="--", lw=1.2, label=f"floor {floor:g}")
        panels[1].set(xlabel="epoch", ylabel="recall of the true top M", ylim=(0, 1.03))
        panels[1].legend(loc="lower right")
    for axes in panels:
        axes.set_xlim(0.4, len(n_encoded) + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure

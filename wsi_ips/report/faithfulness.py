"""What the deletion and insertion curves say, in numbers, in one plain sentence and in a figure.

Numbers come from the ledger (`results.Faithfulness`): exact answers of the head, measured in the pass that made the
label. The verdict is worded for the reader's next decision: whether single tiles may be read as the reason.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from wsi_ips.config import TaskSettings
from wsi_ips.report.figure_style import fixed_style, svg_bytes
from wsi_ips.results import SlidePrediction
from wsi_ips.tasks import call_value, called_class, probabilities, split_outputs

__all__ = ["FaithSummary", "curves_svg", "faith_summary", "faithfulness_sentence", "followed_text"]

_MOST = 16  # tiles taken away in the sentence
_CARRIES = 0.1  # least change of a probability that counts as carrying a call


class FaithSummary(NamedTuple):
    """One task of one slide; values are probabilities of the call (regression and its like: the number)."""

    k: int  # tiles taken away, or kept
    m: int  # selected tiles
    whole: float
    without_evidence: float  # without the k tiles with the most evidence for the call
    without_attention: float
    without_random: float  # mean over the random orders
    without_random_low: float  # least and largest of them
    without_random_high: float
    only_evidence: float  # with these k tiles alone
    only_attention: float
    only_random: float
    drop_evidence: float  # mean over 1..k of the fall by taking tiles away
    drop_attention: float
    drop_random: float


def faith_summary(p: SlidePrediction, task: int = 0) -> FaithSummary | None:
    """Read the curves at k = 16, or at half of the selected tiles where there are fewer than 32; None without curves."""
    found = p.faithfulness
    if found is None:
        return None
    m = len(p.selected)
    k = max(1, min(_MOST, m // 2))
    at = int(np.searchsorted(found.counts, k))
    orders = np.array(found.orders)
    gone, kept = found.deletion[task].astype(float), found.insertion[task].astype(float)  # (O, C)
    whole = float(found.whole[task])
    random = gone[orders == "random"]
    drops = [whole - gone[orders == name][:, : at + 1].mean() for name in ("evidence", "attention", "random")]
    return FaithSummary(
        k, m, whole, float(gone[orders == "evidence", at][0]), float(gone[orders == "attention", at][0]),
        float(random[:, at].mean()), float(random[:, at].min()), float(random[:, at].max()),
        float(kept[orders == "evidence", at][0]), float(kept[orders == "attention", at][0]),
        float(kept[orders == "random", at].mean()), *map(float, drops),
    )  # fmt: skip


def followed_text(p: SlidePrediction, task: int = 0) -> str:
    """Name the number that the curves follow: "probability of tumor"."""
    settings = p.tasks[task]
    if settings.kind in ("ordinal", "regression", "survival"):
        return {"ordinal": f"expected {settings.name}", "regression": f"predicted {settings.name}"}.get(
            settings.kind, f"predicted risk ({settings.name})"
        )
    return f"probability of {_followed(p, settings, task)}"


def _followed(p: SlidePrediction, settings: TaskSettings, task: int) -> str:
    outputs = split_outputs(p.outputs, p.tasks)[task]
    probs = probabilities(outputs, settings)
    if settings.kind == "multilabel":
        return settings.classes[int(np.argmax(probs))]
    return called_class(probs, outputs, settings)


def faithfulness_sentence(p: SlidePrediction, task: int = 0) -> str:
    """Say whether the tiles that rank high carry the call; "" where that was not measured.

    "Removing the 16 tiles with the most evidence changes the probability of tumor from 0.93 to 0.21; removing 16 random
    tiles: 0.92 ..."
    """
    s = faith_summary(p, task)
    if s is None:
        return ""
    what = followed_text(p, task)
    if s.m == 1:
        return f"The label rests on one tile; without it the {what} is {_number(s.without_evidence)}, not {_number(s.whole)}."
    tiles, they = (f"{s.k} tiles", "they") if s.k > 1 else ("tile", "it")
    text = (
        f"Removing the {tiles} with the most evidence changes the {what} from {_number(s.whole)} to "
        f"{_number(s.without_evidence)}; removing {s.k} random {'tiles' if s.k > 1 else 'tile'} of the {s.m} used: "
        f"{_number(s.without_random)} ({_number(s.without_random_low)} to {_number(s.without_random_high)} in "
        f"{_n_random(p)} draws). Removing the {tiles} with the most attention: {_number(s.without_attention)}. "
        f"Alone, the {tiles} with the most evidence {'give' if s.k > 1 else 'gives'} {_number(s.only_evidence)}. "
    )
    return text + _verdict(p, s, task, they)


def _verdict(p: SlidePrediction, s: FaithSummary, task: int, they: str) -> str:
    outputs = split_outputs(p.outputs, p.tasks)[task]
    if p.tasks[task].kind in ("ordinal", "regression", "survival"):
        spread = max(s.without_random_high, s.whole) - min(s.without_random_low, s.whole)
        carries = abs(s.whole - s.without_evidence) > 2 * spread
    else:
        assert np.isclose(s.whole, float(call_value(outputs, p.tasks[task], outputs)), atol=1e-4)
        carries = s.whole - s.without_evidence >= _CARRIES and s.without_evidence < s.without_random_low
    if carries:
        return f"So {they} {'carry' if they == 'they' else 'carries'} the call."
    return "So the call does not hang on them: many tiles say the same, and none of these should be read as its reason."


def _n_random(p: SlidePrediction) -> int:
    return sum(name == "random" for name in p.faithfulness.orders) if p.faithfulness else 0


def _number(value: float) -> str:
    if 0.0 < value < 1.0 and not 0.05 <= value < 0.95:
        return f"{value:.3f}"  # 0.998 is not certainty
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.4g}"


def curves_svg(p: SlidePrediction, task: int = 0) -> bytes | None:
    """Draw the call while tiles are taken away, and while they are all there is; random orders as mean and band."""
    if p.faithfulness is None or len(p.selected) < 2:
        return None
    with fixed_style():
        return svg_bytes(_curves(p, task))


def _curves(p: SlidePrediction, task: int) -> Figure:
    found = p.faithfulness
    assert found is not None
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    orders, is_number = np.array(found.orders), p.tasks[task].kind in ("ordinal", "regression", "survival")
    named = (("evidence", "#D55E00", "-", "most evidence first"), ("attention", "#0072B2", "--", "most attention first"))
    panels = zip(figure.subplots(1, 2, sharey=True), (found.deletion[task], found.insertion[task]), (True, False), strict=True)
    for axes, curves, is_deletion in panels:
        random = curves[orders == "random"]
        axes.fill_between(found.counts, random.min(0), random.max(0), color="#9aa1ac", alpha=0.35, linewidth=0)
        axes.plot(found.counts, random.mean(0), color="#5c6370", linestyle=":", label=f"{len(random)} random orders")
        for name, colour, dash, label in named:
            axes.plot(found.counts, curves[orders == name][0], color=colour, linestyle=dash, label=label)
        axes.axhline(float(found.whole[task]), color="#1f2430", linewidth=0.8)
        axes.set_xscale("log", base=2)
        ticks = [int(c) for c in found.counts if c & (c - 1) == 0 or c == found.counts[-1]]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.set_xlabel("tiles taken away" if is_deletion else "tiles kept, all others taken away")
        if not is_number:
            axes.set_ylim(-0.02, 1.02)
        if is_deletion:
            axes.set_ylabel(followed_text(p, task))
            axes.legend(loc="best")
    return figure

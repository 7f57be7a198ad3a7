"""Figures of a training: the same bytes every time, no text taken for a formula, nothing from a network."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from wsi_ips.report import figures
from wsi_ips.report.figure_style import Drawing
from wsi_ips.report.figures import BandCurve, Learning, ReliabilityBin, StepCurve

NAN = float("nan")
X = np.linspace(0, 1, 5)
CURVE = BandCurve("$\\frac{tumor$ <b>: AUROC 0.9, 3 of 9 slides", X, X**0.5, X, np.ones(5))
LINE = Learning("fold 1", [2.0, 1.0, 0.5], [2.0, NAN, 1.0], [0.5, 0.7, NAN], 2)
BINS = [ReliabilityBin(0.1, 0.2, 4), ReliabilityBin(NAN, NAN, 0), ReliabilityBin(0.9, 1.0, 6)]
DRAWN: dict[str, Callable[[], Drawing]] = {
    "learning": lambda: figures.learning_figure([LINE], "AUROC"),
    "learning of many": lambda: figures.learning_figure([LINE._replace(name=f"fold {i}") for i in range(8)], "AUROC"),
    "roc": lambda: figures.roc_figure([CURVE, CURVE._replace(name="other")]),
    "precision": lambda: figures.precision_recall_figure([CURVE], [0.3]),
    "confusion": lambda: figures.confusion_figure(
        np.array([[3, 1], [0, 0]]), ["$a", "a class with a long name indeed"]
    ),
    "reliability": lambda: figures.reliability_figure(BINS, BINS[:1]),
    "survival": lambda: figures.survival_figure([StepCurve("low", [0, 2, 5], [1, 0.5, 0.5], [1, 5])], "time (days)"),
    "regression": lambda: figures.regression_figure(np.array([1.0, 2.0]), np.array([1.5, 1.5]), "count"),
    "selection": lambda: figures.selection_figure([100, 50], [NAN, 0.95], 0.9),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_a_picture_twice(name: str) -> None:
    """SVG and PNG, both readable, the PNG large enough for print; no date, no script, no address that is loaded."""
    drawing = DRAWN[name]()
    with Image.open(io.BytesIO(drawing.png)) as png:
        assert png.format == "PNG"
        assert min(png.size) >= 450
    text = drawing.svg.decode()
    assert text.rstrip().endswith("</svg>")
    assert "<dc:date>" not in text
    assert "<script" not in text
    assert not re.search(r'(href|src)="(?!#)', text)


def test_the_same_numbers_give_the_same_bytes_whatever_the_reader_has_set() -> None:
    """Neither a second time nor another style of the caller's changes a byte, and the caller's style stays."""
    first = DRAWN["roc"]()
    with mpl.rc_context({"font.size": 23, "axes.grid": False, "text.parse_math": True}):
        assert DRAWN["roc"]() == first
        assert mpl.rcParams["font.size"] == 23
    assert DRAWN["precision"]() != first

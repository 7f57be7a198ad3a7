"""One style for all figures: the same numbers give the same bytes, whatever the reader's own settings are.

Drawn with Agg and the object-oriented interface alone, without dates. Text is drawn as it stands: a class called "$x$"
is no formula.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, ParamSpec

import matplotlib.style
from matplotlib.figure import Figure

__all__ = ["GREY", "Drawing", "drawn_twice", "fixed_style", "svg_bytes"]

P = ParamSpec("P")
GREY = "#5c6370"
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10, "xtick.labelsize": 9,
    "ytick.labelsize": 9, "legend.fontsize": 9, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": GREY, "axes.grid": True, "grid.color": "#e4e7ec",
    "grid.linewidth": 0.8, "axes.axisbelow": True, "svg.hashsalt": "wsi-ips", "svg.fonttype": "path",
    "text.parse_math": False, "figure.facecolor": "white",
}  # fmt: skip


class Drawing(NamedTuple):
    """One figure, twice."""

    svg: bytes
    png: bytes


def drawn_twice(draw: Callable[P, Figure]) -> Callable[P, Drawing]:
    """Draw in the fixed style, whatever the reader's own settings are, and write both forms."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Drawing:
        with fixed_style():
            figure, png = draw(*args, **kwargs), io.BytesIO()
            figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
            return Drawing(svg_bytes(figure), png.getvalue())

    return drawn


@contextlib.contextmanager
def fixed_style() -> Iterator[None]:
    """Draw in the style of all figures here."""
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # an unusual letter becomes a box, no noise
        yield


def svg_bytes(figure: Figure) -> bytes:
    """Write a figure as SVG without a date."""
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return svg.getvalue()

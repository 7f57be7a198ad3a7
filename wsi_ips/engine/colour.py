"""What a cohort looks like to the encoder, so that a slide that looks otherwise draws a warning.

Five numbers a slide, from the tiles the encoder saw: mean optical density of red, green and blue (stain and scanner),
the contrast inside tiles and the step between neighbouring px (texture and focus). A bundle stores the range its
training slides spanned; a slide outside is still labelled, and its row says `E_OUT_OF_RANGE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from wsi_ips.errors import Note

__all__ = ["ColourStatistics", "cohort_range", "range_note"]

_NAMES = ("red density", "green density", "blue density", "contrast", "texture")
_FLOOR = np.array([0.04, 0.04, 0.04, 0.02, 0.01])  # least half-margin: small cohorts span too little by chance
_DENSITY = -np.log10(np.maximum(np.arange(256, dtype=np.float32), 1.0) / 255.0)  # one grey step of floor; Beer-Lambert
_WIDEN = 0.5  # of the cohort's own span, on either side


class ColourStatistics:
    """Running means over the tiles of one slide; O(1) memory.

    Args:
        state: of earlier statistics, to go on with.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._sum = np.array(state["sum"]) if state else np.zeros(len(_NAMES))
        self._n = int(state["n"]) if state else 0

    def state(self) -> dict[str, Any]:
        """Say how far it has come, in plain numbers that lose no bit."""
        return {"sum": self._sum.tolist(), "n": self._n}

    def add(self, pixels: np.ndarray | Tensor) -> None:
        """Take in tiles (n, S, S, 3) uint8, a tensor on any device or an array; other channel counts are left out."""
        if pixels.shape[-1] != 3 or len(pixels) == 0:
            return
        side = pixels.shape[1]
        some = pixels[:, :: max(1, min(8, side // 16)), ::2]  # rows enough for means; neighbours in a row are a step apart
        density = _DENSITY[some if isinstance(some, np.ndarray) else some.cpu().numpy()]  # moved when it has become few
        # sums by matrix products: numpy's own go px by px where the last axis has three
        third, every = np.full(3, 1.0 / 3.0, np.float32), np.full(some.shape[1] * some.shape[2], 1.0, np.float32)
        grey = density @ third  # (n, h, w)
        step = np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))
        means = every @ density.reshape(len(density), -1, 3) / len(every)  # (n, 3)
        rows = np.column_stack([means, grey.reshape(len(grey), -1).std(axis=1), step])
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._n += len(pixels)

    def summary(self) -> dict[str, float] | None:
        """Name the five numbers; None when no tile was seen."""
        if self._n == 0:
            return None
        return dict(zip(_NAMES, np.round(self._sum / self._n, 5).tolist(), strict=True))


def cohort_range(summaries: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Span the slides of a training cohort, widened by half the span and at least a fixed floor."""
    if not summaries:
        return {}
    table = np.array([[s[name] for name in _NAMES] for s in summaries])
    low, high = table.min(axis=0), table.max(axis=0)
    margin = np.maximum(_WIDEN * (high - low), _FLOOR)
    return {n: (float(a), float(b)) for n, a, b in zip(_NAMES, low - margin, high + margin, strict=True)}


def range_note(summary: dict[str, float] | None, known: dict[str, tuple[float, float]]) -> Note | None:
    """Warn when a slide lies outside the range its model was trained on."""
    if summary is None:
        return None
    off = [
        f"{name} {summary[name]:.3f} (trained on {low:.3f} to {high:.3f})"
        for name, (low, high) in known.items()
        if name in summary and not low <= summary[name] <= high
    ]
    if not off:
        return None
    return Note(
        "E_OUT_OF_RANGE", f"unlike the slides the model was trained on: {', '.join(off)}; do not rely on the label"
    )

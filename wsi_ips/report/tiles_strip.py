"""The tiles that mattered most, read again from the slide: what the model looked at, at the model's own resolution.

Shapes: n tiles shown, T tasks, P outputs of all tasks together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from wsi_ips.errors import TileReadError
from wsi_ips.report.heatmap import times_uniform
from wsi_ips.report.picture import GREY, INK, Paper, png_bytes
from wsi_ips.report.provenance import provenance_text
from wsi_ips.report.readout import RESEARCH_USE, call_text, evidence_for_call, shown_number
from wsi_ips.report.thumbnail import read_square
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.reader import Slide
from wsi_ips.tasks import evidence_towards, split_outputs

__all__ = ["TopTile", "tiles_against", "top_tiles", "top_tiles_strip_png"]

_FOR, _AGAINST = "#9a4d00", "#5b3a8c"  # the ends of the evidence map's colours, dark enough to read
_UNREADABLE = 176


class TopTile(NamedTuple):
    """One of the selected tiles."""

    row: int  # the instance's number in the grid
    rank: int  # 1 is the best
    x0: int  # level-0 px of the top-left corner
    y0: int
    png: bytes | None  # size_px x size_px; None when the file could not be decoded there
    attention: tuple[float, ...]  # T: attention x N
    evidence: tuple[float, ...]  # P: differences of logits


def top_tiles(slide: Slide, prediction: SlidePrediction, n: int = 16) -> list[TopTile]:
    """Read the first n selected tiles, best first, at the size and resolution the encoder saw.

    Args:
        slide: the open slide the prediction was made from.
        prediction: what the pass found.
        n: how many at most.
    """
    return _read(slide, prediction, range(min(n, len(prediction.selected))))


def tiles_against(slide: Slide, prediction: SlidePrediction, task: int = 0, n: int = 8) -> list[TopTile]:
    """Read the selected tiles that speak most against the call, strongest first; none where all speak for it.

    Args:
        slide: the open slide the prediction was made from.
        prediction: what the pass found.
        task: whose call, index into `prediction.tasks`.
        n: how many at most.
    """
    p = prediction
    evidence = split_outputs(p.evidence, p.tasks)[task]
    towards = evidence_towards(evidence, p.tasks[task], split_outputs(p.outputs, p.tasks)[task])
    places = np.argsort(towards, kind="stable")[:n]
    return _read(slide, p, places[towards[places] < 0].tolist())


def _read(slide: Slide, p: SlidePrediction, places: Iterable[int]) -> list[TopTile]:
    """Read tiles by their places among the selected."""
    attention = times_uniform(p.attention)  # (N, T)
    tiles = []
    for place in places:
        row = int(p.selected[place])
        x0, y0 = (int(v) for v in p.coords[row])
        try:
            png = png_bytes(read_square(slide, x0, y0, p.extent0, p.tile.size_px), about=provenance_text(p))
        except TileReadError:
            png = None  # shown as unreadable; never replaced by other pixels
        evidence = tuple(float(v) for v in p.evidence[place])
        tiles.append(TopTile(row, place + 1, x0, y0, png, tuple(float(v) for v in attention[row]), evidence))
    return tiles


def top_tiles_strip_png(
    prediction: SlidePrediction, tiles: Sequence[TopTile], task: int = 0, *, columns: int = 8, tile_px: int = 208
) -> bytes:
    """Draw the top tiles in one picture, each with rank, attention and signed evidence.

    Args:
        prediction: what the pass found.
        tiles: from `top_tiles`.
        task: whose attention and evidence, index into `prediction.tasks`.
        columns: tiles in a row.
        tile_px: side of a tile in the picture, px.
    """
    evidence, towards = evidence_for_call(prediction, task)
    gap, caption, head, foot = 12, 52, 104, 48
    n_rows = max(1, -(-len(tiles) // columns))
    width = columns * tile_px + (columns - 1) * gap + 48
    paper = Paper(width, head + n_rows * (tile_px + caption + gap) + foot)
    paper.write(24, 28, prediction.slide_id, 23, bold=True, fit_px=width - 48)
    paper.write(24, 56, call_text(prediction, task), 18, fit_px=width - 48)
    side_um = prediction.tile.size_px * prediction.tile.mpp
    what = f"tiles of {side_um:.4g} µm, best first; attention × N (1 = uniform); evidence is towards {towards}"
    paper.write(24, 81, what, 15, colour=GREY, fit_px=width - 48)
    for i, tile in enumerate(tiles):
        x, y = 24 + i % columns * (tile_px + gap), head + i // columns * (tile_px + caption + gap)
        paper.lay(x, y, _thumb(tile.png, tile_px))
        paper.write(x, y + tile_px + 15, f"{tile.rank}", 15, bold=True)
        paper.write(x + tile_px, y + tile_px + 15, f"{shown_number(tile.attention[task])} × uniform", 15, align="right")
        value = float(evidence[tile.rank - 1])
        colour = INK if value == 0 else _FOR if value > 0 else _AGAINST
        paper.write(x + tile_px, y + tile_px + 36, f"evidence {value:+.3g}", 15, align="right", colour=colour)
    paper.write(24, paper.height - 22, f"{RESEARCH_USE}   model {prediction.model_hash[:12]}", 14, colour=GREY)
    return png_bytes(paper.pixels(), about=provenance_text(prediction))


def _thumb(png: bytes | None, side_px: int) -> np.ndarray:
    if png is None:
        grey = np.full((side_px, side_px, 3), _UNREADABLE, np.uint8)
        cv2.line(grey, (0, 0), (side_px, side_px), (96, 96, 104), 2, cv2.LINE_AA)
        return grey
    decoded = np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR))
    pixels = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    method = cv2.INTER_AREA if pixels.shape[0] > side_px else cv2.INTER_CUBIC
    return cv2.resize(pixels, (side_px, side_px), interpolation=method)

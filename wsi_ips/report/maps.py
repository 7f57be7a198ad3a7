"""The maps of a slide: numbers of tiles, what they are called, and the colours they are drawn in; all from the ledger.

attention    softmax over all N tiles, mean over heads, of one task
head_<h>     the same of one head, counted from 1
evidence     signed: how much the logit falls when the tile is left out of the selection; the other tiles are "not used"
evidence_bag signed: how much the logit of the whole bag falls when the tile is left out of it (`--evidence bag`)
selected     which tiles the label was read from, and in which order they were chosen

Every output format draws from a `TileMap`, so a name means one thing everywhere. Frames: level-0 px (suffix `0`), px of
a raster. Shapes: N tiles, n tiles with a value, T tasks, H heads, P_t outputs of a task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from wsi_ips.errors import ConfigError
from wsi_ips.geometry import Box0
from wsi_ips.report.heatmap import (
    Colouring,
    Scale,
    TileLayout,
    attention_colouring,
    evidence_colouring,
    scale_values,
    times_uniform,
)
from wsi_ips.report.readout import evidence_for_call, outputs_said, shown_number
from wsi_ips.results import SlidePrediction
from wsi_ips.slidefiles import part_names
from wsi_ips.tasks import split_outputs

__all__ = ["NOT_USED_RGBA", "MapFrame", "MapInfo", "TileMap", "find_map", "list_maps", "map_raster", "map_rgba", "tile_map"]

Kind = Literal["attention", "evidence", "evidence_bag", "head", "selected"]
NOT_USED_RGBA = (0.62, 0.63, 0.66, 0.45)  # straight alpha; a grey that neither end of the evidence scale has
_SELECTED = Colouring("tiles the label was read from, by rank  (100 = chosen first)", 0.0, 100.0, (0.0, 50.0, 100.0),
                      opacity_low=0.55, opacity_high=0.85)  # fmt: skip


class MapInfo(NamedTuple):
    """Which map."""

    name: str  # part of file names and links: "attention", "grade.evidence.high", "head_2"
    title: str  # "attention", "evidence towards tumor"
    kind: Kind
    task: int = 0
    part: int = -1  # head, or output of the task whose evidence it is; -1: the call's


@dataclass(frozen=True)
class TileMap:
    """A map, ready to be laid out in any frame."""

    info: MapInfo
    rows: np.ndarray  # (n,) int64, rows of the tiles with a value
    values: np.ndarray  # (n,) float64, as the ledger has them
    shown: np.ndarray  # (n,) float64, on the scale that colours are chosen by
    colouring: Colouring
    detail: str  # one line for a picture's head
    places: np.ndarray | None = None  # (n, 2) corners, level-0 px, of tiles that are not the run's own

    @property
    def has_unused(self) -> bool:
        """Whether tiles without a value are drawn grey, "not used"."""
        return self.info.kind in ("evidence", "selected")


def list_maps(prediction: SlidePrediction) -> tuple[MapInfo, ...]:
    """Name the maps of a slide, in the order in which a switch offers them."""
    p, found = prediction, []
    names = part_names([task.name for task in p.tasks])
    for t, task in enumerate(p.tasks):
        prefix = f"{names[t]}." if len(p.tasks) > 1 else ""
        of = f" for {task.name}" if len(p.tasks) > 1 else ""
        found.append(MapInfo(f"{prefix}attention", f"attention{of}", "attention", t))
        kinds: list[tuple[Kind, str]] = [("evidence", "evidence")]
        if p.bag_evidence is not None:
            kinds.append(("evidence_bag", "evidence in the whole bag"))
        for kind, title in kinds:
            found.append(MapInfo(f"{prefix}{kind}", f"{title} towards {evidence_for_call(p, t)[1]}", kind, t))
            if task.n_outputs > 1:
                said = outputs_said(task)
                found += [
                    MapInfo(f"{prefix}{kind}.{name}", f"{title} towards {towards}", kind, t, k)
                    for k, (name, towards) in enumerate(zip(part_names(said), said, strict=True))
                ]
        n_heads = p.logits.shape[2]
        if n_heads > 1:
            found += [MapInfo(f"{prefix}head_{h + 1}", f"attention{of}, head {h + 1} of {n_heads}", "head", t, h)
                      for h in range(n_heads)]  # fmt: skip
    return (*found, MapInfo("selected", "tiles used for the label", "selected"))


def find_map(prediction: SlidePrediction, name: str) -> MapInfo:
    """Find a map by its name.

    Raises:
        ConfigError: the slide has no such map; those it has are named.
    """
    maps = {info.name: info for info in list_maps(prediction)}
    if name not in maps:
        raise ConfigError(f"{prediction.slide_id}: no map {name!r}; there are {', '.join(maps)}")
    return maps[name]


def tile_map(prediction: SlidePrediction, info: MapInfo, scale: Scale = "uniform") -> TileMap:
    """Take a map out of a prediction.

    Args:
        prediction: what the pass found.
        info: from `list_maps`.
        scale: of attention: "uniform" shows attention x N on a logarithmic scale that is the same for all slides;
            "percentile" shows ranks within the slide.

    Raises:
        ConfigError: an unknown scale.
    """
    if scale not in get_args(Scale):
        raise ConfigError(f"scale {scale!r}: expected {' or '.join(get_args(Scale))}")
    if info.kind in ("attention", "head"):
        return _attention(prediction, info, scale)
    if info.kind == "selected":
        m = len(prediction.selected)
        rank = np.arange(1, m + 1, dtype=np.float64)
        shown = 100.0 * (1.0 - (rank - 1.0) / max(1, m - 1))
        return TileMap(info, prediction.selected, rank, shown, _SELECTED, "grey tiles were not used for the label")
    return _evidence(prediction, info)


def _attention(p: SlidePrediction, info: MapInfo, scale: Scale) -> TileMap:
    if info.kind == "head":
        logits = p.logits[:, info.task, info.part].astype(np.float64)
        weights = np.exp(logits - logits.max())
        values = weights / weights.sum()
    else:
        values = p.attention[:, info.task].astype(np.float64)
    colouring = attention_colouring(scale)
    detail = f"{info.title}; highest {shown_number(float(times_uniform(values).max()))} × uniform"
    return TileMap(info, np.arange(p.n_tiles), values, scale_values(values, scale), colouring, detail)


def _evidence(p: SlidePrediction, info: MapInfo) -> TileMap:
    table, rows, more = p.bag_evidence, np.arange(p.n_tiles), "; over all tiles, which the label is not read from"
    if info.kind == "evidence":
        table, rows, more = p.evidence, p.selected, "; grey tiles were not used for the label"
    if table is None:
        raise ConfigError(f"{p.slide_id}: its ledger holds no evidence of the whole bag; classify with --evidence bag")
    if info.part < 0:
        values, towards = evidence_for_call(p, info.task, table)
    else:
        values = split_outputs(table, p.tasks)[info.task][:, info.part].astype(np.float64)
        towards = outputs_said(p.tasks[info.task])[info.part]
    return TileMap(info, rows, values, values, evidence_colouring(values, towards), info.title + more)


class MapFrame:
    """A part of a slide in px of some size: draws any map of the slide there, and lays its tiles out once for all maps.

    Args:
        prediction: whose tiles.
        box: the part of the slide that is drawn; its corner is the raster's.
        downsample: level-0 px per px of the raster.
    """

    def __init__(self, prediction: SlidePrediction, box: Box0, downsample: float) -> None:
        self._p, self._box, self._downsample = prediction, box, downsample
        self._known: list[tuple[np.ndarray, np.ndarray, TileLayout]] = []  # tiles, which of them are near, their layout

    def raster(self, tiles: TileMap) -> np.ndarray:
        """Lay what is shown out: (h, w) float32, NaN where no tile has a value; see `TileLayout`."""
        if tiles.places is not None:
            near, layout = self._lay_out(tiles.places)
        else:
            near, layout = self._layout(tiles.rows)
        return layout.fill(tiles.shown[near])

    def rgba(self, tiles: TileMap) -> np.ndarray:
        """Draw a map: (h, w, 4) float32 in 0..1, straight alpha; tiles that were not used are grey."""
        raster = self.raster(tiles)
        return self._with_unused(tiles, raster, tiles.colouring.rgba(raster), NOT_USED_RGBA)

    def rgba8(self, tiles: TileMap) -> np.ndarray:
        """Draw the same as (h, w, 4) uint8."""
        raster = self.raster(tiles)
        grey = np.rint(255.0 * np.array(NOT_USED_RGBA, np.float32)).astype(np.uint8)
        return self._with_unused(tiles, raster, tiles.colouring.rgba8(raster), grey)

    def _with_unused(
        self, tiles: TileMap, raster: np.ndarray, colours: np.ndarray, grey: np.ndarray | tuple[float, ...]
    ) -> np.ndarray:
        if tiles.has_unused:
            _, everywhere = self._layout(np.arange(self._p.n_tiles))
            colours[np.isnan(raster) & everywhere.drawn] = grey
        return colours

    def _layout(self, rows: np.ndarray) -> tuple[np.ndarray, TileLayout]:
        for known, near, layout in self._known:
            if np.array_equal(known, rows):
                return near, layout
        near, layout = self._lay_out(self._p.coords[rows])
        self._known.append((rows, near, layout))
        return near, layout

    def _lay_out(self, coords: np.ndarray) -> tuple[np.ndarray, TileLayout]:
        near = _near(coords, self._p.extent0, self._box)
        return near, TileLayout(coords[near], self._p.extent0, self._box, self._downsample)


def map_raster(prediction: SlidePrediction, tiles: TileMap, box: Box0, downsample: float) -> np.ndarray:
    """Lay what one map shows out on a raster; see `MapFrame`."""
    return MapFrame(prediction, box, downsample).raster(tiles)


def map_rgba(prediction: SlidePrediction, tiles: TileMap, box: Box0, downsample: float) -> np.ndarray:
    """Draw a part of one map; see `MapFrame`."""
    return MapFrame(prediction, box, downsample).rgba(tiles)


def _near(coords: np.ndarray, extent0: tuple[float, float], box: Box0) -> np.ndarray:
    """Which tiles (n,) touch the box."""
    x0, y0 = coords[:, 0], coords[:, 1]
    return (
        (x0 < box.x0 + box.width0) & (x0 + extent0[0] > box.x0)
        & (y0 < box.y0 + box.height0) & (y0 + extent0[1] > box.y0)
    )  # fmt: skip

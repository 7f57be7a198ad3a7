"""Attention and evidence drawn over the slide: one PNG with its legend, readable without anything else.

Frames: level-0 px (suffix `0`); px of the map, whose (0, 0) begins at the corner of the slide's bounds; px of the
sheet, the whole picture. `Placed` says where the map lies on the sheet, so that a px of the PNG can be taken
to the slide.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from wsi_ips.geometry import Box0, Mpp
from wsi_ips.report.heatmap import Scale, raster_size
from wsi_ips.report.maps import NOT_USED_RGBA, TileMap, list_maps, map_raster, map_rgba, tile_map
from wsi_ips.report.picture import GREY, Paper, png_bytes, scale_bar
from wsi_ips.report.provenance import provenance_text
from wsi_ips.report.readout import RESEARCH_USE, call_text
from wsi_ips.report.thumbnail import Thumbnail, read_thumbnail
from wsi_ips.results import SlidePrediction, TissueOutline
from wsi_ips.slide.reader import Slide

__all__ = ["Ground", "Placed", "draw_contour", "draw_over", "evidence_png", "map_png", "map_sheet", "no_tissue_sheet",
           "overlay_png", "place_map", "read_ground", "smoothed", "thumbnail_jpeg"]  # fmt: skip

_HEAD_PX, _FOOT_PX = 130, 186  # of the design: title above the map, legend below
_CONTOUR_RGB = (43, 49, 66)
_FRAME_RGB = (208, 211, 217)


class Placed(NamedTuple):
    """Where everything lies on the sheet, px from its top-left corner."""

    sheet_width: int
    sheet_height: int
    map_x: int
    map_y: int
    map_width: int
    map_height: int
    downsample: float  # level-0 px per px of the map
    unit: float  # 1 px of the design, which is drawn for a sheet 1800 px wide
    bounds: Box0

    def to_level0(self, x: float, y: float) -> tuple[float, float]:
        """Take a point of the sheet to level-0 px."""
        return (
            self.bounds.x0 + (x - self.map_x) * self.downsample,
            self.bounds.y0 + (y - self.map_y) * self.downsample,
        )


def place_map(bounds: Box0, max_px: int = 1800) -> Placed:
    """Fit the bounds of a slide onto a sheet that is at most `max_px` wide and about as high.

    >>> place_map(Box0(0, 0, 40000, 10000)).map_width
    1720
    """
    unit = max_px / 1800
    margin, head, foot = round(40 * unit), round(_HEAD_PX * unit), round(_FOOT_PX * unit)
    downsample = max(bounds.width0 / (max_px - 2 * margin), bounds.height0 / (1400 * unit))
    height, width = raster_size(bounds, downsample)
    sheet_width = max(width + 2 * margin, round(1240 * unit))
    map_x = (sheet_width - width) // 2
    return Placed(sheet_width, head + height + foot, map_x, head, width, height, downsample, unit, bounds)


class Ground(NamedTuple):
    """The slide itself on its sheet, read once for all maps that are drawn over it."""

    placed: Placed
    thumbnail: Thumbnail


def read_ground(slide: Slide, bounds: Box0, max_px: int = 1800) -> Ground:
    """Read what maps are drawn over; see `map_png`."""
    placed = place_map(bounds, max_px)
    return Ground(placed, read_thumbnail(slide, placed.downsample))


def map_png(ground: Ground, prediction: SlidePrediction, tiles: TileMap, *, smooth: float = 0.0) -> bytes:
    """Draw one map over the slide, as PNG; see `map_sheet`."""
    return png_bytes(map_sheet(ground, prediction, tiles, smooth=smooth), about=provenance_text(prediction))


def map_sheet(ground: Ground, prediction: SlidePrediction, tiles: TileMap, *, smooth: float = 0.0) -> np.ndarray:
    """Draw one map over the slide with title, colour bar, scale bar and legend: (h, w, 3) uint8.

    Args:
        ground: from `read_ground` of the slide that the prediction was made from.
        prediction: what the pass found.
        tiles: the map.
        smooth: standard deviation of a Gaussian, in tile widths; 0 shows each tile as it is. Only the picture is
            smoothed, and says so; tiles that were not used are then left out.
    """
    placed, p = ground.placed, prediction
    detail = tiles.detail
    if smooth > 0:
        raster = map_raster(p, tiles, placed.bounds, placed.downsample)
        rgba = tiles.colouring.rgba(smoothed(raster, smooth * p.extent0[0] / placed.downsample))
        detail += f"; smoothed over {smooth:g} tile widths"
    else:
        rgba = map_rgba(p, tiles, placed.bounds, placed.downsample)
    picture = draw_over(ground.thumbnail.pixels, rgba)
    draw_contour(picture, p.outline, p.bounds, placed.downsample)
    paper = Paper(placed.sheet_width, placed.sheet_height)
    said = f"{p.n_tiles:,} tiles, {len(p.selected):,} used for the label"
    _head(paper, placed, p.slide_id, call_text(p, tiles.info.task), f"{said}; {detail}")
    _lay_map(paper, placed, picture)
    _draw_scale_bar(paper, placed, p.mpp)
    _draw_colour_bar(paper, placed, tiles)
    facts = f"model {p.model_hash[:12]}   tiles {p.tile.size_px} px at {p.tile.mpp:g} µm/px   "
    _foot(paper, placed, f"{facts}slide {p.mpp.x:.4g} µm/px ({p.mpp.source})", ground.thumbnail.n_failed)
    return paper.pixels()


def overlay_png(
    slide: Slide, prediction: SlidePrediction, task: int = 0, *, scale: Scale = "uniform", max_px: int = 1800
) -> bytes:
    """Draw where the model looked, over the slide, as PNG.

    Args:
        slide: the open slide the prediction was made from.
        prediction: what the pass found.
        task: whose attention, index into `prediction.tasks`.
        scale: "uniform" shows attention x N on a logarithmic scale that is the same for all slides, so that nothing
            found looks like nothing found; "percentile" shows ranks within the slide.
        max_px: width of the sheet, px.
    """
    return _picture(slide, prediction, "attention", task, scale, max_px)


def evidence_png(slide: Slide, prediction: SlidePrediction, task: int = 0, *, max_px: int = 1800) -> bytes:
    """Draw what the selected tiles spoke for; the other tiles, which the label never saw, are grey: "not used"."""
    return _picture(slide, prediction, "evidence", task, "uniform", max_px)


def _picture(slide: Slide, p: SlidePrediction, kind: str, task: int, scale: Scale, max_px: int) -> bytes:
    info = next(i for i in list_maps(p) if i.kind == kind and i.task == task)
    return map_png(read_ground(slide, p.bounds, max_px), p, tile_map(p, info, scale))


def smoothed(raster: np.ndarray, sigma_px: float) -> np.ndarray:
    """Blur a raster (h, w) within what is drawn: NaN stays NaN and lends no weight."""
    known = np.isfinite(raster).astype(np.float32)
    total = cv2.GaussianBlur(np.where(known > 0, raster, 0.0).astype(np.float32), (0, 0), sigma_px)
    weight = cv2.GaussianBlur(known, (0, 0), sigma_px)
    return np.where(known > 0, total / np.maximum(weight, 1e-6), np.nan)


def no_tissue_sheet(slide: Slide, slide_id: str, message: str = "no tissue found", *, max_px: int = 1800) -> np.ndarray:
    """Draw a slide on which nothing was looked at, and say so: (h, w, 3) uint8."""
    placed = place_map(slide.bounds, max_px)
    thumbnail = read_thumbnail(slide, placed.downsample)
    paper = Paper(placed.sheet_width, placed.sheet_height)
    _head(paper, placed, slide_id, message, "nothing was looked at, so there is no label and no attention")
    _lay_map(paper, placed, thumbnail.pixels)
    _draw_scale_bar(paper, placed, slide.mpp)
    _foot(paper, placed, f"{slide.mpp.x:.4g} µm/px ({slide.mpp.source})", thumbnail.n_failed)
    return paper.pixels()


def thumbnail_jpeg(sheet: np.ndarray, width_px: int = 224, height_px: int = 160) -> bytes:
    """Cut the map out of a sheet (h, w, 3) uint8 drawn here at the default size, and make it small, for tables: a few kB."""
    middle = sheet[_HEAD_PX : max(_HEAD_PX + 1, sheet.shape[0] - _FOOT_PX)]
    shrink = min(width_px / middle.shape[1], height_px / middle.shape[0], 1.0)
    size = (max(1, round(middle.shape[1] * shrink)), max(1, round(middle.shape[0] * shrink)))
    small = cv2.cvtColor(cv2.resize(middle, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def draw_over(pixels: np.ndarray, rgba: np.ndarray) -> np.ndarray:
    """Put straight-alpha RGBA (h, w, 4) in 0..1 over (h, w, 3) uint8.

    Source: Porter and Duff, SIGGRAPH 1984, "over" with an opaque ground.
    """
    alpha = rgba[..., 3:]
    mixed = pixels * (1.0 - alpha)
    over = 255.0 * rgba[..., :3]
    over *= alpha
    mixed += over
    return np.rint(mixed, out=mixed).astype(np.uint8)


def draw_contour(picture: np.ndarray, outline: TissueOutline, bounds: Box0, downsample: float) -> None:
    """Draw the edge of the tissue mask onto the map (h, w, 3) uint8, in place."""
    if not outline.mask.any():
        return
    height, width = picture.shape[:2]
    step_x, step_y = downsample / outline.downsample_x, downsample / outline.downsample_y  # mask px per map px
    blur = max(0.6, max(step_x, step_y) / 2)  # a fine mask is averaged before it is sampled; a coarse one is rounded
    mask = cv2.GaussianBlur(np.pad(outline.mask, 2).astype(np.float32), (0, 0), blur)
    shift_x = (bounds.x0 - outline.x0) / outline.downsample_x + 0.5 * step_x - 0.5 + 2
    shift_y = (bounds.y0 - outline.y0) / outline.downsample_y + 0.5 * step_y - 0.5 + 2
    transform = np.array([[step_x, 0.0, shift_x], [0.0, step_y, shift_y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    inside = (cv2.warpAffine(mask, transform, (width, height), flags=flags) >= 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, _CONTOUR_RGB, max(1, round(width / 1200)), cv2.LINE_AA)


def _lay_map(paper: Paper, placed: Placed, picture: np.ndarray) -> None:
    paper.fill(placed.map_x - 1, placed.map_y - 1, placed.map_width + 2, placed.map_height + 2, _FRAME_RGB)
    paper.lay(placed.map_x, placed.map_y, picture)


def _head(paper: Paper, placed: Placed, title: str, call: str, detail: str) -> None:
    u = placed.unit
    room = paper.width - 80 * u
    paper.write(40 * u, 34 * u, title, 27 * u, bold=True, fit_px=room)
    paper.write(40 * u, 70 * u, call, 21 * u, fit_px=room)
    paper.write(40 * u, 101 * u, detail, 18 * u, colour=GREY, fit_px=room)


def _foot(paper: Paper, placed: Placed, facts: str, n_failed: int) -> None:
    u = placed.unit
    room = paper.width - 80 * u
    if n_failed:
        facts = f"{n_failed} regions of this picture could not be read (grey)   {facts}"
    paper.write(40 * u, paper.height - 52 * u, RESEARCH_USE, 17 * u, bold=True, fit_px=room)
    paper.write(40 * u, paper.height - 25 * u, facts, 16 * u, colour=GREY, fit_px=room)


def _draw_scale_bar(paper: Paper, placed: Placed, mpp: Mpp) -> None:
    u = placed.unit
    bar = scale_bar(mpp.x * placed.downsample, min(placed.map_width, 360 * u))
    y = placed.map_y + placed.map_height + 52 * u
    paper.fill(40 * u, y, bar.length_px, 5 * u, _CONTOUR_RGB)
    for x in (40 * u, 40 * u + bar.length_px - 2 * u):
        paper.fill(x, y - 6 * u, 2 * u, 17 * u, _CONTOUR_RGB)
    paper.write(40 * u, y - 24 * u, bar.text, 18 * u)


def _draw_colour_bar(paper: Paper, placed: Placed, tiles: TileMap) -> None:
    """Draw the colours as they look on white; ends that are clipped are labelled with ≤ and ≥."""
    u, colouring = placed.unit, tiles.colouring
    width, height = round(560 * u), round(22 * u)
    x, y = paper.width - round(70 * u) - width, placed.map_y + placed.map_height + round(42 * u)
    t = (np.arange(width) + 0.5) / width
    low, high = colouring.low, colouring.high
    values = low * (high / low) ** t if colouring.is_log else low + (high - low) * t
    strip = draw_over(np.full((1, width, 3), 255, np.uint8), colouring.rgba(values)[None])
    paper.fill(x - 1, y - 1, width + 2, height + 2, _FRAME_RGB)
    paper.lay(x, y, np.repeat(strip, height, axis=0))
    paper.write(x + width, y - 18 * u, colouring.label, 18 * u, align="right")
    if tiles.has_unused:
        shape = (height, 2 * height)
        swatch = draw_over(np.full((*shape, 3), 255, np.uint8), np.full((*shape, 4), NOT_USED_RGBA))
        paper.lay(x - 4 * height, y, swatch)
        paper.write(x - 3 * height, y + height + 20 * u, "not used", 16 * u, align="center", colour=GREY)
    for tick, place in zip(colouring.ticks, colouring.position(np.array(colouring.ticks)), strict=True):
        at = x + place * width
        paper.fill(at - u, y + height, 2 * u, 6 * u, _CONTOUR_RGB)
        paper.write(at, y + height + 20 * u, colouring.tick_text(tick), 16 * u, align="center", colour=GREY)

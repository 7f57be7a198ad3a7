"""Pictures of finer maps: attention refined in the top regions, and what inside a top tile the evidence comes from.

Shapes: F fine tiles, k tiles looked into, T tasks, S tile side.
"""

from __future__ import annotations

import cv2
import numpy as np

from wsi_ips.refined import Refined, TileCams
from wsi_ips.report.heatmap import Colouring, attention_colouring, next_round
from wsi_ips.report.maps import MapInfo, TileMap
from wsi_ips.report.overlay import draw_over, map_png, read_ground
from wsi_ips.report.picture import GREY, Paper, png_bytes
from wsi_ips.report.provenance import provenance_text
from wsi_ips.report.readout import RESEARCH_USE, call_text, shown_number
from wsi_ips.report.thumbnail import read_square
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.reader import Slide
from wsi_ips.slidefiles import part_names

__all__ = ["cam_caption", "cam_colouring", "fine_map", "is_refined_file", "refined_files"]

_LEAST = 1e-9  # of a scale's end: a map of zeros still has one
_FAINT = 0.05  # of the logit: what no tile reaches is told, for then the colours are of next to nothing


def refined_files(slide: Slide, prediction: SlidePrediction, refined: Refined) -> dict[str, bytes]:
    """Draw the finer maps of a slide.

    Args:
        slide: open.
        prediction: from its ledger.
        refined: what `refine_slide` found.

    Returns:
        Content by file name, relative to the slide's folder: `<id>.attention.fine.png` (further tasks:
        `<id>.attention.fine.<task>.png`), `<id>.top_tiles/NN_rowR.cam.png` a tile and task, and all of these with
        their legend in `<id>.top_tiles.cam.png`.
    """
    p, files = prediction, {}
    ground = read_ground(slide, p.bounds)
    for t, task in enumerate(part_names([task.name for task in p.tasks])):
        part = f".{task}" if t else ""
        files[f"{p.slide_id}.attention.fine{part}.png"] = map_png(ground, p, fine_map(p, refined, t))
        if refined.cams is None:
            continue
        pixels = [read_square(slide, int(x0), int(y0), p.extent0, p.tile.size_px) for x0, y0 in p.coords[refined.cams.rows]]
        colouring = cam_colouring(refined.cams, t)
        drawn = [draw_over(px, colouring.rgba(m)) for px, m in zip(pixels, refined.cams.maps[:, t], strict=True)]
        for rank, (row, picture) in enumerate(zip(refined.cams.rows.tolist(), drawn, strict=True), 1):
            files[f"{p.slide_id}.top_tiles/{rank:02d}_row{row}.cam{part}.png"] = png_bytes(picture, about=provenance_text(p))
        files[f"{p.slide_id}.top_tiles.cam{part}.png"] = _strip_png(p, refined.cams, t, pixels, drawn)
    return files


def is_refined_file(slide_id: str, name: str) -> bool:
    """Tell whether an output of a slide is one of these.

    >>> is_refined_file("a", "a.top_tiles/01_row3.cam.png"), is_refined_file("a", "a.top_tiles/01_row3.png")
    (True, False)
    """
    own = name.removeprefix(slide_id)
    if own.startswith(".top_tiles/"):
        return ".cam." in own
    return own == ".fine.h5" or own.startswith((".attention.fine.", ".top_tiles.cam."))


def fine_map(prediction: SlidePrediction, refined: Refined, task: int = 0) -> TileMap:
    """Lay fine attention where there is some, and the run's own everywhere else; both x N of the run."""
    p = prediction
    rest = np.setdiff1d(np.arange(p.n_tiles), refined.run_row)
    values = np.concatenate([refined.attention[:, task], p.attention[rest, task]]).astype(np.float64)
    places = np.concatenate([refined.coords, p.coords[rest]])
    prefix = f"{part_names([t.name for t in p.tasks])[task]}." if len(p.tasks) > 1 else ""
    of = f" for {p.tasks[task].name}" if len(p.tasks) > 1 else ""
    title = f"attention{of}, refined (stride {refined.stride:g}) in the top regions"
    shown = values * p.n_tiles
    n_new = int(np.count_nonzero(refined.run_row < 0))
    detail = f"{title}, {n_new:,} tiles more; highest {shown_number(float(shown.max()))} × uniform"
    info = MapInfo(f"{prefix}attention.fine", title, "attention", task)
    return TileMap(info, np.arange(len(values)), values, shown, attention_colouring("uniform"), detail, places)


def cam_colouring(cams: TileCams, task: int = 0) -> Colouring:
    """Choose colours for the maps within tiles: symmetric about 0, one scale for all tiles of a slide."""
    limit = next_round(max(float(np.abs(cams.maps[:, task]).max(initial=0.0)), _LEAST))
    return Colouring(f"towards {cams.towards[task]}  (gradient × activation, logit)", -limit, limit, (-limit, 0.0, limit),
                     colormap="PuOr_r", opacity_high=0.75, opacity_power=0.6, is_signed=True)  # fmt: skip


def cam_caption(cams: TileCams, task: int = 0) -> str:
    """Say how to read a map within a tile."""
    h, w = cams.cells
    limit = f"{cam_colouring(cams, task).high:g}"
    return (
        f"Orange speaks for {cams.towards[task]}, purple against it, to first order; full colour is ±{limit} of the logit if the "
        f"whole tile were so. Interpolated from {h} × {w} cells of the encoder's last feature map: places within a tile, not outlines."
        f"{_faint(cams, task)}"
    )


def _faint(cams: TileCams, task: int) -> str:
    """Warn of maps that the label hardly hangs on: the sign of a vanishing gradient tells little."""
    if float(np.abs(cams.maps[:, task]).max(initial=0.0)) >= _FAINT:
        return ""
    return " The label hardly hangs on any one of these tiles, so their colours say little."


def _strip_png(p: SlidePrediction, cams: TileCams, task: int, pixels: list[np.ndarray], drawn: list[np.ndarray]) -> bytes:
    """Draw each tile above its map, with a colour bar."""
    side, gap, head, foot, columns = 160, 10, 118, 46, 8
    n_rows = max(1, -(-len(drawn) // columns))
    block = 2 * side + 34
    width = columns * (side + gap) - gap + 48
    paper = Paper(width, head + n_rows * (block + gap) + foot)
    paper.write(24, 28, p.slide_id, 23, bold=True, fit_px=width - 48)
    paper.write(24, 56, call_text(p, task), 18, fit_px=width - 48)
    h, w = cams.cells
    what = "top tiles, best first, and where in them the evidence comes from"
    paper.write(24, 81, what, 15, colour=GREY, fit_px=width - 420)
    how_fine = f"interpolated from {h} × {w} cells of the encoder: places, not outlines."
    paper.write(24, 101, how_fine + _faint(cams, task), 15, colour=GREY, fit_px=width - 48)
    _colour_bar(paper, cam_colouring(cams, task), width - 24 - 340, 42, 340)
    for i, (plain, map_) in enumerate(zip(pixels, drawn, strict=True)):
        x, y = 24 + i % columns * (side + gap), head + i // columns * (block + gap)
        for picture, top in ((plain, y), (map_, y + side + 4)):
            how = cv2.INTER_AREA if picture.shape[0] > side else cv2.INTER_CUBIC
            paper.lay(x, top, cv2.resize(picture, (side, side), interpolation=how))
        paper.write(x, y + 2 * side + 20, f"{i + 1}", 15, bold=True)
    paper.write(24, paper.height - 22, f"{RESEARCH_USE}   model {p.model_hash[:12]}", 14, colour=GREY)
    return png_bytes(paper.pixels(), about=provenance_text(p))


def _colour_bar(paper: Paper, colouring: Colouring, x: int, y: int, width: int) -> None:
    values = np.linspace(colouring.low, colouring.high, width)
    strip = draw_over(np.full((1, width, 3), 255, np.uint8), colouring.rgba(values)[None])
    paper.lay(x, y, np.repeat(strip, 14, axis=0))
    paper.write(x + width, y - 14, colouring.label, 15, align="right")
    for tick, place in zip(colouring.ticks, (0.0, 0.5, 1.0), strict=True):
        align = ("left", "center", "right")[round(2 * place)]
        paper.write(x + place * width, y + 26, colouring.tick_text(tick), 14, align=align, colour=GREY)  # type: ignore[arg-type]

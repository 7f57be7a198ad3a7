"""The slide with its maps one above the other in a page: a switch, an opacity, a legend for each map.

The slide is one JPEG, each map one transparent PNG of the same px, so a page with ten maps weighs little more than one
picture. Without scripts the first map shows; what is shown is what is printed.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from wsi_ips.report.heatmap import Colouring, Scale
from wsi_ips.report.maps import NOT_USED_RGBA, MapFrame, TileMap, list_maps, tile_map
from wsi_ips.report.markup import escape, link
from wsi_ips.report.overlay import Ground, draw_contour, draw_over
from wsi_ips.report.picture import png_bytes, scale_bar
from wsi_ips.report.provenance import provenance_text
from wsi_ips.results import SlidePrediction

__all__ = ["Layers", "draw_layers", "legend_html", "rgba_png", "switch_html"]

_STOPS = 24  # of a legend's gradient
_PX_A_TILE = 12
_ROWS_A_TILE = 4  # from here on most rows equal the one above


class Layers(NamedTuple):
    """Files of a page, and what they show."""

    files: dict[str, bytes]  # by name relative to the slide's folder
    ground: str  # name of the slide's picture
    maps: tuple[tuple[TileMap, str], ...]  # each with the name of its picture
    um_per_px: float  # of the slide's picture
    size: tuple[int, int]  # of the slide's picture, px
    step: int  # px of the slide's picture per px of a map's


def draw_layers(ground: Ground, p: SlidePrediction, scale: Scale = "uniform") -> Layers:
    """Draw the slide, and every map of it in px as coarse as its tiles allow; `switch_html` lays them over each other."""
    placed = ground.placed
    step = _step(min(p.extent0) / placed.downsample)
    picture = np.array(ground.thumbnail.pixels, order="C")
    draw_contour(picture, p.outline, p.bounds, placed.downsample)
    name = f"{p.slide_id}.layers/slide.jpg"
    files = {name: _jpeg(picture)}
    about = provenance_text(p)
    maps, frame = [], MapFrame(p, placed.bounds, placed.downsample * step)
    spans_rows = min(p.extent0) / (placed.downsample * step) >= _ROWS_A_TILE
    for info in list_maps(p):
        tiles = tile_map(p, info, scale)
        file = f"{p.slide_id}.layers/{info.name}.png"
        files[file] = rgba_png(frame.rgba8(tiles), as_differences=spans_rows or tiles.has_unused, about=about)
        maps.append((tiles, file))
    return Layers(files, name, tuple(maps), p.mpp.x * placed.downsample, (placed.map_width, placed.map_height), step)


def _step(tile_px: float) -> int:
    """Choose px of the slide's picture per px of a map's; a tile of `tile_px` keeps twelve or more across.

    >>> [_step(px) for px in (8.0, 30.0, 110.0)]
    [1, 2, 8]
    """
    return next((step for step in (8, 4, 2) if tile_px / step >= _PX_A_TILE), 1)


def _jpeg(pixels: np.ndarray) -> bytes:
    flags = [cv2.IMWRITE_JPEG_QUALITY, 88, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)[1].tobytes()


def rgba_png(rgba: np.ndarray, *, as_differences: bool = True, about: str = "") -> bytes:
    """Encode (h, w, 4) uint8, straight alpha, as PNG; px without colour become transparent black, in place."""
    whole = rgba.view(np.uint32)[..., 0]
    whole *= rgba[..., 3] != 0
    return png_bytes(rgba, 4, as_differences=as_differences, about=about)


def switch_html(p: SlidePrediction, layers: Layers) -> str:
    """Build the part of a page that shows the slide with one map at a time; `slide.js` makes it switch."""
    radios, pictures, legends = [], [], []
    # the last px of a map may reach beyond the slide's picture, which cuts it off
    spans = (layers.step * -(-side // layers.step) / side for side in layers.size)
    place = "width:{:.4f}%;height:{:.4f}%".format(*(100 * span for span in spans))
    for i, (tiles, file) in enumerate(layers.maps):
        name, is_first = escape(tiles.info.name), i == 0
        radios.append(
            f'<label><input type="radio" name="map" value="{name}"{" checked" if is_first else ""}> '
            f"{escape(tiles.info.title)}</label>"
        )
        alt = escape(f"{tiles.info.title} over slide {p.slide_id}")
        hidden = "" if is_first else " hidden"
        pictures.append(f'<img class="layer" data-map="{name}" style="{place}" src="{escape(link(file))}" alt="{alt}"{hidden}>')
        legends.append(f'<div class="legend" data-map="{name}"{hidden}>{legend_html(tiles)}</div>')
    ground = f'<img src="{escape(link(layers.ground))}" alt="{escape(f"slide {p.slide_id}, tissue outlined")}">'
    scale = scale_bar(layers.um_per_px, layers.size[0] / 4)
    bar = f'<span class="scalebar" style="width:{100 * scale.length_px / layers.size[0]:.3f}%">{escape(scale.text)}</span>'
    return (
        '<div class="mapview" id="mapview"><fieldset class="switch"><legend>Map</legend>'
        f'{"".join(radios)}<label><input type="radio" name="map" value=""> none</label></fieldset>'
        '<label class="opacity">Opacity <input type="range" id="opacity" min="0" max="100" value="100"></label>'
        f'<figure class="stack">{ground}{"".join(pictures)}{bar}</figure>{"".join(legends)}</div>'
    )


def legend_html(tiles: TileMap) -> str:
    """Show a map's colours as they look on white, with ticks and the name of what is shown."""
    c = tiles.colouring
    t = np.linspace(0.0, 1.0, _STOPS)
    values = c.low * (c.high / c.low) ** t if c.is_log else c.low + (c.high - c.low) * t
    stops = ", ".join(_css(rgb) for rgb in _on_white(c.rgba(values)))
    ticks = "".join(_tick(c, tick) for tick in c.ticks)
    unused = ""
    if tiles.has_unused:
        grey = _css(_on_white(np.array([NOT_USED_RGBA]))[0])
        unused = f'<span class="swatch" style="background:{grey}"></span> not used &nbsp;'
    return (
        f'<span class="legendname">{unused}{escape(c.label)}</span>'
        f'<span class="colours" style="background:linear-gradient(to right, {stops})"></span>'
        f'<span class="ticks">{ticks}</span><span class="quiet small">{escape(tiles.detail)}</span>'
    )


def _tick(c: Colouring, tick: float) -> str:
    return f'<span style="left:{100 * float(c.position(np.array(tick))):.2f}%">{escape(c.tick_text(tick))}</span>'


def _on_white(rgba: np.ndarray) -> np.ndarray:
    return draw_over(np.full((1, len(rgba), 3), 255, np.uint8), rgba[None])[0]


def _css(rgb: np.ndarray) -> str:
    return "#" + "".join(f"{int(v):02x}" for v in rgb)

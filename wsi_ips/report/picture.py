"""Paper for pictures: text, bars and a PNG, without plotting state and with the same bytes every time.

A `Paper` is white and measured in px from the top-left corner. Pictures are laid on it px for px, nothing is resampled;
text is set by matplotlib's Agg renderer with the font that comes with matplotlib.
"""

from __future__ import annotations

import math
import struct
import unicodedata
import zlib
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

__all__ = ["GREY", "INK", "Paper", "ScaleBar", "png_bytes", "printable", "scale_bar"]

INK = "#1f2430"
GREY = "#5c6370"
_FONT = "DejaVu Sans"
_DPI = 100.0


class ScaleBar(NamedTuple):
    """A bar of round length."""

    length_px: float
    text: str  # "2 mm", "500 µm"


def scale_bar(um_per_px: float, longest_px: float) -> ScaleBar:
    """Choose the longest bar of 1, 2 or 5 times a power of ten that fits.

    >>> scale_bar(0.5, 450)
    ScaleBar(length_px=400.0, text='200 µm')
    >>> scale_bar(10.0, 250).text
    '2 mm'
    """
    longest_um = um_per_px * longest_px
    power = 10.0 ** math.floor(math.log10(longest_um))
    length_um = max(s * power for s in (1.0, 2.0, 5.0) if s * power <= longest_um * (1 + 1e-9) or s == 1.0)
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    return ScaleBar(length_um / um_per_px, text)


@lru_cache(maxsize=2)
def _known_glyphs(weight: str) -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=_FONT, weight=weight))).get_charmap())


def printable(text: str, weight: str = "normal") -> str:
    """Make any text settable in one line: control characters become spaces, glyphs the font lacks a box."""
    spaced = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    known = _known_glyphs(weight)
    return "".join(c if ord(c) in known else "\N{WHITE SQUARE}" for c in spaced)


class Paper:
    """A white sheet of (height, width) px to lay pictures and text on.

    Args:
        width, height: px.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)
        self._pictures: list[tuple[int, int, np.ndarray]] = []

    def lay(self, x: int, y: int, picture: np.ndarray) -> None:
        """Lay a picture (h, w, 3) uint8 with its top-left corner at (x, y)."""
        self._pictures.append((x, y, picture))

    def fill(self, x: float, y: float, width: float, height: float, rgb: tuple[int, int, int]) -> None:
        """Lay a rectangle of one colour; at least one px each way."""
        shape = (max(1, round(height)), max(1, round(width)), 3)
        self.lay(round(x), round(y), np.broadcast_to(np.array(rgb, dtype=np.uint8), shape))

    def write(
        self, x: float, y: float, text: str, size_px: float, *,
        align: Literal["left", "center", "right"] = "left", bold: bool = False, colour: str = INK,
        fit_px: float | None = None,
    ) -> None:  # fmt: skip
        """Write one line whose middle is at height y; cut with an ellipsis where it is longer than `fit_px`."""
        weight = "bold" if bold else "normal"
        shown = printable(text, weight)
        artist = self._figure.text(
            x, self.height - y, shown, transform=None, ha=align, va="center_baseline", color=colour,
            fontfamily=_FONT, fontsize=size_px * 72.0 / _DPI, fontweight=weight, parse_math=False,
        )  # fmt: skip
        if fit_px is None:
            return
        while len(shown) > 1 and artist.get_window_extent(self._canvas.get_renderer()).width > fit_px:
            shown = shown[: max(1, int(len(shown) * 0.94) - 1)].rstrip()
            artist.set_text(shown + "…")

    def pixels(self) -> np.ndarray:
        """Render to (height, width, 3) uint8."""
        self._canvas.draw()
        sheet = np.array(self._canvas.buffer_rgba())[..., :3]
        for x, y, picture in self._pictures:
            sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        return sheet


def png_bytes(pixels: np.ndarray, level: int = 1, *, as_differences: bool = True, about: str = "") -> bytes:
    """Encode (h, w, 3) RGB or (h, w, 4) RGBA uint8 as PNG: px and what is said about them, no date, no colour profile.

    One filter for all rows: trying all of them for each takes twice the time and saves a twentieth.

    Args:
        pixels: straight alpha.
        level: of compression; a picture of tissue hardly gets smaller from 1 to 9, a map of large tiles does.
        as_differences: rows as differences from the row above; False where rows have nothing to do with each other.
        about: ASCII for the text chunk "Description"; see `provenance_text`.

    Source: PNG (third edition), W3C 2025, sections 5 and 9.
    """
    from imagecodecs import deflate_encode  # libdeflate: less than half of zlib's time; slow to import

    height, width, channels = pixels.shape
    flat = np.ascontiguousarray(pixels).reshape(height, width * channels)
    rows = np.empty((height, 1 + flat.shape[1]), np.uint8)
    rows[:, 0] = 2 if as_differences else 0  # the filter's number, "Up" or "None"
    rows[:, 1:] = flat
    if as_differences:
        rows[1:, 1:] -= flat[:-1]
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    text = ((b"tEXt", b"Description\0" + about.encode("ascii")),) if about else ()
    parts = ((b"IHDR", header), *text, (b"IDAT", bytes(deflate_encode(rows.tobytes(), level))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )

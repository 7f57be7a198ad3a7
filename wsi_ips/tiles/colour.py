"""What a px of the low-resolution view is by its colour: stained, grey, or ink of a pen.

Chroma (largest minus smallest channel) tells stain from glass, whatever the stain: haematoxylin, eosin, DAB. Ink is
told from stain by hue. Haematoxylin keeps red above green, marker blue does not; nothing in H&E or DAB is green; marker
red is purer than blood. What is darker than its chroma allows is grey: black ink, black borders, dust, coverslip edges.

The numbers were set on real slides: H&E of skin, lung, breast, squamous carcinoma, CAMELYON lymph nodes, IHC of kidney,
and a frozen section with green and blue marker.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["INK", "NEAR_INK", "ViewColours", "judge_colours"]

NEAR_INK = 1  # flag: a hue that only counts as ink beside ink
INK = 2  # flag: ink by itself

_BRIGHT = 190  # smallest channel of glass
_PINK = 6  # glass is not pink by more than this; pale eosin is
_GREY_PERCENT = 14  # chroma below this share of the darkness is grey (dense nuclei: 30, black marker: below 10)


class ViewColours(NamedTuple):
    """Judgement of (h, w) px."""

    score: np.ndarray  # (h, w) uint8, how stained: 0 for grey
    ink: np.ndarray  # (h, w) uint8: 0, NEAR_INK or INK | NEAR_INK
    is_fill: np.ndarray  # (h, w) bool: pure white or black, painted by software
    glass: np.ndarray  # (n,) uint8, chroma of the px that may be glass: bright, not pink, no fill


def judge_colours(pixels: np.ndarray) -> ViewColours:
    """Judge each px of (h, w, C) uint8.

    Three channels are RGB. Otherwise the score is the darkness of the mean channel and there is no ink.
    """
    if pixels.shape[2] != 3:
        score = np.rint(255.0 - pixels.mean(axis=2)).astype(np.uint8)
        is_fill = (pixels.min(axis=2) == 255) | (pixels.max(axis=2) == 0)
        return ViewColours(score, np.zeros_like(score), is_fill, score[(score <= 255 - _BRIGHT) & ~is_fill])
    red, green, blue = (pixels[..., c].astype(np.int16) for c in range(3))
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    chroma = highest - lowest
    darkness = 255 - (red + green + blue) // 3
    is_fill = (lowest == 255) | (highest == 0)
    may_be_glass = (lowest >= _BRIGHT) & (np.minimum(red, blue) - green <= _PINK) & ~is_fill
    score = np.where(100 * chroma >= _GREY_PERCENT * darkness, chroma, np.int16(0)).astype(np.uint8)
    ink = _ink((red, green, blue), highest, chroma)
    return ViewColours(score, ink, is_fill, chroma[may_be_glass].astype(np.uint8))


def _ink(rgb: tuple[np.ndarray, np.ndarray, np.ndarray], highest: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Flag ink and what may be its rim; all maps (h, w) int16."""
    red, green, blue = rgb
    # everything fits int16: purity p per cent is 100 * chroma >= p * highest
    purity = 100 * chroma  # over highest: saturation of HSV, per cent
    # hue 75 to 195 degrees: red is the lowest, green near or above blue
    is_green = (4 * (green - red) > chroma) & (4 * (blue - green) <= chroma) & (4 * (red - blue) <= 3 * chroma)
    # hue 195 to 240: blue above green above red
    is_blue = (blue > green) & (green >= red) & ~is_green
    # hue 345 to 15
    is_red = (red == highest) & (4 * np.abs(green - blue) <= chroma)
    coloured = chroma >= 25
    ink = (is_green & coloured & (purity >= 30 * highest)) | (is_red & (purity >= 75 * highest) & (red >= 100))
    ink |= is_blue & coloured & ((purity >= 65 * highest) | ((highest < 100) & (purity >= 35 * highest)))
    near = is_green & (purity >= 8 * highest)
    near |= (is_blue & (purity >= 20 * highest)) | (is_red & (purity >= 40 * highest))
    return (near * np.uint8(NEAR_INK)) | (ink * np.uint8(INK | NEAR_INK))

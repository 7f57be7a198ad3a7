"""A computed slide written as a file: what OpenSlide makes of it can be compared with the computation.

The slide may be anything that draws regions, `slide.twinslide.TwinSlide` first of all. Its level 0 is drawn strip by
strip; the coarser levels of the file are averages of it, as scanners make them. Frame: level-0 px.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from wsi_ips.errors import ConfigError
from wsi_ips.geometry import Mpp
from wsi_ips.synthetic.pyramid import PyramidPlan, StripSource, write_pyramid

__all__ = ["DrawnSlide", "write_twin"]

_MAX_PX = 200_000_000


class DrawnSlide(Protocol):
    """What is asked of a slide that is written: a part of the `Slide` protocol, whose room lies above this one."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def levels(self) -> Sequence[Any]:
        """Levels with `width` and `height`, finest first."""

    @property
    def mpp(self) -> Mpp:
        """µm per level-0 px."""

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Any:
        """Draw a rectangle of a level; `pixels` of the result is (height_px, width_px, 3) uint8."""


def write_twin(
    path: str | os.PathLike[str], slide: DrawnSlide, *, n_levels: int = 4, step: int = 2, quality: int | None = None
) -> PyramidPlan:
    """Write a computed slide as a tiled pyramidal TIFF.

    What lies outside its bounds is white in the file, which has no bounds of its own.

    Args:
        path: the file.
        slide: drawn at level 0 only.
        n_levels: of the file, whatever levels the slide has.
        step: downsample from one level of the file to the next.
        quality: JPEG quality; None keeps every px exactly.

    Returns:
        The shape of the file's pyramid.

    Raises:
        ConfigError: more than 200 million px, too many levels for the size, or µm per px that differ in x and y, which
            a pyramid cannot say.
    """
    width, height = slide.levels[0].width, slide.levels[0].height
    if width * height > _MAX_PX:
        raise ConfigError(f"{slide.name}: {width} x {height} px are too many to write; read it without a file instead")
    if slide.mpp.x != slide.mpp.y:
        raise ConfigError(f"{slide.name}: {slide.mpp.x:g} x {slide.mpp.y:g} µm/px; a written slide has square px")
    plan = PyramidPlan(width, height, step=step, n_levels=n_levels, quality=quality)

    def paint(y0: int, height_px: int) -> np.ndarray:
        return np.asarray(slide.read_region(0, y0, 0, width, height_px).pixels)

    write_pyramid(path, StripSource(paint), plan, mpp=slide.mpp.x)
    return plan

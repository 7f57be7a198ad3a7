"""What will be read of a slide: its tissue, and the grid of tiles over it."""

from __future__ import annotations

from dataclasses import dataclass

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.errors import Note, SlideError
from wsi_ips.slide.reader import Slide
from wsi_ips.tiles.grid import TileGrid, plan_tiles
from wsi_ips.tiles.regions import restrict_tissue
from wsi_ips.tiles.tissue import TissueMask, find_tissue

__all__ = ["SlidePlan", "plan_slide"]


@dataclass(frozen=True)
class SlidePlan:
    """What will be read of a slide."""

    tissue: TissueMask
    grid: TileGrid

    @property
    def notes(self) -> tuple[Note, ...]:
        """Warnings of mask and grid."""
        return (*self.tissue.notes, *self.grid.notes)


def plan_slide(slide: Slide, settings: ModelSettings, read: ReadSettings, mask_path: str | None = None) -> SlidePlan:
    """Find the tissue and lay the grid.

    Raises:
        NoTissueError: nothing to look at.
        MppError: the slide is coarser than the tiles (`E_UPSAMPLE`).
        UnreadableSlideError: more tiles than a slide may have (`E_ABSURD`).
        SlideError: another number of tiles than the model knows places for (`E_POSITIONS`).
    """
    tissue = settings.tissue
    found = find_tissue(slide, tissue)
    if mask_path:
        found = restrict_tissue(found, slide, mask_path)
    grid = plan_tiles(slide, found, settings.tile, min_fraction=tissue.min_tile_fraction, min_focus=tissue.min_focus,
                      max_tiles=read.max_tiles)  # fmt: skip
    known, n_tiles = settings.attention.positions, len(grid.coords)
    if known is not None and n_tiles != known:
        raise SlideError("E_POSITIONS", f"{slide.name}: {n_tiles} tiles, and the model knows the places of a grid of {known} "
                         "(attention.positions); all images must be of the size it was trained on, without tissue mask")  # fmt: skip
    return SlidePlan(found, grid)

"""Outlines of masks and of blocks of tiles: the same areas as a union of squares, and valid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.report.blocks import blocks_of_tiles
from wsi_ips.report.outlines import polygons_of, trace_outlines
from wsi_ips.report.vectors import tile_boxes, tissue_polygons
from wsi_ips.results import SlidePrediction, TissueOutline
from wsi_ips.slide.backends import ArraySlide


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 12), st.integers(1, 14), st.sampled_from([0.2, 0.5, 0.7, 0.9, 1.0]), st.integers(0, 10_000))
def test_outlines_are_the_union_of_the_px(height: int, width: int, share: float, seed: int) -> None:
    """Any mask, px that meet in a point included: the pieces of the union, each valid and anticlockwise."""
    mask = np.random.default_rng(seed).random((height, width)) < share
    corners, pieces = trace_outlines(mask)
    polygons = polygons_of(pieces, corners.column, corners.row)
    rows, columns = np.nonzero(mask)
    union = shapely.union_all(shapely.box(columns, rows, columns + 1, rows + 1))
    found = shapely.MultiPolygon(polygons.tolist())
    assert found.is_valid
    assert len(polygons) == len(shapely.get_parts(union))
    assert not len(rows) or found.equals(union)
    assert all(polygon.is_valid and polygon.exterior.is_ccw for polygon in polygons)
    assert all(mask[piece.row, piece.column] for piece in pieces)


def test_tissue_lies_where_its_mask_does() -> None:
    """Corner and px sizes of the mask take the outline to level-0 px, largest piece first, holes kept."""
    mask = np.zeros((5, 8), bool)
    mask[0, 0] = True
    mask[1:5, 2:7] = True
    mask[2, 4] = False
    large, small = tissue_polygons(TissueOutline(mask, 100, 30, 8.0, 4.0))
    assert large.bounds == (116.0, 34.0, 156.0, 50.0)
    assert large.area == 19 * 32.0
    assert small.equals(shapely.box(100, 30, 108, 34))


@pytest.mark.parametrize("side0", [61.0, 61.4, 60.7])
@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize("overlap_px", [0, 20])
def test_blocks_are_the_unions_of_their_tiles(
    make_slide: Callable[..., ArraySlide], make_prediction: Callable[..., SlidePrediction], side0: float, side: int, overlap_px: int
) -> None:
    """Whole and broken sides, with overlap and without, tiles missing at random: every tile once, every shape the union."""
    p = make_prediction(make_slide(1537, 1011), m=4)
    step = side0 * (p.tile.size_px - overlap_px) / p.tile.size_px
    steps = np.unique(p.coords, axis=0) // p.tile.size_px
    p = replace(p, tile=p.tile.model_copy(update={"overlap_px": overlap_px}), extent0=(side0, side0),
                coords=np.rint(steps * step + 3).astype(np.int64))  # fmt: skip
    rows = np.flatnonzero(np.random.default_rng(1).random(p.n_tiles) < 0.7)
    regions = blocks_of_tiles(p, rows, side)
    assert np.array_equal(np.sort(np.concatenate([region.rows for region in regions])), rows)
    for region in regions:
        assert region.shape.is_valid
        assert region.shape.equals(shapely.union_all(tile_boxes(p, region.rows, closed=True)))

"""The tiles shown are the tiles chosen, at their place, with their numbers."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from wsi_ips.geometry import Box0
from wsi_ips.report.tiles_strip import top_tiles, top_tiles_strip_png
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.backends import ArraySlide

Make = Callable[..., ArraySlide]
Predict = Callable[..., SlidePrediction]


def test_top_tiles_are_the_selected_px_best_first(make_slide: Make, make_prediction: Predict) -> None:
    """Each picture holds the level-0 px of its tile, in the order of the selection, with attention x N and evidence."""
    slide = make_slide(bounds=Box0(101, 55, 1301, 903))
    p = make_prediction(slide, hot=29, times=40.0, m=5)
    tiles = top_tiles(slide, p, n=3)
    assert [t.row for t in tiles] == p.selected[:3].tolist()
    assert [t.rank for t in tiles] == [1, 2, 3]
    assert tiles[0].row == 29
    np.testing.assert_allclose(tiles[0].attention[0], 40.0 * p.n_tiles / (p.n_tiles + 39.0), rtol=1e-5)
    assert tiles[1].evidence == (float(p.evidence[1, 0]),)
    for tile in tiles:
        assert tile.png is not None
        pixels = cv2.imdecode(np.frombuffer(tile.png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        expected = slide.read_region(*p.coords[tile.row].tolist(), 0, 61, 61).pixels
        np.testing.assert_array_equal(pixels, expected)


def test_a_tile_that_cannot_be_read_is_missing_not_replaced(make_slide: Make, make_prediction: Predict) -> None:
    """A failed read gives no pixels and the strip is still drawn."""
    slide = make_slide()
    p = make_prediction(slide, hot=29, m=4)
    x0, y0 = p.coords[29]
    broken = make_slide(fail_at=[Box0(int(x0) + 1, int(y0) + 1, 3, 3)])
    tiles = top_tiles(broken, p)
    assert [t.png is None for t in tiles] == [True, False, False, False]
    assert top_tiles_strip_png(p, tiles, tile_px=64) == top_tiles_strip_png(p, tiles, tile_px=64)


def test_the_strip_grows_by_rows(make_slide: Make, make_prediction: Predict) -> None:
    """Nine tiles in rows of eight take two rows; no tile at all still gives a picture."""
    slide = make_slide()
    p = make_prediction(slide, m=9)
    tiles = top_tiles(slide, p)

    def height(n: int) -> int:
        return cv2.imdecode(np.frombuffer(top_tiles_strip_png(p, tiles[:n]), np.uint8), cv2.IMREAD_COLOR).shape[0]

    one_row = height(8)
    assert height(9) - one_row == one_row - 152
    assert height(0) == one_row

"""A slide of a few pieces is, px for px, the array they would be painted into."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.config import TileSpec, TissueSettings
from wsi_ips.errors import ConfigError
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slide.protocol import TileSlide
from wsi_ips.slide.sparseslide import SparseSlide
from wsi_ips.tiles.grid import plan_tiles
from wsi_ips.tiles.stream import stream_tiles
from wsi_ips.tiles.tissue import find_tissue

WIDTH, HEIGHT = 311, 197


@pytest.fixture(params=[1, 2, 3, 5], ids="{} channels".format)
def both(request: pytest.FixtureRequest) -> tuple[SparseSlide, ArraySlide]:
    """The same image of some channels, sparse and as an array: pieces overlap, touch edges, span cells."""
    rng, n_channels = np.random.default_rng(request.param), request.param
    array, pieces = np.full((HEIGHT, WIDTH, n_channels), 9, np.uint8), []
    for w, h in [(28, 28), (150, 40), (1, 1), (300, 2), (28, 30), (28, 28)]:
        x0, y0 = int(rng.integers(0, WIDTH - w + 1)), int(rng.integers(0, HEIGHT - h + 1))
        pieces.append((x0, y0, rng.integers(0, 256, (h, w, n_channels), dtype=np.uint8)))
        array[y0 : y0 + h, x0 : x0 + w] = pieces[-1][2]
    return SparseSlide((WIDTH, HEIGHT), pieces, background=9), ArraySlide(array, mpp=1.0)


def test_every_region_is_the_arrays(both: tuple[SparseSlide, ArraySlide]) -> None:
    """Inside, across the edges and wholly outside, where both are white; later pieces lie over earlier ones."""
    sparse, dense = both
    rng = np.random.default_rng(0)
    for _ in range(60):
        x0, y0, w, h = (int(v) for v in rng.integers((-80, -80, 1, 1), (WIDTH + 40, HEIGHT + 40, 200, 200)))
        wanted = dense.read_region(x0, y0, 0, w, h)
        assert np.array_equal(sparse.read_region(x0, y0, 0, w, h).pixels, wanted.pixels)
        for slide in both:
            out = np.empty((h, w, wanted.pixels.shape[2]), np.uint8)
            assert slide.read_into(out, x0, y0, 0) == 0
            assert np.array_equal(out, wanted.pixels)


def test_a_fixed_grid_without_tissue_streams_every_square(both: tuple[SparseSlide, ArraySlide]) -> None:
    """Method `whole` keeps each tile that fits, row by row, empty or not, with the image's own channels."""
    for slide in both:
        assert isinstance(slide, TileSlide)
        mask = find_tissue(slide, TissueSettings(method="whole"))
        grid = plan_tiles(slide, mask, TileSpec(size_px=50, mpp=1.0), min_fraction=0.1, max_tiles=100)
        assert grid.coords.tolist() == [[x, y] for y in (0, 50, 100) for x in (0, 50, 100, 150, 200, 250)]
        found = np.concatenate([chunk.pixels.copy() for chunk in stream_tiles(slide, grid, chunk_size=7)])
        whole = slide.read_region(0, 0, 0, 300, 150).pixels
        assert np.array_equal(found, whole.reshape(3, 50, 6, 50, -1).swapaxes(1, 2).reshape(18, 50, 50, -1))


def test_pieces_that_cannot_be_meant_are_refused() -> None:
    """Outside, of another type or other channels, or none at all: the sentence names the piece."""
    piece = np.zeros((10, 20, 1), np.uint8)
    for pieces, words in (([(0, 0, piece), (85, 0, piece)], r"piece 1 of 20 x 10 px at \(85, 0\) is not inside 100 x 50"),
                          ([(0, 0, piece), (0, 0, piece[:, :, 0])], "piece 1 is"), ([(0, 0, piece.astype(float))], "float64"),
                          ([], "has no piece")):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            SparseSlide((100, 50), pieces)


def test_a_closed_or_shrunk_sparse_slide_is_refused() -> None:
    """It has one level as it is, and reads nothing behind its end."""
    with SparseSlide((100, 50), [(0, 0, np.zeros((10, 20, 1), np.uint8))]) as slide:
        with pytest.raises(ConfigError, match="one level"):
            slide.read_into(np.empty((5, 5, 1), np.uint8), 0, 0, 0, 2)
    with pytest.raises(ConfigError, match="closed"):
        slide.read_region(0, 0, 0, 5, 5)

"""A mosaic gives back its tiles, through the reader, the grid and the stream: each once, in place, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_ips.config import TileSpec, TissueSettings
from wsi_ips.errors import ConfigError
from wsi_ips.slide.reader import open_slide
from wsi_ips.synthetic import MosaicPlan, make_mosaic
from wsi_ips.tiles.grid import plan_tiles
from wsi_ips.tiles.regions import restrict_tissue
from wsi_ips.tiles.stream import stream_tiles
from wsi_ips.tiles.tissue import find_tissue


def _tiles(n: int, tile_px: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, tile_px, tile_px, 3), dtype=np.uint8)


def _read(path: Path, mask: Path, tile: TileSpec, tissue: TissueSettings) -> tuple[np.ndarray, np.ndarray]:
    """Corners (n, 2) and pixels (n, S, S, 3) that a slide gives back."""
    with open_slide(path) as slide:
        found = restrict_tissue(find_tissue(slide, tissue), slide, mask)
        grid = plan_tiles(slide, found, tile, min_fraction=tissue.min_tile_fraction, max_tiles=10_000)
        return grid.coords, np.concatenate([chunk.pixels for chunk in stream_tiles(slide, grid, chunk_size=16)])


@pytest.mark.parametrize(
    ("n", "tile_px", "mpp", "columns", "spare_px"),
    [(1, 32, 0.5, None, 0), (3, 32, 0.5, None, 5), (49, 50, 1.0, 7, 0), (53, 50, 1.0, 9, 49), (130, 32, 0.25, 3, 0)],
)
def test_every_tile_comes_back_once_in_order_and_unchanged(
    tmp_path: Path, n: int, tile_px: int, mpp: float, columns: int | None, spare_px: int
) -> None:
    """With the plan's own settings and the mask, the grid is the laid tiles, and a lossless file keeps their px."""
    path, mask, tiles = tmp_path / "m.tif", tmp_path / "m.geojson", _tiles(n, tile_px)
    plan = make_mosaic(path, list(tiles), tile_px=tile_px, mpp=mpp, columns=columns, mask_path=mask, spare_px=spare_px)
    coords, pixels = _read(path, mask, *plan.settings)
    assert np.array_equal(coords, plan.coords)
    assert np.array_equal(pixels, tiles)


def test_corners_are_where_rows_and_columns_say(tmp_path: Path) -> None:
    """Tile i lies in row i // columns and column i % columns; the slide is as wide as its places and the spare px."""
    plan = make_mosaic(tmp_path / "m.tif", list(_tiles(5, 32)), tile_px=32, mpp=0.5, columns=3, spare_px=7)
    assert plan.coords.tolist() == [[0, 0], [32, 0], [64, 0], [0, 32], [32, 32]]
    assert (plan.width, plan.height) == (3 * 32 + 7, 2 * 32 + 7)


@pytest.mark.parametrize(("n", "columns"), [(1, None), (1, 1), (4, 2), (9, 3), (3, None), (100, None)])
def test_a_mosaic_is_never_square(tmp_path: Path, n: int, columns: int | None) -> None:
    """Swapped axes would show: the sides differ, also where rows and columns agree."""
    plan = make_mosaic(tmp_path / "m.tif", list(_tiles(n, 16)), tile_px=16, mpp=1.0, columns=columns)
    assert plan.width != plan.height
    assert plan.columns * plan.rows >= n


def test_places_without_a_tile_are_white_and_no_tiles(tmp_path: Path) -> None:
    """What is left over in the last row stays white; without the mask it would be in the grid."""
    path, mask = tmp_path / "m.tif", tmp_path / "m.geojson"
    plan = make_mosaic(path, list(_tiles(4, 32)), tile_px=32, mpp=0.5, columns=3, mask_path=mask)
    with open_slide(path) as slide:
        assert (slide.read_region(32, 32, 0, 64, 32).pixels == 255).all()
        whole = plan_tiles(slide, find_tissue(slide, plan.settings[1]), plan.settings[0], min_fraction=0.5, max_tiles=9)
    assert len(whole.coords) == 6
    assert len(_read(path, mask, *plan.settings)[0]) == 4


def test_jpeg_keeps_the_tiles_nearly(tmp_path: Path) -> None:
    """With a quality the file is smaller and smooth tiles differ by little."""
    y, x = np.mgrid[:32, :32]
    tiles = [np.stack([x * 4 + 60, y * 4 + 60, x + y + 10 * i], axis=-1).astype(np.uint8) for i in range(6)]
    exact = make_mosaic(tmp_path / "a.tif", tiles, tile_px=32, mpp=0.5)
    jpeg = make_mosaic(tmp_path / "b.tif", tiles, tile_px=32, mpp=0.5, quality=95, mask_path=tmp_path / "b.geojson")
    assert np.array_equal(exact.coords, jpeg.coords)
    _, pixels = _read(tmp_path / "b.tif", tmp_path / "b.geojson", *jpeg.settings)
    off = np.abs(pixels.astype(int) - np.stack(tiles))
    assert 0 < off.mean() < 6


def test_the_same_tiles_give_the_same_bytes(tmp_path: Path) -> None:
    """Slide and mask are the same files when made again."""
    for name in "ab":
        make_mosaic(
            tmp_path / f"{name}.tif", list(_tiles(7, 32)), tile_px=32, mpp=0.5, mask_path=tmp_path / f"{name}.geojson"
        )
    for suffix in ("tif", "geojson"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("tiles", "options", "said"),
    [
        ([], {}, "no tiles"),
        ([np.zeros((32, 32, 3), np.uint8), np.zeros((32, 30, 3), np.uint8)], {}, r"tile 1 is uint8 \(32, 30, 3\)"),
        ([np.zeros((32, 32, 3), np.float32)], {}, "tile 0 is float32"),
        ([np.zeros((32, 32, 3), np.uint8)], {"columns": 0}, "columns 0"),
        ([np.zeros((32, 32, 3), np.uint8)], {"spare_px": 32}, "spare_px 32"),
    ],
)
def test_what_makes_no_mosaic_is_refused(
    tmp_path: Path, tiles: list[np.ndarray], options: dict[str, int], said: str
) -> None:
    """Wrong tiles and numbers are named, and no file is left behind."""
    with pytest.raises(ConfigError, match=said):
        make_mosaic(tmp_path / "m.tif", tiles, tile_px=32, mpp=0.5, **options)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_public() -> None:
    """What `make_mosaic` returns can be named in an annotation."""
    assert MosaicPlan.__annotations__.keys() >= {"coords", "tile_px", "mpp"}

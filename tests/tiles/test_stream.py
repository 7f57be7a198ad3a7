"""The stream: every tile once, in order, where it lies, in bounded memory, whatever fails."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wsi_ips.config import TileSpec
from wsi_ips.errors import TileReadError
from wsi_ips.geometry import Box0
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slide.reader import Region, Slide, open_slide
from wsi_ips.tiles.grid import plan_tiles
from wsi_ips.tiles.stream import TileStream, stream_tiles
from wsi_ips.tiles.tilegrid import TileGrid
from wsi_ips.tiles.tissue import TissueMask

Coordinates = Callable[..., ArraySlide]


def _grid(slide: Slide, size_px: int, mpp: float = 0.5) -> TileGrid:
    bounds = slide.bounds
    everywhere = TissueMask(np.ones((1, 1), bool), bounds.x0, bounds.y0, bounds.width0, bounds.height0, 1.0)
    return plan_tiles(slide, everywhere, TileSpec(size_px=size_px, mpp=mpp), min_fraction=0.0, max_tiles=10_000)


def _readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("tile-reader")]


@pytest.mark.parametrize("n_readers", [1, 3])
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_every_tile_once_in_order_at_its_place(coordinates: Coordinates, n_readers: int, chunk_size: int) -> None:
    """Chunk k holds rows k * chunk_size and on, and a tile's px are the level-0 px of its coordinates, to the px."""
    slide = coordinates(333, 520, bounds=Box0(11, 5, 500, 320))
    grid = _grid(slide, 32)
    chunks = list(stream_tiles(slide, grid, chunk_size=chunk_size, n_readers=n_readers))
    assert np.array_equal(np.concatenate([c.rows for c in chunks]), np.arange(len(grid.coords)))
    assert all(len(c.rows) == chunk_size for c in chunks[:-1])
    for chunk in chunks:
        assert chunk.pixels.shape == (len(chunk.rows), 32, 32, 3)
        assert not chunk.failed.any()
        for (x0, y0), tile in zip(grid.coords[chunk.rows], chunk.pixels, strict=True):
            assert np.array_equal(tile, slide.read_region(x0, y0, 0, 32, 32).pixels)
            assert tuple(tile[0, 0, :2]) == (x0 % 256, y0 % 256)
            assert tuple(tile[-1, -1, :2]) == ((x0 + 31) % 256, (y0 + 31) % 256)


def test_tiles_of_a_coarse_level_lie_at_their_level0_place() -> None:
    """P5: read from a level of downsample 4, a tile still shows what lies at its level-0 coordinates, bounds included."""
    y, x = np.mgrid[:1000:4, :1500:4]
    coarse = np.dstack([x // 8, y // 8, np.zeros_like(x)]).astype(np.uint8)  # says where it is, in eighths of a px
    slide = ArraySlide([np.full((1000, 1500, 3), 255, np.uint8), coarse], mpp=0.25, bounds=Box0(60, 40, 1400, 900))
    grid = _grid(slide, 48, mpp=1.0)
    assert (grid.level, grid.extent0, tuple(grid.coords[0])) == (1, (192.0, 192.0), (60, 40))
    for chunk in stream_tiles(slide, grid, chunk_size=5):
        assert np.array_equal(chunk.pixels[:, 0, 0, :2], grid.coords[chunk.rows] // 8)
        assert np.array_equal(chunk.pixels[:, -1, -1, :2], (grid.coords[chunk.rows] + 188) // 8)


@pytest.mark.parametrize("mpp", [0.2525, 0.25, 0.121])
def test_fault_035_a_planted_square_stays_in_its_tile_through_resampling(mpp: float) -> None:
    """A tile cut at another mpp shows a mark at its level-0 place scaled by the ratio, within half a tile px."""
    pixels = np.full((1500, 2100, 3), 255, np.uint8)
    pixels[900:940, 1300:1380] = 0
    slide = ArraySlide(pixels, mpp=mpp)
    grid = _grid(slide, 50)
    dark = np.zeros(4)
    for chunk in stream_tiles(slide, grid, chunk_size=16):
        for (x0, y0), tile in zip(grid.coords[chunk.rows], chunk.pixels, strict=True):
            weight = (255.0 - tile[..., 0]) / 255.0
            y, x = np.mgrid[:50, :50]
            scale = grid.extent0[0] / 50
            dark += [weight.sum() * scale**2, (weight * (x0 + (x + 0.5) * scale)).sum() * scale**2,
                     (weight * (y0 + (y + 0.5) * scale)).sum() * scale**2, 0]  # fmt: skip
    assert dark[0] == pytest.approx(80 * 40, rel=0.03)
    assert dark[1] / dark[0] == pytest.approx(1340, abs=grid.extent0[0] / 100)
    assert dark[2] / dark[0] == pytest.approx(920, abs=grid.extent0[0] / 100)


def test_shrinking_is_antialiased() -> None:
    """A checkerboard of single px becomes even grey, not a moiré of black and white."""
    y, x = np.mgrid[:300, :420]
    board = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    slide = ArraySlide(board, mpp=0.25)
    for chunk in stream_tiles(slide, _grid(slide, 40), chunk_size=8):
        assert chunk.pixels.min() >= 127
        assert chunk.pixels.max() <= 128


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("mpp", [0.5, 0.25, 0.54])
def test_any_number_of_channels_and_every_resize(n_channels: int, mpp: float) -> None:
    """Tiles keep their channels when copied, shrunk or slightly enlarged; an even colour stays what it is."""
    pixels = np.empty((90, 140, n_channels), np.uint8)
    pixels[:] = np.arange(n_channels) * 30 + 10
    slide = ArraySlide(pixels, mpp=mpp)
    (chunk,) = stream_tiles(slide, _grid(slide, 40), chunk_size=100)
    assert chunk.pixels.shape[1:] == (40, 40, n_channels)
    assert (chunk.pixels == np.arange(n_channels) * 30 + 10).all()


def test_rows_are_read_in_the_order_asked_for(coordinates: Coordinates) -> None:
    """Chosen rows come back as asked, repeated ones repeated; none gives no chunk."""
    slide = coordinates(200, 300)
    grid = _grid(slide, 50)
    rows = np.array([7, 2, 2, 19])
    chunks = list(stream_tiles(slide, grid, rows=rows, chunk_size=3))
    assert np.concatenate([c.rows for c in chunks]).tolist() == rows.tolist()
    pixels = np.concatenate([c.pixels for c in chunks])
    assert [tuple(p[0, 0, :2]) for p in pixels] == [tuple(c % 256) for c in grid.coords[rows]]
    assert list(stream_tiles(slide, grid, rows=rows[:0], chunk_size=3)) == []


class _Wrapped:
    """A slide whose reading is watched, delayed or broken."""

    def __init__(self, slide: ArraySlide, before: Callable[[int, int], None]) -> None:
        self._slide, self._before = slide, before
        self.name, self.levels, self.bounds, self.mpp = slide.name, slide.levels, slide.bounds, slide.mpp

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
        self._before(x0, y0)
        return self._slide.read_region(x0, y0, level, width_px, height_px)


def test_thread_timing_changes_nothing(coordinates: Coordinates) -> None:
    """With readers that dawdle at random, chunks hold the same tiles in the same order."""
    slide = coordinates(333, 520)
    grid = _grid(slide, 32)
    rng = np.random.default_rng(1)
    slow = _Wrapped(slide, lambda x0, y0: time.sleep(rng.random() * 0.002))
    calm = list(stream_tiles(slide, grid, chunk_size=9, n_readers=1))
    wild = list(stream_tiles(slow, grid, chunk_size=9, n_readers=5, read_ahead=4))  # type: ignore[arg-type]
    assert len(calm) == len(wild)
    for one, other in zip(calm, wild, strict=True):
        assert np.array_equal(one.rows, other.rows)
        assert np.array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("read_ahead", [1, 3])
def test_reading_never_runs_further_ahead_than_agreed(coordinates: Coordinates, read_ahead: int) -> None:
    """However slow the consumer, at most `read_ahead` chunks are read beyond the one it holds."""
    n_read, most_ahead, done = 0, 0, 0
    lock = threading.Lock()

    def count(x0: int, y0: int) -> None:
        nonlocal n_read
        with lock:
            n_read += 1

    slide = coordinates(400, 600)
    grid = _grid(slide, 25)
    for chunk in stream_tiles(_Wrapped(slide, count), grid, chunk_size=10, n_readers=4, read_ahead=read_ahead):  # type: ignore[arg-type]
        done += len(chunk.rows)
        time.sleep(0.004)
        with lock:
            most_ahead = max(most_ahead, n_read - done)
    assert done == n_read == len(grid.coords) == 384
    assert 0 < most_ahead <= 10 * read_ahead


def test_chunks_are_let_go(coordinates: Coordinates) -> None:
    """Nothing of a chunk stays in memory once the consumer has let it go."""
    slide = coordinates(400, 600)
    alive = []
    for chunk in stream_tiles(slide, _grid(slide, 40), chunk_size=10, read_ahead=2):
        alive.append(weakref.ref(chunk.pixels))
        del chunk
        gc.collect()
        assert not any(ref() is not None for ref in alive)


def test_fault_084_a_read_that_fails_once_is_repeated_and_counted(coordinates: Coordinates) -> None:
    """A handle that hiccups costs nothing: the tile is read again."""
    seen: set[tuple[int, int]] = set()

    def hiccup(x0: int, y0: int) -> None:
        if (x0, y0) == (50, 100) and (x0, y0) not in seen:
            seen.add((x0, y0))
            raise TileReadError("E_TILE", "hiccup")

    slide = coordinates(200, 300)
    grid = _grid(slide, 50)
    calm = list(stream_tiles(slide, grid, chunk_size=5))
    for one, other in zip(stream_tiles(_Wrapped(slide, hiccup), grid, chunk_size=5), calm, strict=True):  # type: ignore[arg-type]
        assert not one.failed.any()
        assert np.array_equal(one.pixels, other.pixels)
    assert seen


def test_fault_004_a_tile_that_cannot_be_read_is_flagged_and_the_rest_goes_on(coordinates: Coordinates) -> None:
    """Failed tiles are named, hold zeros and never neighbours' px; also when they fill a whole chunk."""
    slide = coordinates(200, 300, fail_at=[Box0(60, 110, 1, 1), Box0(0, 0, 300, 10)])
    grid = _grid(slide, 50)
    chunks = list(stream_tiles(slide, grid, chunk_size=6))
    failed = np.concatenate([c.failed for c in chunks])
    pixels = np.concatenate([c.pixels for c in chunks])
    assert np.flatnonzero(failed).tolist() == [0, 1, 2, 3, 4, 5, 13]
    assert not pixels[failed].any()
    assert all(p[0, 0, 0] == x0 % 256 for p, (x0, _) in zip(pixels[~failed], grid.coords[~failed], strict=True))


def test_missing_pixels_are_counted_per_tile() -> None:
    """Each tile says how many px of its level the file does not hold."""
    missing = np.zeros((200, 300), bool)
    missing[60:70, 110:130] = True
    slide = ArraySlide(np.zeros((200, 300, 3), np.uint8), missing=missing)
    (chunk,) = stream_tiles(slide, _grid(slide, 50), chunk_size=100)
    assert chunk.n_missing.sum() == chunk.n_missing[8] == 200


def test_other_errors_reach_the_consumer_and_end_the_threads(coordinates: Coordinates) -> None:
    """A broken reader is not a failed tile: its own error comes out, at its chunk, and no thread stays."""

    def broken(x0: int, y0: int) -> None:
        if (x0, y0) == (50, 100):
            raise MemoryError("no room")

    slide = coordinates(200, 300)
    stream = stream_tiles(_Wrapped(slide, broken), _grid(slide, 50), chunk_size=5)  # type: ignore[arg-type]
    assert [len(next(stream).rows) for _ in range(2)] == [5, 5]
    with pytest.raises(MemoryError, match="no room"):
        next(stream)
    assert not _readers()


def test_closing_early_ends_the_threads(coordinates: Coordinates) -> None:
    """A consumer that stops, or raises, leaves no thread behind and does not wait for all the tiles."""
    n_read = 0

    def count(x0: int, y0: int) -> None:
        nonlocal n_read
        n_read += 1
        time.sleep(0.001)

    slide = coordinates(400, 600)
    stream = stream_tiles(_Wrapped(slide, count), _grid(slide, 10), chunk_size=20, read_ahead=3)  # type: ignore[arg-type]
    next(stream)
    assert _readers()
    stream.close()  # type: ignore[attr-defined]
    assert not _readers()
    assert n_read <= 20 * 5

    def stumble() -> None:
        for _ in stream_tiles(slide, _grid(slide, 10), chunk_size=20):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stumble()
    assert not _readers()
    stream_tiles(slide, _grid(slide, 10), chunk_size=20)  # never started
    assert not _readers()


def test_readers_may_change_on_the_way(coordinates: Coordinates) -> None:
    """Every tile once and in order while threads are added and taken away; all of them end."""
    slide = coordinates(400, 600)
    grid = _grid(slide, 20)
    rows, most = [], 0
    slow = _Wrapped(slide, lambda x0, y0: time.sleep(0.0005))
    with TileStream(slow, grid, chunk_size=20, n_readers=1) as stream:  # type: ignore[arg-type]
        for i, chunk in enumerate(stream):
            rows.append(chunk.rows)
            assert tuple(chunk.pixels[-1, 0, 0, :2]) == tuple(grid.coords[chunk.rows[-1]] % 256)
            stream.use_readers((1, 4, 2)[i % 3])
            most = max(most, len(_readers()))
        assert stream.busy_seconds > 0.0005 * len(grid.coords)
    assert np.array_equal(np.concatenate(rows), np.arange(len(grid.coords)))
    assert most > 1
    assert not _readers()


def test_a_real_slide_streams_its_own_pixels(shared_data: Path) -> None:
    """Tiles of a real SVS at its own resolution are the reader's px, two threads or one."""
    with open_slide(shared_data / "slides" / "aperio" / "CMU-1-Small-Region.svs", mpp=0.5) as slide:
        grid = _grid(slide, 224)
        chunks = list(stream_tiles(slide, grid, chunk_size=16))
        assert sum(len(c.rows) for c in chunks) == (2220 // 224) * (2967 // 224)
        x0, y0 = grid.coords[20]
        assert np.array_equal(chunks[1].pixels[4], slide.read_region(x0, y0, 0, 224, 224).pixels)

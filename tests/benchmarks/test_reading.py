"""Reading tiles against the field's pattern: formats, places on the file's grid, resolutions, threads; and the bare decoder.

One core: CPU time of this process, the pattern in this process too; slides are open already (what opening takes:
test_stages.py), and hold more than readers keep from round to round. Two cores: seconds by the clock, two reader threads
against a DataLoader with two workers. Every way reads the same tiles in every round.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tifffile
import torch
from baseline import pattern_loader, read_tiles_pattern
from bench_slides import rows_of_tiles, write_kind
from table import compare, machine

from wsi_ips.slide.reader import Slide, open_slide
from wsi_ips.tiles.stream import stream_tiles
from wsi_ips.tiles.tilegrid import TileGrid

N_TILES = 512
SIDE = 256


def grid_of(slide: Slide, offset0: int, read_px: int = SIDE, size_px: int = SIDE) -> TileGrid:
    """Tiles in rows over the tissue, their corners `offset0` right of and below those of file tiles of 256 px."""
    return rows_of_tiles(slide, SIDE + offset0, read_px, size_px, N_TILES)


def read_all(slide: Slide, grid: TileGrid, n_readers: int = 1) -> int:
    """Stream all tiles."""
    chunks = stream_tiles(slide, grid, chunk_size=64, n_readers=n_readers)
    return sum(c.pixels.shape[0] for c in chunks if not c.failed.any())


def bare(path: Path) -> Callable[[], None]:
    """Decode the bytes of the same tiles, already in memory, into one batch that is used again and again."""
    with open_slide(path, 0.5) as slide:
        places = grid_of(slide, 0).coords // SIDE
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        across = -(-page.imagewidth // SIDE)
        streams = []
        for column, row in places:
            number = row * across + column
            tiff.filehandle.seek(page.dataoffsets[number])
            streams.append(tiff.filehandle.read(page.databytecounts[number]))
    batch = np.empty((64, SIDE, SIDE, 3), np.uint8)

    def decode() -> None:
        for i, stream in enumerate(streams):
            simplejpeg.decode_jpeg(stream, buffer=batch[i % 64])

    return decode


CASES = [  # kind, offset of corners, px read for a tile of 256
    ("420", 0, SIDE), ("420", 128, SIDE), ("240", 0, SIDE), ("422", 0, SIDE), ("444", 0, SIDE), ("rgb", 0, SIDE),
    ("rgb", 128, SIDE), ("420", 0, 2 * SIDE), ("420", 128, 2 * SIDE), ("rgb", 0, 2 * SIDE), ("jp2k", 0, SIDE), ("jp2k", 128, SIDE),
    ("deflate", 0, SIDE), ("lzw", 0, SIDE),
]  # fmt: skip


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a slide of a kind once."""
    folder = tmp_path_factory.mktemp("slides")

    def find(kind: str) -> Path:
        path = folder / f"{kind}{'.svs' if kind in ('rgb', 'jp2k') else '.tif'}"
        if not path.exists():
            write_kind(path, kind, 6400 if kind == "420" else 2000)
        return path

    return find


@pytest.mark.benchmark
@pytest.mark.parametrize(("kind", "offset0", "read_px"), CASES)
def test_one_core(slides: Callable[[str], Path], kind: str, offset0: int, read_px: int) -> None:
    """CPU time of a tile; OpenSlide through this package stands between."""
    torch.set_num_threads(1)
    path = slides(kind)
    slide, library = open_slide(path, 0.5), open_slide(path, 0.5, reader="library")
    grid, plain = grid_of(slide, offset0, read_px), grid_of(library, offset0, read_px)
    ways: dict[str, Callable[[], object]] = {
        "pattern": lambda: sum(1 for _ in read_tiles_pattern(path, grid.coords, 0, read_px, SIDE)),
        "library": lambda: read_all(library, plain),
        "wsi-ips": lambda: read_all(slide, grid),
    }
    if (kind, offset0, read_px) == ("420", 0, SIDE):
        ways["bare decoder"] = bare(path)
    found = compare(ways, len(grid.coords), rounds=5)
    print(f"\n{machine()}\n\n{kind}, corners off by {offset0} px, {read_px} px read for {SIDE}; {slide.reader}\n\n{found.markdown()}")
    if "bare decoder" in ways:
        ratio = np.divide(found.cpu["wsi-ips"], found.cpu["bare decoder"])
        print(f"CPU time over the bare decoder's: {np.median(ratio):.3f} [{ratio.min():.3f}-{ratio.max():.3f}]")


@pytest.mark.benchmark
@pytest.mark.parametrize("offset0", [0, 128])
def test_two_cores(slides: Callable[[str], Path], offset0: int) -> None:
    """Seconds by the clock with two workers and two threads."""
    path = slides("420")
    slide = open_slide(path, 0.5)
    grid = grid_of(slide, offset0)
    coords = grid.coords
    loader = lambda: sum(len(b) for b in pattern_loader(path, coords, 0, SIDE, SIDE, batch=64, n_workers=2))  # noqa: E731
    ways: dict[str, Callable[[], object]] = {
        "pattern, DataLoader, 2 workers": loader,
        "wsi-ips, 1 thread": lambda: read_all(slide, grid, 1),
        "wsi-ips, 2 threads": lambda: read_all(slide, grid, 2),
    }
    found = compare(ways, len(coords))
    ratio = np.divide(found.wall["wsi-ips, 1 thread"], found.wall["wsi-ips, 2 threads"])
    print(f"\n{machine()}\n\n420, corners off by {offset0} px; {len(os.sched_getaffinity(0))} cores\n\n{found.markdown()}")
    print(f"two threads against one: {np.median(ratio):.2f} [{ratio.min():.2f}-{ratio.max():.2f}]")

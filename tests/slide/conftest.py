"""Small awkward slides made on the spot: wider than high, no size a multiple of a tile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

WIDTH, HEIGHT, TILE = 700, 500, 128
APERIO = "Aperio Image Library v1\r\n700x500 (128x128) JPEG/RGB|AppMag = 20|MPP = 0,4990"


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """(500, 700, 3) uint8, smooth, so that lossy codecs stay close."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.dstack([x * 250 // WIDTH, y * 250 // HEIGHT, np.full_like(x, 128)]).astype(np.uint8)


@pytest.fixture
def make_tiff(tmp_path: Path, picture: np.ndarray) -> Callable[..., Path]:
    """Write a tiled TIFF at 0.5 µm; keywords go to tifffile, `levels` adds halved levels."""

    def make(name: str = "a.tif", data: np.ndarray | None = None, levels: int = 1, **options: Any) -> Path:
        path = tmp_path / name
        defaults = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "zlib", "metadata": None,
                    "resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}  # fmt: skip
        keywords = {k: v for k, v in (defaults | options).items() if v is not ...}
        with tifffile.TiffWriter(path, bigtiff=bool(keywords.pop("bigtiff", False))) as writer:
            pixels = picture if data is None else data
            for level in range(levels):
                extra = {"subfiletype": 1} if level else {}
                writer.write(pixels[:: 2**level, :: 2**level], **(keywords | extra))
        return path

    return make


@pytest.fixture
def edit_bytes() -> Callable[[Path, int, bytes], None]:
    """Overwrite some bytes of a file."""

    def edit(path: Path, offset: int, data: bytes) -> None:
        with path.open("r+b") as f:
            f.seek(offset)
            f.write(data)

    return edit

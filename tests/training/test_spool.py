"""Tiles kept partly in memory, partly in a file, come back as they went in."""

from __future__ import annotations

import pytest
import torch

from wsi_ips.training.spool import TileSpool


@pytest.mark.parametrize("n_held", [0, 1, 4, 7, 100])
def test_tiles_come_back_in_any_slice(n_held: int) -> None:
    """Whatever share fits into memory, slices across its edge too."""
    tiles = torch.randint(0, 256, (11, 3, 3, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spool = TileSpool(held_bytes=n_held * 18 + 5)
    for start, stop in ((0, 2), (2, 2), (2, 7), (7, 11)):
        spool.append(tiles[start:stop])
    assert len(spool) == 11
    assert spool.shape == (11, 3, 3, 2)
    for start in range(11):
        for stop in range(start + 1, 12):
            assert torch.equal(spool[start:stop], tiles[start:stop])
    assert torch.equal(torch.cat(list(spool.split(4))), tiles)
    assert [len(part) for part in spool.split(4)] == [4, 4, 3]
    spool.close()

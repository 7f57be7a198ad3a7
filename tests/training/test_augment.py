"""Training tiles change in ways that keep the label."""

from __future__ import annotations

import torch

from wsi_ips.recipe import AugmentSettings
from wsi_ips.training.augment import augment_tiles, jitter_stain


def _tiles(n: int) -> torch.Tensor:
    return torch.randint(40, 250, (n, 5, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_symmetries_only_move_pixels_and_all_eight_occur() -> None:
    """Flips and turns: the same px elsewhere; every symmetry of the square is drawn."""
    tile = _tiles(1)
    many = augment_tiles(tile.expand(200, -1, -1, -1), AugmentSettings(hed_jitter=0.0), torch.Generator().manual_seed(0))
    seen = {bytes(t.numpy().tobytes()) for t in many}
    wanted = {
        torch.rot90(t, k, dims=(0, 1)).contiguous().numpy().tobytes()
        for k in range(4)
        for t in (tile[0], tile[0].flip(1))
    }
    assert seen == wanted


def test_nothing_changes_when_all_is_off() -> None:
    """Off means the same bytes."""
    off = AugmentSettings(flips=False, turns=False, hed_jitter=0.0)
    assert torch.equal(augment_tiles(_tiles(9), off, torch.Generator().manual_seed(0)), _tiles(9))


def test_the_same_seed_gives_the_same_tiles() -> None:
    """Training repeats itself."""
    once, again = (augment_tiles(_tiles(9), AugmentSettings(), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(once, again)


def test_stain_jitter_is_mild_and_keeps_white_nearly_white() -> None:
    """A jitter of 5 % moves mid-grey by a few steps and glass hardly at all."""
    tiles = _tiles(64)
    changed = jitter_stain(tiles, 0.05, torch.Generator().manual_seed(0))
    difference = (changed.float() - tiles.float()).abs()
    assert 0.2 < float(difference.mean()) < 12.0
    white = torch.full((8, 4, 4, 3), 255, dtype=torch.uint8)
    assert int((white.int() - jitter_stain(white, 0.05, torch.Generator().manual_seed(0)).int()).abs().max()) <= 4


def test_zero_jitter_is_the_identity() -> None:
    """There and back through the stains loses nothing."""
    tiles = _tiles(16)
    assert int((jitter_stain(tiles, 0.0, torch.Generator()).int() - tiles.int()).abs().max()) <= 1

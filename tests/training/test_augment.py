"""Training tiles change in ways that keep the label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsi_ips.recipe import AugmentSettings
from wsi_ips.tiles.stain import jitter_stain
from wsi_ips.training.augment import augment_tiles, compress, zoom

OFF = AugmentSettings(flips=False, turns=False, hed_jitter=0.0)
EACH = {
    "flips": OFF.replace(flips=True),
    "turns": OFF.replace(turns=True),
    "stain": OFF.replace(hed_jitter=0.2),
    "blur": OFF.replace(blur=1.0),
    "jpeg": OFF.replace(jpeg=1.0),
    "scale": OFF.replace(scale=0.3),
    "all": AugmentSettings(blur=0.5, jpeg=0.5, scale=0.2),
}


def _tiles(n: int, side: int = 15, channels: int = 3) -> torch.Tensor:
    seeded = torch.Generator().manual_seed(1)
    return torch.randint(40, 250, (n, side, side, channels), dtype=torch.uint8, generator=seeded)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_symmetries_only_move_pixels_and_all_eight_occur() -> None:
    """Flips and turns: the same px elsewhere; every symmetry of the square is drawn."""
    tile = _tiles(1, side=5)
    many = augment_tiles(tile.expand(200, -1, -1, -1), AugmentSettings(hed_jitter=0.0), _generator())
    seen = {bytes(t.numpy().tobytes()) for t in many}
    wanted = {
        torch.rot90(t, k, dims=(0, 1)).contiguous().numpy().tobytes()
        for k in range(4)
        for t in (tile[0], tile[0].flip(1))
    }
    assert seen == wanted


def test_nothing_changes_when_all_is_off() -> None:
    """Off means the same bytes."""
    assert torch.equal(augment_tiles(_tiles(9), OFF, _generator()), _tiles(9))


@pytest.mark.parametrize("how", EACH.values(), ids=EACH)
def test_every_change_keeps_shape_and_type_and_leaves_its_input_alone(how: AugmentSettings) -> None:
    """uint8 (n, S, S, C) in and out; something changes; what came in is as it was."""
    tiles = _tiles(20)
    changed = augment_tiles(tiles, how, _generator())
    assert (changed.shape, changed.dtype) == (tiles.shape, torch.uint8)
    assert not torch.equal(changed, tiles)
    assert torch.equal(tiles, _tiles(20))


@pytest.mark.parametrize("how", EACH.values(), ids=EACH)
def test_the_same_generator_gives_the_same_tiles_however_they_are_grouped(how: AugmentSettings) -> None:
    """Twenty tiles at once, or 3 and 17 one after the other: the same bytes."""
    tiles = _tiles(20)
    wanted, other = augment_tiles(tiles, how, _generator(5)), augment_tiles(tiles, how, _generator(6))
    generator = _generator(5)
    parts = [augment_tiles(part, how, generator) for part in (tiles[:3], tiles[3:])]
    assert torch.equal(torch.cat(parts), wanted)
    assert not torch.equal(other, wanted)


def test_no_tiles_are_no_tiles() -> None:
    """An empty bag passes."""
    assert augment_tiles(_tiles(0), EACH["all"], _generator()).shape == (0, 15, 15, 3)


@pytest.mark.parametrize("channels", [1, 4])
def test_tiles_that_are_not_rgb_keep_their_channels(channels: int) -> None:
    """Stain and compression are left out; the rest works."""
    tiles = _tiles(8, channels=channels)
    assert augment_tiles(tiles, EACH["all"], _generator()).shape == tiles.shape
    assert torch.equal(augment_tiles(tiles, OFF.replace(hed_jitter=0.2, jpeg=1.0), _generator()), tiles)


@pytest.mark.parametrize("name", ["blur", "jpeg"])
def test_blur_and_compression_meet_their_share_of_tiles(name: str) -> None:
    """A share of 0.3 of 400 tiles: 120, give or take four standard deviations (37)."""
    tiles = _tiles(400, side=8)
    changed = augment_tiles(tiles, OFF.replace(**{name: 0.3}), _generator())
    n = int((changed != tiles).flatten(1).any(dim=1).sum())
    assert 120 - 37 <= n <= 120 + 37


def test_blur_smooths_and_keeps_the_mean() -> None:
    """Neighbouring px differ less; the mean of a tile stays within a step or two."""
    tiles = _tiles(30, side=33).float()
    blurred = augment_tiles(tiles.to(torch.uint8), EACH["blur"], _generator()).float()
    assert float(blurred.diff(dim=1).abs().mean()) < 0.6 * float(tiles.diff(dim=1).abs().mean())
    assert float((blurred.mean((1, 2, 3)) - tiles.mean((1, 2, 3))).abs().max()) < 2.5


def test_compression_is_coarser_at_lower_quality() -> None:
    """The error of JPEG on a smooth tile grows as quality falls, and stays small."""
    y, x = np.mgrid[0:64, 0:64]
    waves = 128 + 60 * np.sin(x / 5) * np.cos(y / 7)
    tile = np.stack([waves, waves[::-1], 0.5 * waves + 60], axis=2).astype(np.uint8)
    errors = [float(np.abs(compress(tile, q).astype(int) - tile).mean()) for q in (40, 90)]
    assert errors[1] < errors[0] < 8.0


def test_zoom_looks_closer_around_the_centre_and_makes_up_no_pixel() -> None:
    """A ramp stays a ramp through the centre with its slope divided by the factor; factor 1 is the identity."""
    ramp = np.broadcast_to(np.arange(31, dtype=np.uint8)[None, :, None] * 8, (31, 31, 3)).copy()
    closer = zoom(ramp, 1.25).astype(int)
    expected = 120 + (np.arange(31) - 15) * 8 / 1.25
    assert np.abs(closer[:, :, 0] - expected).max() <= 1.0
    assert np.array_equal(zoom(ramp, 1.0), ramp)
    assert ramp[:, 3].max() <= closer.min() + 1  # the outer 3 px are out of sight
    column = zoom(np.swapaxes(ramp, 0, 1).copy(), 1.25)
    assert np.array_equal(column, np.swapaxes(closer, 0, 1))


def test_stain_jitter_is_mild_and_keeps_white_nearly_white() -> None:
    """A jitter of 5 % moves mid-grey by a few steps and glass hardly at all."""
    rng = np.random.default_rng(0)
    changes = []
    for tile in _tiles(64).numpy():
        draws = rng.random(6)
        changes.append(float(np.abs(jitter_stain(tile, 0.05, draws).astype(int) - tile).mean()))
        white = np.full((4, 4, 3), 255, dtype=np.uint8)
        assert jitter_stain(white, 0.05, draws).min() >= 251
    assert 0.2 < float(np.mean(changes)) < 12.0


def test_stain_jitter_scales_the_density_of_one_stain() -> None:
    """A px of pure haematoxylin of density d becomes one of density (1 + s) d."""
    from skimage.color import rgb_from_hed

    density = 0.8 * rgb_from_hed[0]
    tile = np.round(255 * np.exp(-density)).astype(np.uint8).reshape(1, 1, 3)
    more = jitter_stain(tile, 0.2, np.array([1.0, 0.5, 0.5, 0.5, 0.5, 0.5]))
    assert np.abs(more[0, 0] - 255 * np.exp(-1.2 * density)).max() <= 1.5


def test_draws_in_the_middle_are_the_identity() -> None:
    """There and back through the stains loses nothing, for all values but the darkest."""
    values = np.arange(1, 256, dtype=np.uint8)
    tile = np.stack([values, values[::-1], np.roll(values, 99)], axis=1).reshape(15, 17, 3)
    assert np.abs(jitter_stain(tile, 0.3, np.full(6, 0.5)).astype(int) - tile).max() <= 1

"""Bags and tiles of two slides mixed: what is left of each, and the share that says so."""

from __future__ import annotations

import pytest
import torch

from wsi_ips.training.mix import mix_bags, mix_tiles


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["tiles", "embeddings"])
def test_a_mixed_bag_holds_instances_of_both_in_the_share_it_says(kind: str) -> None:
    """Of 20 instances 6 come from the other slide, each once; the own ones keep their places."""
    if kind == "tiles":
        own = torch.arange(20, dtype=torch.uint8).reshape(20, 1, 1, 1).expand(20, 4, 4, 3).contiguous()
        other = torch.arange(100, 115, dtype=torch.uint8).reshape(15, 1, 1, 1).expand(15, 4, 4, 3)
    else:
        own = torch.arange(20.0)[:, None].expand(20, 5).contiguous()
        other = torch.arange(100.0, 115.0)[:, None].expand(15, 5)
    before = own.clone()
    mixed, share = mix_bags(own, other, _generator(), share=0.3)
    assert (mixed.shape, mixed.dtype) == (own.shape, own.dtype)
    assert torch.equal(own, before)
    first = mixed.flatten(1)[:, 0].tolist()
    entered = [v for v in first if v >= 100]
    assert share == 1.0 - 6 / 20
    assert len(entered) == len(set(entered)) == 6
    assert all(v in (i, v) and (v == i or v >= 100) for i, v in enumerate(first))


def test_a_small_partner_gives_what_it_has() -> None:
    """Two instances replace at most two, and the share says so."""
    mixed, share = mix_bags(torch.zeros(10, 3), torch.ones(2, 3), _generator(), share=0.5)
    assert share == 0.8
    assert int(mixed[:, 0].sum()) == 2


def test_which_instances_leave_is_random_not_by_rank() -> None:
    """Over many draws every place is exchanged about as often: 400 of 2000, give or take five standard deviations."""
    times = torch.zeros(10)
    generator = _generator()
    for _ in range(2000):
        times += mix_bags(torch.zeros(10, 1), torch.ones(10, 1), generator, share=0.2)[0][:, 0]
    assert float((times - 400).abs().max()) < 5 * (2000 * 0.2 * 0.8) ** 0.5


def test_shares_are_drawn_within_limits_and_the_slide_keeps_the_larger_part() -> None:
    """100 instances: 50 to 90 stay."""
    generator = _generator()
    shares = [mix_bags(torch.zeros(100, 1), torch.ones(100, 1), generator)[1] for _ in range(200)]
    assert 0.5 <= min(shares) < 0.55
    assert 0.85 < max(shares) <= 0.9


def test_pasted_tiles_are_shrunken_whole_and_the_share_is_their_area() -> None:
    """Black tiles with white ones pasted in: white squares of 0.4 to 0.6 of the side, in the asked share of tiles."""
    own, other = torch.zeros(20, 30, 30, 3, dtype=torch.uint8), torch.full((7, 30, 30, 3), 255, dtype=torch.uint8)
    mixed, share = mix_tiles(own, other, _generator(), share=0.25)
    white = mixed[..., 0] == 255
    assert int(own.max()) == 0
    assert int(white.flatten(1).any(dim=1).sum()) == 5
    assert share == pytest.approx(1.0 - float(white.float().mean()), abs=1e-6)
    sides = []
    for tile in white[white.flatten(1).any(dim=1)]:
        rows, columns = tile.any(dim=1), tile.any(dim=0)
        assert int(rows.sum()) == int(columns.sum())
        assert int(tile.sum()) == int(rows.sum()) ** 2  # one whole square
        sides.append(int(rows.sum()))
    assert min(sides) >= 12
    assert max(sides) <= 18
    assert len(set(sides)) > 1


def test_a_pasted_tile_shows_all_of_the_other_tile() -> None:
    """Four coloured quarters come out as four quarters: shrunken, not cropped."""
    other = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    other[0, :20, :20], other[0, :20, 20:], other[0, 20:, :20], other[0, 20:, 20:] = 60, 120, 180, 240
    mixed, share = mix_tiles(torch.zeros(1, 40, 40, 3, dtype=torch.uint8), other, _generator(), share=1.0)
    pasted = mixed[0, :, :, 0].nonzero()
    (y0, x0), (y1, x1) = pasted.min(dim=0).values.tolist(), pasted.max(dim=0).values.tolist()
    corners = [int(mixed[0, y, x, 0]) for y in (y0, y1) for x in (x0, x1)]
    assert corners == [60, 120, 180, 240]
    assert share == pytest.approx(1.0 - (y1 - y0 + 1) ** 2 / 1600)


@pytest.mark.parametrize("mix", [mix_bags, mix_tiles])
def test_mixtures_repeat_themselves_for_the_same_generator(mix: type) -> None:
    """Same seed, same bytes and share; another seed, another mixture."""
    seeded = _generator(9)
    own, other = (torch.randint(0, 255, (12, 9, 9, 3), dtype=torch.uint8, generator=seeded) for _ in range(2))
    once, again, else_ = (mix(own, other, _generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(once[0], again[0])
    assert once[1] == again[1]
    assert not torch.equal(once[0], else_[0])


def test_single_channel_tiles_are_mixed_too() -> None:
    """The axis of a single channel is kept."""
    own, other = torch.zeros(3, 10, 10, 1, dtype=torch.uint8), torch.full((2, 10, 10, 1), 9, dtype=torch.uint8)
    mixed, share = mix_tiles(own, other, _generator(), share=1.0)
    assert mixed.shape == own.shape
    assert share == pytest.approx(1.0 - float((mixed == 9).float().mean()), abs=1e-6)

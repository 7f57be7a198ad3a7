"""ResizeMix: a slide's instances with some of another slide's among them, held against both slides' targets.

The soft label is the share of the bag that is the slide's own: instances where whole ones are exchanged, area where a
shrunken tile is pasted in. What is exchanged is drawn at random, not by rank: then the share of a slide's evidence that
is left is, on average, the share of its label that is left. Taking the best of one and the worst of the other would
keep all evidence of a positive slide and still halve its label.

Shapes: m instances of a slide, k of the other, S tile side, C channels, W encoder width.

Source: Qin et al., ResizeMix, arXiv 2012.11101, 2020; bags, Yang et al., ReMix, MICCAI 2022.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

__all__ = ["mix_bags", "mix_tiles"]

_BAG_SHARE = (0.1, 0.5)  # of the instances: the slide keeps the larger part of its own bag
_TILE_SHARE = (0.25, 0.75)  # of the tiles
_SIDE = (0.4, 0.6)  # of S: narrow, for a pasted tile shows its tissue at 1.7 to 2.5 times coarser resolution


def mix_bags(
    instances: Tensor, others: Tensor, generator: torch.Generator, share: float | None = None
) -> tuple[Tensor, float]:
    """Exchange a random share of a slide's instances for random ones of another slide.

    Args:
        instances: (m, S, S, C) uint8 tiles or (m, W) embeddings; not changed.
        others: (k, ...) of the same kind, k at least 1.
        generator: source of the draws, on the CPU.
        share: of the instances that are exchanged, in 0 .. 1; None draws it between 0.1 and 0.5. Fewer where k is less.

    Returns:
        Instances (m, ...) in which the slide's own keep their places, and the share that is its own.
    """
    m, k = len(instances), len(others)
    n = min(round(m * _drawn(_BAG_SHARE, share, generator)), k)
    leave = torch.randperm(m, generator=generator)[:n]
    enter = torch.randperm(k, generator=generator)[:n]
    mixed = instances.clone()
    mixed[leave.to(mixed.device)] = others[enter.to(others.device)].to(mixed)
    return mixed, 1.0 - n / m


def mix_tiles(
    tiles: Tensor, others: Tensor, generator: torch.Generator, share: float | None = None
) -> tuple[Tensor, float]:
    """Paste whole tiles of another slide, shrunken, into a random share of a slide's tiles.

    Each pasted tile has a side of 0.4 to 0.6 S and a place of its own.

    Args:
        tiles: (m, S, S, C) uint8 on the CPU; not changed.
        others: (k, S, S, C) uint8, k at least 1.
        generator: source of the draws, on the CPU.
        share: of the tiles that get one, in 0 .. 1; None draws it between 0.25 and 0.75.

    Returns:
        Tiles (m, S, S, C) uint8, and the share of their area that is the slide's own.
    """
    m, side = len(tiles), tiles.shape[1]
    n = round(m * _drawn(_TILE_SHARE, share, generator))
    into = torch.randperm(m, generator=generator)[:n].tolist()
    draws = torch.rand(n, 4, dtype=torch.float64, generator=generator).numpy()
    mixed = tiles.clone()
    area = 0
    for row, (which, size, up, left) in zip(into, draws, strict=True):
        s = max(1, round(side * (_SIDE[0] + (_SIDE[1] - _SIDE[0]) * size)))
        small = cv2.resize(others[int(which * len(others))].numpy(), (s, s), interpolation=cv2.INTER_AREA)
        y, x = int(up * (side - s + 1)), int(left * (side - s + 1))
        mixed[row, y : y + s, x : x + s] = torch.from_numpy(np.reshape(small, (s, s, -1)))
        area += s * s
    return mixed, 1.0 - area / (m * side * side)


def _drawn(limits: tuple[float, float], given: float | None, generator: torch.Generator) -> float:
    low, high = limits
    return low + (high - low) * float(torch.rand((), generator=generator)) if given is None else given

"""Label-preserving changes of training tiles: flips, right-angle turns, mild stain jitter.

Tiles go in and come out as uint8, so that both passes of the exact gradient see the very same pixels.
"""

from __future__ import annotations

import torch
from skimage.color import hed_from_rgb, rgb_from_hed

from wsi_ips.recipe import AugmentSettings

__all__ = ["augment_tiles", "jitter_stain"]


def augment_tiles(tiles: torch.Tensor, how: AugmentSettings, generator: torch.Generator) -> torch.Tensor:
    """Change each tile by its own draw.

    Args:
        tiles: (n, S, S, C) uint8.
        how: which changes.
        generator: source of the draws, on the CPU.

    Returns:
        (n, S, S, C) uint8.
    """
    draws = torch.randint(0, 8, (len(tiles),), generator=generator)
    out = tiles.clone()
    for symmetry in range(8):  # the eight symmetries of the square: quarter turns, mirrored or not
        rows = torch.nonzero(draws == symmetry).flatten()
        if len(rows) == 0:
            continue
        some = tiles[rows]
        if how.turns:
            some = torch.rot90(some, symmetry % 4, dims=(1, 2))
        if how.flips and symmetry >= 4:
            some = some.flip(2)
        out[rows] = some
    if how.hed_jitter > 0.0 and tiles.shape[-1] == 3:
        out = jitter_stain(out, how.hed_jitter, generator)
    return out


def jitter_stain(tiles: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Scale and shift haematoxylin, eosin and DAB densities of each tile.

    Args:
        tiles: (n, S, S, 3) uint8.
        strength: largest relative change of a stain's density; a tenth of it is the largest shift.
        generator: source of the draws, on the CPU.

    Returns:
        (n, S, S, 3) uint8.

    In optical density a change of stains is linear: OD' = OD A diag(s) A^-1 + t A^-1, one 3 x 3 matrix a tile.

    Source: stain vectors of Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23, 2001; the jitter of Tellez et al.,
    IEEE Trans. Med. Imaging 37, 2018.
    """
    n = len(tiles)
    to_hed = torch.tensor(hed_from_rgb, dtype=torch.float32)
    to_rgb = torch.tensor(rgb_from_hed, dtype=torch.float32)
    scale = 1.0 + strength * (2.0 * torch.rand(n, 3, generator=generator) - 1.0)
    shift = 0.1 * strength * (2.0 * torch.rand(n, 1, 3, generator=generator) - 1.0)
    change = (to_hed * scale[:, None, :]) @ to_rgb  # (n, 3, 3)
    density = -torch.log(torch.clamp(tiles.float(), min=1.0) / 255.0).reshape(n, -1, 3)
    density = density @ change + shift @ to_rgb
    return (255.0 * torch.exp(-density)).round().clamp(0, 255).to(torch.uint8).reshape(tiles.shape)

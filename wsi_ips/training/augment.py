"""Label-preserving changes of training tiles: flips, turns, a closer look, stain, blur, compression.

Tiles go in and come out as uint8, so that both passes of the exact gradient see the very same pixels. Every tile takes
one row of draws, whatever is switched on and however tiles are grouped, so a slide's tiles depend on its generator alone.

Shapes: n tiles, S side, C channels.
"""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg
import torch

from wsi_ips.recipe import AugmentSettings
from wsi_ips.tiles.stain import jitter_stain

__all__ = ["augment_tiles", "compress", "zoom"]

_N_DRAWS = 12  # 0 symmetry; 1 zoom; 2-7 stain; 8, 9 blur; 10, 11 compression
_MAX_SIGMA = 1.5  # px
_MIN_QUALITY, _MAX_QUALITY = 40, 90
_TURNS = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)


def augment_tiles(tiles: torch.Tensor, how: AugmentSettings, generator: torch.Generator) -> torch.Tensor:
    """Change each tile by its own draw; stain and compression only where tiles are RGB.

    Args:
        tiles: (n, S, S, C) uint8.
        how: which changes.
        generator: source of the draws, on the CPU; one a slide.

    Returns:
        (n, S, S, C) uint8.
    """
    draws = torch.rand(len(tiles), _N_DRAWS, dtype=torch.float64, generator=generator).numpy()
    pixels = np.ascontiguousarray(tiles.numpy())
    out = np.empty_like(pixels)
    is_rgb = pixels.shape[-1] == 3
    for i, u in enumerate(draws):
        tile = _symmetry(pixels[i], int(8 * u[0]), how)
        if how.scale > 0.0:
            tile = zoom(tile, 1.0 + how.scale * u[1])
        if how.hed_jitter > 0.0 and is_rgb:
            tile = jitter_stain(tile, how.hed_jitter, u[2:8])
        if u[8] < how.blur:
            tile = cv2.GaussianBlur(tile, (0, 0), _MAX_SIGMA * (1.0 - u[9]))
        if u[10] < how.jpeg and is_rgb:
            tile = compress(tile, _MIN_QUALITY + int(u[11] * (_MAX_QUALITY - _MIN_QUALITY + 1)))
        out[i] = tile.reshape(out[i].shape)  # OpenCV drops the axis of a single channel
    return torch.from_numpy(out)


def zoom(tile: np.ndarray, factor: float) -> np.ndarray:
    """Look closer around the centre.

    Only closer: looking from farther away would need pixels beyond the tile, and tissue is not made up, not by a mirror
    either. So magnification grows, on average by half the largest factor.

    Args:
        tile: (S, S, C) uint8.
        factor: 1 or more.

    Returns:
        (S, S, C) uint8, bilinear; every value lies between values of the tile.
    """
    side = tile.shape[0]
    edge = (side - 1) / 2.0 * (1.0 - 1.0 / factor)  # px of the tile, from centre of the first pixel
    to_source = np.array([[1.0 / factor, 0.0, edge], [0.0, 1.0 / factor, edge]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(tile, to_source, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def compress(tile: np.ndarray, quality: int) -> np.ndarray:
    """Pass a tile (S, S, 3) uint8 through JPEG with halved chroma, as scanners do; quality in 1 .. 100."""
    data = simplejpeg.encode_jpeg(tile, quality=quality, colorspace="RGB", colorsubsampling="420")
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def _symmetry(tile: np.ndarray, which: int, how: AugmentSettings) -> np.ndarray:
    """Apply one of the eight symmetries of the square: quarter turns, mirrored or not."""
    turn = _TURNS[which % 4] if how.turns else None
    if turn is not None:
        tile = cv2.rotate(tile, turn)
    return cv2.flip(tile, 1) if how.flips and which >= 4 else tile

"""Tiles brought to their size, the same way wherever tiles are read."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["to_size"]


def to_size(pixels: np.ndarray, out: np.ndarray) -> None:
    """Bring (h, w, C) uint8 to (S, S, C)."""
    height, width, n_channels = pixels.shape
    side = out.shape[0]
    how = cv2.INTER_AREA if height >= side and width >= side else cv2.INTER_LINEAR
    if n_channels == 3:
        cv2.resize(pixels, (side, side), dst=out, interpolation=how)
    elif n_channels <= 4:
        out[...] = cv2.resize(pixels, (side, side), interpolation=how).reshape(out.shape)
    else:  # OpenCV resizes four channels at most
        for c in range(n_channels):
            out[..., c] = cv2.resize(np.ascontiguousarray(pixels[..., c]), (side, side), interpolation=how)

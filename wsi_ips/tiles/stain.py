"""Another stain for the same tissue: densities of haematoxylin, eosin and DAB scaled and shifted.

Training changes its tiles so; the same change asks a finished label how much it hangs on the stain.
"""

from __future__ import annotations

import cv2
import numpy as np
from skimage.color import hed_from_rgb, rgb_from_hed

__all__ = ["jitter_stain"]

_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255.0).astype(np.float32)  # optical density of a channel's value


def jitter_stain(tile: np.ndarray, strength: float, draws: np.ndarray) -> np.ndarray:
    """Scale and shift haematoxylin, eosin and DAB densities of a tile.

    Args:
        tile: (S, S, 3) uint8.
        strength: largest relative change of a stain's density; a tenth of it is the largest shift.
        draws: (6,) in 0 .. 1: three for the scale, three for the shift; 0.5 changes nothing.

    Returns:
        (S, S, 3) uint8.

    In optical density a change of stains is linear: OD' = OD A diag(s) A^-1 + t A^-1, one 3 x 3 matrix a tile.

    Source: stain vectors of Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23, 2001; the jitter of Tellez et al.,
    IEEE Trans. Med. Imaging 37, 2018.
    """
    scale = 1.0 + strength * (2.0 * draws[:3] - 1.0)
    shift = 0.1 * strength * (2.0 * draws[3:] - 1.0)
    change = np.concatenate([(hed_from_rgb * scale) @ rgb_from_hed, (shift @ rgb_from_hed)[None]])  # (4, 3)
    light = cv2.transform(cv2.LUT(tile, _DENSITY), -change.T)  # minus the density, float32
    return cv2.convertScaleAbs(cv2.exp(light, light), alpha=255.0)  # rounds and saturates

"""A scanner's colour profile, applied on wish: device RGB to sRGB.

Off by default, because encoders were trained without it; the choice is stored in the bundle.
Source: ICC.1:2022; little CMS through Pillow, perceptual intent.
"""

from __future__ import annotations

import io
import threading

import numpy as np
from PIL import Image, ImageCms

from wsi_ips.errors import UnreadableSlideError
from wsi_ips.slide.limits import MAX_ICC_BYTES

__all__ = ["SrgbTransform"]


class SrgbTransform:
    """Maps (h, w, 3) uint8 of a profile's colours to sRGB; a transform per thread.

    Raises:
        UnreadableSlideError: the profile cannot be used (`E_PIXEL_FORMAT`).
    """

    def __init__(self, profile: bytes, name: str) -> None:
        if len(profile) > MAX_ICC_BYTES:
            raise UnreadableSlideError("E_ABSURD", f"{name}: its colour profile has {len(profile)} bytes")
        self._profile = profile
        self._local = threading.local()
        try:
            self._transform()
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
            message = f"{name}: its colour profile cannot be used; read it with icc 'none'"
            raise UnreadableSlideError("E_PIXEL_FORMAT", message) from error

    def _transform(self) -> ImageCms.ImageCmsTransform:
        if not hasattr(self._local, "transform"):
            source = ImageCms.getOpenProfile(io.BytesIO(self._profile))
            self._local.transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
        return self._local.transform

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Convert (h, w, 3) uint8; returns a new array."""
        if rgb.size == 0:
            return rgb
        image = Image.fromarray(np.ascontiguousarray(rgb))
        ImageCms.applyTransform(image, self._transform(), inPlace=True)
        return np.asarray(image)

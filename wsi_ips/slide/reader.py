"""The front of the room: what a slide is, and the one place where a file becomes one.

The reader is chosen once, from the header and before the first pixel, and never changed because of an error: a second
library that says yes where the first said no returns wrong pixels. See `open_slide` for the rule.
"""

from __future__ import annotations

import os
from typing import Literal

import numpy as np

from wsi_ips.errors import ConfigError
from wsi_ips.slide.opening import Wish, open_any
from wsi_ips.slide.protocol import Level, Region, Slide, TileSlide
from wsi_ips.slide.stamps import Stamps, stamps

__all__ = ["Level", "Region", "Slide", "TileSlide", "offered_shrinks", "open_slide", "read_into", "stamps_of"]


def open_slide(
    path: str | os.PathLike[str], mpp: float | None = None, icc: Literal["none", "srgb"] = "none",
    reader: Literal["auto", "library"] = "auto",
) -> Slide:  # fmt: skip
    """Open a slide with the one reader its format calls for.

    * `scheme://...`: TiffSlide through fsspec (`file://` is local).
    * TIFF by content: checked by our own bounded parser, then OpenSlide or TiffSlide by compression and layout; the
      table is in `tiffcheck`.
    * DICOM (one file, or a folder of one series), MIRAX and everything else: OpenSlide.

    Where OpenSlide is the reader and the file is a tiled TIFF or DICOM of a proven kind, its tiles are decoded straight
    from the file, after some of them were compared with OpenSlide's (`proving`): the same px, several times faster, and
    strictly, where OpenSlide fills in what a damaged JPEG stream lacks.
    The choice is made before the first pixel and never changed because of an error.

    Args:
        path: local file, DICOM folder, or fsspec URI.
        mpp: µm per level-0 px from the manifest; goes before what the file says.
        icc: "srgb" applies the file's colour profile to every px read.
        reader: "library" does without the fast path.

    Raises:
        UnreadableSlideError: `E_MISSING`, `E_NOT_A_FILE`, `E_EMPTY`, `E_NOT_A_SLIDE`, `E_TRUNCATED`, `E_ABSURD`,
            `E_PIXEL_FORMAT`, `E_UNTILED`, `E_PARTS`, `E_UNSUPPORTED`.
        MppError: `E_MPP`, no believable resolution.
    """
    before = stamps(os.fspath(path))
    slide = open_any(os.fspath(path), Wish(mpp, icc, reader))
    slide.path, slide.stamps = os.fspath(path), before
    return slide


def stamps_of(slide: Slide) -> Stamps:
    """Stamps of a slide's files from before it was opened; () for slides in memory. See `stamps.refuse_changed`."""
    return getattr(slide, "stamps", ())


def offered_shrinks(slide: Slide, level: int) -> tuple[int, ...]:
    """Factors by which the decoder of a level shrinks; (1,) for slides that do not say. See `TileSlide.shrinks`."""
    offered = getattr(slide, "shrinks", None)
    return tuple(offered(level)) if offered is not None else (1,)


def read_into(slide: Slide, out: np.ndarray, x0: int, y0: int, level: int, shrink: int = 1) -> int:
    """Read into `out` from any slide; see `TileSlide.read_into`. Other slides know shrink 1 alone."""
    direct = getattr(slide, "read_into", None)  # asking the protocol costs more than a small tile
    if direct is not None:
        return int(direct(out, x0, y0, level, shrink))
    if shrink != 1:
        raise ConfigError(f"{slide.name}: its reader does not shrink (asked for {shrink})")
    region = slide.read_region(x0, y0, level, out.shape[1], out.shape[0])
    out[...] = region.pixels
    return region.n_missing

"""A mask from the manifest: it restricts where tiles are taken, and never adds any.

Either an image over the whole of level 0 (non-zero keeps) or GeoJSON polygons in level-0 px (inside keeps).
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

from wsi_ips.errors import Note, NoTissueError, SlideError
from wsi_ips.slide.reader import Slide
from wsi_ips.tiles.polygons import rasterize, read_polygons
from wsi_ips.tiles.tissue import TissueMask
from wsi_ips.untrusted import may_define_entities

__all__ = ["restrict_tissue"]

_MAX_PX, _MAX_PX_BYTES = 100_000_000, 8  # 8: four channels of 16 bits
_ASPECT_TOLERANCE = 0.01
_GEOJSON = (".json", ".geojson", ".gz")
_TIFF = (".tif", ".tiff")


def restrict_tissue(mask: TissueMask, slide: Slide, path: str | os.PathLike[str]) -> TissueMask:
    """Keep of a tissue mask what lies inside a mask file.

    Args:
        mask: from `find_tissue`.
        slide: the slide both belong to.
        path: `.geojson`, `.json` (also `.gz`), or an image `.png`, `.tif` of any resolution over all of level 0. A
            mask px asks the image px under its centre. Of a pyramidal TIFF the finest level of up to 100
            million px is taken.

    Raises:
        SlideError: `E_MASK`, unreadable; `E_MASK_SIZE`, the image's shape is not the slide's, or it is too large.
        NoTissueError: `E_NO_TISSUE`, no tissue inside.
    """
    path = Path(path)
    notes: tuple[Note, ...] = ()
    if path.suffix.lower() in _GEOJSON:
        area, notes = read_polygons(path)
        keep = rasterize(area, mask.mask.shape, (mask.x0, mask.y0), (mask.downsample_x, mask.downsample_y))
    else:
        keep = _sample(_read_image(path, slide), mask, slide)
    keep &= mask.mask
    share = cv2.countNonZero(keep.view(np.uint8)) / max(1, cv2.countNonZero(mask.mask.view(np.uint8)))
    if not share:
        raise NoTissueError(
            "E_NO_TISSUE",
            f"{slide.name}: none of its {mask.tissue_mm2:.3g} mm² tissue lies inside {path.name}; its "
            "coordinates must be level-0 px of this slide",
        )
    return replace(mask, mask=keep, tissue_mm2=mask.tissue_mm2 * share, notes=(*mask.notes, *notes))


def _sample(image: np.ndarray, mask: TissueMask, slide: Slide) -> np.ndarray:
    """Look an image (H, W) bool over all of level 0 up at the centres of the mask's px: (h, w) bool."""
    width0, height0, _ = slide.levels[0]
    y0 = mask.y0 + (np.arange(mask.mask.shape[0]) + 0.5) * mask.downsample_y
    x0 = mask.x0 + (np.arange(mask.mask.shape[1]) + 0.5) * mask.downsample_x
    rows = np.clip(y0 * image.shape[0] / height0, 0, image.shape[0] - 1).astype(np.int64)
    columns = np.clip(x0 * image.shape[1] / width0, 0, image.shape[1] - 1).astype(np.int64)
    return image[np.ix_(rows, columns)]


def _read_image(path: Path, slide: Slide) -> np.ndarray:
    """Read an image as (H, W) bool, True where any colour is above 0 and, with alpha, where it is not transparent."""
    try:
        if path.suffix.lower() in _TIFF:
            pixels, n_colours = _read_tiff(path, slide)
        elif path.suffix.lower() == ".png":
            pixels, n_colours = _read_png(path, slide)
        else:
            raise SlideError("E_MASK", f"{path.name}: a mask is a .geojson, .json, .png or .tif file")
    except SlideError:
        raise
    except Exception as error:  # decoders raise whatever they like on a broken file
        raise SlideError("E_MASK", f"{path.name}: cannot be read ({type(error).__name__}: {error})") from error
    if pixels.ndim == 2:
        return pixels != 0
    keep = (pixels[..., :n_colours] != 0).any(axis=2)
    return keep & (pixels[..., n_colours:] != 0).all(axis=2)


def _read_png(path: Path, slide: Slide) -> tuple[np.ndarray, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below
        try:
            image = Image.open(path)
        except Image.DecompressionBombError as error:
            raise SlideError("E_MASK_SIZE", f"{path.name}: {error}") from error
    with image:
        _check_size(path, slide, image.size, image.width * image.height * len(image.getbands()))
        return np.asarray(image), len(image.getbands()) - ("A" in image.getbands())


def _read_tiff(path: Path, slide: Slide) -> tuple[np.ndarray, int]:
    with tifffile.TiffFile(path) as tiff:
        if may_define_entities(tiff.pages.first.description):
            raise SlideError("E_MASK", f"{path.name}: the XML in its description may define entities; save it without")
        levels = tiff.series[0].levels
        fitting = [one for one in levels if one.keyframe.imagewidth * one.keyframe.imagelength <= _MAX_PX]
        chosen = (fitting or levels)[0].keyframe
        _check_size(path, slide, (chosen.imagewidth, chosen.imagelength), chosen.nbytes)
        pixels = np.squeeze(chosen.asarray())
        if chosen.planarconfig == 2 and pixels.ndim == 3:  # channels first
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels.reshape(chosen.imagelength, chosen.imagewidth, -1)
        return pixels, pixels.shape[2] - len(chosen.extrasamples)


def _check_size(path: Path, slide: Slide, size: tuple[int, int], n_bytes: int) -> None:
    width0, height0, _ = slide.levels[0]
    width, height = size
    text = f"{path.name}: {width} x {height} px for a slide of {width0} x {height0}"
    if width * height > _MAX_PX or n_bytes > _MAX_PX_BYTES * _MAX_PX:
        raise SlideError("E_MASK_SIZE", f"{text}; at most {_MAX_PX // 10**6} million px of {_MAX_PX_BYTES} bytes are read, make it coarser")
    if abs(width * height0 / (height * width0) - 1.0) > _ASPECT_TOLERANCE:
        raise SlideError("E_MASK_SIZE", f"{text}: the sides must have one ratio, for a mask covers all of level 0")

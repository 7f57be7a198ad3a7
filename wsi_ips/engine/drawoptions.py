"""How a slide's maps are drawn and written: the names that `--formats` takes, and the other choices.

png      pictures with their legend, the page, the tiles that counted
tif      pyramidal RGBA BigTIFF of attention and evidence, for OpenSlide, QuPath, ASAP
geojson  tiles, top tiles and tissue for QuPath, gzipped
asap     likelihood map (float32) and regions (XML) for ASAP
ome      raw values of every map as float32 OME-TIFF, for Bio-Formats, OMERO, napari
qupath   the GeoJSON, a picture to lay over the slide, and a script that loads both
dicom    parametric maps, for slides that are DICOM (extra `dicom`)
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import get_args

from wsi_ips.errors import ConfigError
from wsi_ips.report.heatmap import Scale
from wsi_ips.report.qupath import Origin

__all__ = ["DEFAULT_FORMATS", "FORMATS", "DrawOptions", "read_formats"]

FORMATS = ("png", "tif", "geojson", "asap", "ome", "qupath", "dicom")
DEFAULT_FORMATS = ("png", "tif", "geojson")


@dataclass(frozen=True)
class DrawOptions:
    """How a slide's maps are drawn and written."""

    formats: tuple[str, ...] = DEFAULT_FORMATS
    scale: Scale = "uniform"
    smooth: float = 0.0  # of pictures with a legend, in tile widths
    origin: Origin = "bounds"  # of the GeoJSON
    needs_bag: bool = False  # refuse a ledger without evidence of the whole bag
    is_lenient: bool = False  # leave out formats that a slide cannot have, instead of refusing it

    def __post_init__(self) -> None:
        for name, value, known in (("scale", self.scale, Scale), ("origin", self.origin, Origin)):
            if value not in get_args(known):
                raise ConfigError(f"--{name} {value}: expected {' or '.join(get_args(known))}")
        if not 0.0 <= self.smooth <= 20.0:
            raise ConfigError(f"--smooth {self.smooth:g}: expected 0 to 20 tile widths")


    def one_by_one(self) -> list[DrawOptions]:
        """Split off the one format that a slide may be unable to have, to be written last."""
        rest = tuple(f for f in self.formats if f != "dicom")
        parts = [replace(self, formats=rest)] if rest or not self.formats else []
        return [*parts, replace(self, formats=("dicom",))] if "dicom" in self.formats else parts


def read_formats(text: str) -> tuple[str, ...]:
    """Read "png,asap"; "all" is all of them, "none" none.

    >>> read_formats("tif, png")
    ('png', 'tif')

    Raises:
        ConfigError: an unknown format; the nearest known one is named.
    """
    asked = [part.strip().lower() for part in text.split(",") if part.strip()]
    if asked == ["none"]:
        return ()
    for name in asked:
        if name not in (*FORMATS, "all"):
            near = difflib.get_close_matches(name, FORMATS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"--formats {name}: expected some of {', '.join(FORMATS)}, or all{hint}")
    if not asked:
        raise ConfigError(f"--formats: name some of {', '.join(FORMATS)}, or all")
    return tuple(f for f in FORMATS if f in asked or "all" in asked)

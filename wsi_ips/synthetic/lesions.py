"""Where the lesions of a synthetic slide are: outlines in level-0 px, in the GeoJSON form QuPath reads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely
from shapely.geometry import Polygon, mapping, shape

__all__ = ["lesion_fraction", "read_lesions", "write_lesions"]


def lesion_fraction(coords: np.ndarray, extent0: tuple[float, float], polygons: Sequence[Polygon]) -> np.ndarray:
    """Measure which share of each tile a lesion covers, exactly.

    Args:
        coords: (N, 2) top-left corners, level-0 px.
        extent0: width and height of a tile, level-0 px.
        polygons: outlines in level-0 px; where they overlap they count once.

    Returns:
        (N,) float64 in [0, 1].
    """
    x0, y0 = np.asarray(coords, np.float64).T
    tiles = shapely.box(x0, y0, x0 + extent0[0], y0 + extent0[1])
    lesion = shapely.union_all(list(polygons)) if polygons else Polygon()
    share: np.ndarray = shapely.area(shapely.intersection(tiles, lesion)) / (extent0[0] * extent0[1])
    return np.clip(share, 0.0, 1.0)


def write_lesions(path: str | os.PathLike[str], polygons: Sequence[Polygon]) -> None:
    """Write outlines (level-0 px) as a FeatureCollection of annotations; none gives an empty collection."""
    features = [
        {
            "type": "Feature",
            "geometry": mapping(polygon),
            "properties": {
                "objectType": "annotation",
                "name": f"lesion {number}",
                "classification": {"name": "Tumor", "color": [200, 0, 0]},
            },
        }
        for number, polygon in enumerate(polygons, start=1)
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features}, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")


def read_lesions(path: str | os.PathLike[str]) -> tuple[Polygon, ...]:
    """Read the outlines `write_lesions` wrote, level-0 px."""
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    return tuple(shape(feature["geometry"]) for feature in data["features"])

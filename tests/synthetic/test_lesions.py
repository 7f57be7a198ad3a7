"""Lesion outlines: exact shares, and files that say the same when read again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shapely.geometry import Polygon, box

from wsi_ips.synthetic import lesion_fraction, read_lesions, write_lesions


def test_fraction_of_known_rectangles() -> None:
    """Shares of tiles 20 wide and 10 high under a rectangle are what arithmetic says."""
    coords = np.array([[0, 0], [10, 0], [20, 5], [40, 0]])
    found = lesion_fraction(coords, (20.0, 10.0), [box(10, 0, 40, 10)])
    assert found == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_overlapping_outlines_count_once() -> None:
    """A tile under two outlines is not covered twice."""
    assert lesion_fraction(np.array([[0, 0]]), (10, 10), [box(0, 0, 5, 10), box(0, 0, 5, 10)]) == pytest.approx([0.5])


def test_no_lesion_covers_nothing() -> None:
    """Without outlines every share is zero, also for no tiles."""
    assert lesion_fraction(np.array([[3, 4]]), (10, 10), []).tolist() == [0.0]
    assert lesion_fraction(np.zeros((0, 2)), (10, 10), [box(0, 0, 1, 1)]).shape == (0,)


def test_outlines_survive_the_file(tmp_path: Path) -> None:
    """GeoJSON written is GeoJSON read, in level-0 px, as annotations of a FeatureCollection."""
    outlines = (Polygon([(1.5, 2.0), (30.0, 4.0), (12.0, 50.25)]), box(100, 200, 130, 260))
    write_lesions(tmp_path / "a.geojson", outlines)
    data = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    assert data["type"] == "FeatureCollection"
    assert {f["properties"]["objectType"] for f in data["features"]} == {"annotation"}
    assert all(a.equals(b) for a, b in zip(read_lesions(tmp_path / "a.geojson"), outlines, strict=True))

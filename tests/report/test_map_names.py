"""What maps are called, and what is said of their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wsi_ips.config import TaskSettings
from wsi_ips.engine.drawoptions import DrawOptions
from wsi_ips.engine.formats import format_files, main_maps, still_said
from wsi_ips.report.maps import find_map, list_maps
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slidefiles import id_key

Predict = Callable[..., SlidePrediction]


def test_maps_of_classes_that_differ_in_signs_alone_have_names_of_their_own(make_prediction: Predict) -> None:
    """No picture of one class or task is written over another's: "<5" and ">5" are two files, on every file system."""
    slide = ArraySlide(np.full((701, 1003, 3), 230, np.uint8), mpp=0.5)
    tasks = (
        TaskSettings(name="g?1", kind="multiclass", classes=("<5", ">5", "≥5")),
        TaskSettings(name="g/1", kind="multiclass", classes=("Low", "low", "l" * 50, "l" * 51)),
        TaskSettings(name="G:1", classes=("no", "yes")),
    )
    p = make_prediction(slide, tasks=tasks)
    for names in ([info.name for info in list_maps(p)], [stem for _, stem in main_maps(p)]):
        assert len({id_key(name) for name in names}) == len(names)
    for info in list_maps(p):
        assert find_map(p, info.name) == info


def test_what_was_said_of_files_that_stay_is_kept(make_prediction: Predict, tmp_path: Path) -> None:
    """Maps in percentiles and objects from level 0 are not called otherwise because another format was added."""
    slide = ArraySlide(np.full((701, 1003, 3), 230, np.uint8), mpp=0.5)
    p = make_prediction(slide)
    path = tmp_path / "slide_1.maps.json"
    first = format_files(slide, p, DrawOptions(("tif", "geojson"), "percentile", origin="level0"))[path.name]
    path.write_bytes(first)
    for formats in (("asap",), ("ome",), ("qupath",)):
        now = format_files(slide, p, DrawOptions(formats))[path.name]
        assert json.loads(still_said(path, now, formats)) == json.loads(first)
    now = format_files(slide, p, DrawOptions(("geojson",)))[path.name]
    found = json.loads(still_said(path, now, ("geojson",)))
    assert found["geojson"] == {"origin": "bounds"}
    assert found["maps"] == json.loads(first)["maps"]
    path.write_text("{")
    assert still_said(path, now, ("asap",)) == now

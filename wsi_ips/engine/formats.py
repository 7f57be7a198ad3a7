"""Writes a slide's maps in the formats that other tools open; which are asked for: drawoptions.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wsi_ips.engine.drawoptions import DrawOptions
from wsi_ips.files import read_regular
from wsi_ips.report.asap import asap_xml
from wsi_ips.report.dicommap import dicom_map
from wsi_ips.report.map_switch import rgba_png
from wsi_ips.report.maps import MapFrame, MapInfo, list_maps, tile_map
from wsi_ips.report.markup import asset
from wsi_ips.report.provenance import provenance, provenance_text
from wsi_ips.report.qupath import geojson_gz
from wsi_ips.report.rasters import likelihood_downsample, likelihood_tiff, ome_tiff, raster_downsample, rgba_tiff
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.reader import Slide
from wsi_ips.slidefiles import part_names

__all__ = ["format_files", "is_dicom", "main_maps", "still_said"]

_MOST_BYTES = 16 << 20  # of what is said of maps


def main_maps(p: SlidePrediction) -> list[tuple[MapInfo, str]]:
    """List attention and evidence of each task with the stem of their files: "attention", "evidence.grade"."""
    found, names = [], part_names([task.name for task in p.tasks])
    for info in list_maps(p):
        if info.kind in ("attention", "evidence", "evidence_bag") and info.part < 0:
            task = f".{names[info.task]}" if info.task else ""
            found.append((info, info.kind + task))
    return found


def format_files(slide: Slide, p: SlidePrediction, options: DrawOptions) -> dict[str, bytes]:
    """Write a slide's maps in the formats asked for; pictures and pages ("png") are drawn elsewhere.

    Returns:
        Content by file name, relative to the slide's folder.

    Raises:
        ConfigError: a format that this slide cannot have.
    """
    makers: dict[str, Callable[[], dict[str, bytes]]] = {
        "tif": lambda: {f"{p.slide_id}.{stem}.tif": rgba_tiff(p, tile_map(p, info, options.scale))
                        for info, stem in main_maps(p)},
        "geojson": lambda: _geojson(p, options),
        "asap": lambda: {f"{p.slide_id}_likelihood_map.tif": likelihood_tiff(p, tile_map(p, list_maps(p)[0])),
                         f"{p.slide_id}.asap.xml": asap_xml(p)},
        "ome": lambda: {f"{p.slide_id}.maps.ome.tif": ome_tiff(p, [tile_map(p, i) for i in _numbers(p)])},
        "qupath": lambda: _qupath(p, options),
        "dicom": lambda: {f"{p.slide_id}.{stem}.dcm": dicom_map(slide.path or slide.name, p, tile_map(p, info, options.scale))
                          for info, stem in main_maps(p)},
    }  # fmt: skip
    files: dict[str, bytes] = {}
    for name in options.formats:
        if name in makers and not (name == "dicom" and options.is_lenient and not is_dicom(slide)):
            files |= makers[name]()
    if files:
        files[f"{p.slide_id}.maps.json"] = _sidecar(p, options)
    return files


def _geojson(p: SlidePrediction, options: DrawOptions) -> dict[str, bytes]:
    return {f"{p.slide_id}.attention.geojson.gz": geojson_gz(p, options.origin)}


def _qupath(p: SlidePrediction, options: DrawOptions) -> dict[str, bytes]:
    """QuPath shows the bounds alone, so both the picture and the objects begin at their corner."""
    d = raster_downsample(p)
    name = p.slide_id
    rgba = MapFrame(p, p.bounds, d).rgba8(tile_map(p, list_maps(p)[0], options.scale))
    about = {
        "slide_id": name, "slide": name, "width0": p.bounds.width0, "height0": p.bounds.height0, "downsample": d,
        "overlay": f"{name}.qupath.png", "objects": f"{name}.qupath.geojson.gz", "map": list_maps(p)[0].title,
        "provenance": provenance(p), "model_hash": p.model_hash,
    }  # fmt: skip
    return {
        f"{name}.qupath.png": rgba_png(rgba, about=provenance_text(p)), f"{name}.qupath.geojson.gz": geojson_gz(p, "bounds"),
        f"{name}.qupath.json": json.dumps(about, indent=1).encode(),
        f"{name}.qupath.groovy": asset("qupath_overlay.groovy").encode(),
    }  # fmt: skip


def is_dicom(slide: Slide) -> bool:
    """Tell whether a slide was opened from DICOM."""
    return slide.properties.get("vendor") == "dicom"


def _numbers(p: SlidePrediction) -> Iterable[MapInfo]:
    """Maps that hold numbers, each once: the call's evidence is one of a multiclass task's own."""
    return [i for i in list_maps(p) if i.kind != "selected" and not (i.part < 0 and "evidence" in i.kind and
                                                                      p.tasks[i.task].n_outputs > 1)]  # fmt: skip


def _sidecar(p: SlidePrediction, options: DrawOptions) -> bytes:
    """Say what the files beside it mean, for programs."""
    d = raster_downsample(p)
    maps: dict[str, Any] = {}
    for info, stem in main_maps(p):
        tiles = tile_map(p, info, options.scale)
        c = tiles.colouring
        maps[stem] = {"title": info.title, "normalisation": c.label, "colormap": c.colormap, "low": c.low, "high": c.high,
                      "is_log": c.is_log}  # fmt: skip
    likelihood = likelihood_downsample(p.size0, d)
    about = {
        "slide_id": p.slide_id, "size0": list(p.size0), "bounds": list(p.bounds), "mpp": [p.mpp.x, p.mpp.y],
        "rasters": {"origin": "level-0 px (0, 0)", "downsample": d, "mpp": [p.mpp.x * d, p.mpp.y * d]},
        "likelihood_map": {"downsample": likelihood, "normalisation": "percentile rank 0..1, 0 where no tile is"},
        "geojson": {"origin": options.origin}, "maps": maps, "tile": p.tile.model_dump(), "extent0": list(p.extent0),
        "model_hash": p.model_hash, "settings_hash": p.settings_hash, "provenance": provenance(p),
    }  # fmt: skip
    return json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False).encode()


def still_said(path: Path, now: bytes, formats: Iterable[str]) -> bytes:
    """Keep what the `.maps.json` beside a slide's maps says of files that are not written anew.

    Args:
        path: where it lies.
        now: the new one, from `format_files`.
        formats: what is written.
    """
    try:
        before, about = json.loads(read_regular(path, _MOST_BYTES)), json.loads(now)
    except (OSError, ValueError, RecursionError):
        return now
    if not isinstance(before, dict) or before.get("settings_hash") != about["settings_hash"]:
        return now
    if not {"tif", "dicom"} & set(formats) and set(before.get("maps", ())) == set(about["maps"]):
        about["maps"] = before["maps"]
    if "geojson" not in formats:
        about["geojson"] = before.get("geojson", about["geojson"])
    return json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False).encode()

"""`selftest`: does every output lie where the slide says? Planted squares through the whole path, file by file.

The twin of a slide has its levels, bounds and µm per px, but computed pixels: glass, tissue, and dark squares that are
exactly tiles of the grid. Tissue mask, grid, reading, selection, read-out and drawing are the real ones; only the
encoder and its head are written down by hand (the darker a tile, the more attention), so that the answer is known.
Then every file is opened by somebody else's reader and held against the squares, in level-0 px.

Allowed: 1 level-0 px for polygons, half a px of the map for rasters. Frames: level-0 px (suffix `0`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from wsi_ips.config import (
    AttentionSettings,
    EncoderSettings,
    ModelSettings,
    ReadSettings,
    SelectionSettings,
    TileSpec,
    TissueSettings,
)
from wsi_ips.engine.draw import slide_files
from wsi_ips.engine.drawoptions import DrawOptions
from wsi_ips.engine.featurefiles import FeatureFile
from wsi_ips.engine.formats import is_dicom
from wsi_ips.engine.predict import PredictJob, label_features
from wsi_ips.engine.scan import plan_slide
from wsi_ips.engine.selftest_files import Finding, check_files
from wsi_ips.errors import ConfigError
from wsi_ips.geometry import Box0, Mpp, tile_px_to_level0
from wsi_ips.model.bundle import Bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.features import FeatureInput
from wsi_ips.report.dicommap import dicom_map
from wsi_ips.report.maps import find_map, tile_map
from wsi_ips.results import SlidePrediction
from wsi_ips.slide.protocol import Level
from wsi_ips.slide.reader import Slide, open_slide
from wsi_ips.slide.twinslide import TwinSlide, twin_of
from wsi_ips.tiles.stream import stream_tiles

__all__ = ["CASES", "Case", "run_selftest", "selftest_slide"]

_N_SQUARES = 3
_TILES = (TileSpec(size_px=224, mpp=0.5), TileSpec(size_px=64, mpp=0.5))  # taken where enough of them fit
_LEAST_TILES = 12  # along the shorter side


class Case(NamedTuple):
    """A geometry that is awkward in its own way; what `selftest` without a slide goes through."""

    name: str
    size0: tuple[int, int]
    mpp: Mpp
    downsamples: tuple[float, ...] = (1.0, 4.0, 16.0)
    bounds: Box0 | None = None
    overlap_px: int = 0


CASES = (
    Case("odd sizes", (30_011, 20_507), Mpp(0.5, 0.5, "selftest")),
    Case("tall, downsamples that are not whole", (17_001, 40_013), Mpp(0.2517, 0.2517, "selftest"), (1.0, 3.9973, 15.91)),
    Case("bounds", (60_001, 50_003), Mpp(0.25, 0.25, "selftest"), (1.0, 4.0, 16.0, 64.0), Box0(12_345, 7_891, 30_003, 28_001)),
    Case("overlap, px that are not square", (21_003, 26_001), Mpp(0.243, 0.2441, "selftest"), overlap_px=64),
    Case("coarse, one level", (9_001, 7_003), Mpp(0.5, 0.5, "selftest"), (1.0,)),
)  # fmt: skip


def run_selftest(path: str | None = None, mpp: float | None = None, keep: Path | None = None) -> list[tuple[str, list[Finding]]]:
    """Test the outputs for one slide's geometry, or for all of `CASES`.

    Args:
        path: a slide; only its header is read. None takes the built-in cases.
        mpp: µm per level-0 px, for a slide that does not say.
        keep: folder for the files; None keeps nothing.

    Returns:
        Name and findings of each case.

    Raises:
        SlideError: the slide cannot be opened.
        ConfigError: it is too small to hold the squares.
    """
    if path is None:
        twins = [(case.name, _twin_of_case(case), case.overlap_px) for case in CASES]
        return [(name, selftest_slide(twin, overlap_px=overlap, keep=keep)) for name, twin, overlap in twins]
    with open_slide(path, mpp) as slide:
        return [(slide.name, selftest_slide(slide, keep=keep))]


def _twin_of_case(case: Case) -> TwinSlide:
    width, height = case.size0
    levels = [Level(int(width / d), int(height / d), d) for d in case.downsamples]
    return TwinSlide(levels, mpp=case.mpp, bounds=case.bounds, name=case.name)


def selftest_slide(slide: Slide, *, overlap_px: int = 0, keep: Path | None = None) -> list[Finding]:
    """Plant squares into the twin of a slide, label and draw it, and measure where the squares are in every file."""
    settings = _settings(slide, overlap_px)
    squares = _squares(slide, settings.tile)
    with twin_of(slide, squares) as twin:
        prediction = _label(twin, settings, squares)
        row = {"slide_id": prediction.slide_id, "status": "ok"}
        formats = ("png", "tif", "geojson", "asap", "ome", "qupath")
        files = slide_files(twin, prediction, row, DrawOptions(formats))
        if is_dicom(slide) and slide.path:
            # three squares alike have no evidence one by one, and a 0 cannot be told from glass there
            selected = tile_map(prediction, find_map(prediction, "selected"))
            files[f"{prediction.slide_id}.selected.dcm"] = dicom_map(slide.path, prediction, selected)
    if keep is not None:
        for name, data in files.items():
            file = keep / slide.name.replace("/", "_") / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    return check_files(prediction, files, squares, slide.path)


def _settings(slide: Slide, overlap_px: int) -> ModelSettings:
    """A model of one head that looks at how dark a tile is; tiles that fit the slide."""
    finest = max(slide.mpp.x, slide.mpp.y)
    shorter_um = min(slide.bounds.width0 * slide.mpp.x, slide.bounds.height0 * slide.mpp.y)
    coarse = TileSpec(size_px=16, mpp=finest)
    fits = [t for t in _TILES if t.mpp >= finest and shorter_um >= _LEAST_TILES * t.size_px * t.mpp]
    tile = (fits or [coarse])[0].replace(overlap_px=overlap_px if fits else 0)
    side_um = tile.size_px * tile.mpp
    return ModelSettings(
        encoder=EncoderSettings(name="features", width=4),
        attention=AttentionSettings(dim=4, n_heads=1, dropout=0.0),
        selection=SelectionSettings(memory_size=_N_SQUARES),
        tile=tile,
        tissue=TissueSettings(view_mpp=min(8.0, max(0.51, side_um / 8)), min_region_um2=0.0),
    )


def _squares(slide: Slide, tile: TileSpec) -> list[Box0]:
    """Choose tiles of the grid near two corners and in the middle, none mirrored into another."""
    b, axes = slide.bounds, []
    for start0, length0, mpp in ((b.x0, b.width0, slide.mpp.x), (b.y0, b.height0, slide.mpp.y)):
        extent0 = tile_px_to_level0(tile.size_px, tile.mpp, mpp)
        stride0 = extent0 * (tile.size_px - tile.overlap_px) / tile.size_px
        n = int((length0 - extent0) / stride0)
        if n < 8:
            raise ConfigError(f"{slide.name}: {length0} px along one side is too small for planted squares")
        axes.append([(round(start0 + i * stride0), math.floor(extent0)) for i in (1, n // 2 + 1, n - 2)])
    (x, y) = axes
    places = [(x[0], y[1]), (x[1], y[2]), (x[2], y[0])]
    return [Box0(left, top, width, height) for (left, width), (top, height) in places]


def _label(twin: TwinSlide, settings: ModelSettings, squares: list[Box0]) -> SlidePrediction:
    grid = plan_slide(twin, settings, ReadSettings()).grid
    features = np.zeros((len(grid.coords), 4), np.float32)
    for chunk in stream_tiles(twin, grid, chunk_size=64):
        if chunk.failed.any():
            raise ConfigError(f"{twin.name}: a tile of the twin could not be read")
        # the squares are bluer than anything: 0 on tissue and glass, 1 where the whole tile is square
        red = chunk.pixels[..., 0].reshape(len(chunk.rows), -1).mean(axis=1)
        features[chunk.rows] = np.stack([(226.0 - np.minimum(red, 226.0)) / 182.0, red / 255.0, 0 * red, 0 * red + 1.0], 1)
    file = FeatureFile("twin", features, grid.coords, grid.extent0)
    bundle = Bundle(settings, _by_darkness(settings), "5e1f" * 16, {})
    found = label_features(file, bundle, PredictJob("selftest"), twin).prediction
    found = replace(found, tile=settings.tile)  # a file of features does not tell the overlap
    missing = {tuple(c) for c in found.coords[found.selected].tolist()} ^ {(s.x0, s.y0) for s in squares}
    if missing:
        raise ConfigError(f"{twin.name}: the planted squares were not the tiles selected; these differ: {sorted(missing)}")
    return found


def _by_darkness(settings: ModelSettings) -> IPSClassifier:
    """Attention logit 12 x darkness."""
    torch.manual_seed(0)
    classifier = IPSClassifier(FeatureInput(4), settings).eval()
    a = classifier.attention
    with torch.no_grad():
        for layer in (a.to_query, a.to_key, a.to_value, a.to_out):
            layer.weight.copy_(torch.eye(4))
        a.query.copy_(torch.tensor([[24.0, 0.0, 0.0, 0.0]]))  # over sqrt(4)
        next(classifier.heads.parameters()).copy_(torch.tensor([[1.0, -1.0, 0.5, 0.0]]))
    return classifier

"""Predictions of any number of tiles for drawing, on a slide that costs nothing: a pass made up, without an encoder.

`realistic`: pieces of tissue with smooth edges and holes, attention that gathers in a few places, some noise.
`worst`: three places of ten have no tile, at random; attention is random, so nothing compresses and nothing is alike.
"""

from __future__ import annotations

import math
from typing import Literal

import cv2
import numpy as np

from wsi_ips.config import TaskSettings, TileSpec
from wsi_ips.geometry import Box0, Mpp
from wsi_ips.results import SlidePrediction, TissueOutline
from wsi_ips.slide.protocol import Level
from wsi_ips.slide.twinslide import Disc0, TwinSlide

__all__ = ["Case", "make_heatmap_slide", "make_prediction"]

Case = Literal["realistic", "worst"]
_SIDE0 = 256  # of a tile, level-0 px
_M, _HEADS, _DIM = 256, 8, 512


def make_prediction(n_tiles: int, case: Case, n_heads: int = _HEADS, seed: int = 0) -> SlidePrediction:
    """Make up what a pass found: N tiles of 256 px at 0.5 µm/px, one binary task, M = 256, D = 512."""
    rng = np.random.default_rng(seed)
    columns = math.ceil(math.sqrt(n_tiles * 1.4 * 1.3))
    rows = math.ceil(n_tiles * 1.4 / columns) + 1
    field = _clouds(rng, rows, columns, 40) if case == "realistic" else rng.random((rows, columns), np.float32)
    is_tile = field >= np.partition(field.ravel(), -n_tiles)[-n_tiles]
    row, column = np.nonzero(is_tile)
    coords = np.column_stack([column, row])[:n_tiles].astype(np.int64) * _SIDE0
    logits = _logits(rng, case, (rows, columns), n_heads)[coords[:, 1] // _SIDE0, coords[:, 0] // _SIDE0][:, None]  # (N, 1, H)
    weights = np.exp(logits.astype(np.float64))
    attention = (weights / weights.sum(axis=0)).mean(axis=2)
    selected = np.argsort(-attention[:, 0], kind="stable")[: min(_M, n_tiles)]
    mask = cv2.resize(is_tile.astype(np.uint8), (1414, 1060), interpolation=cv2.INTER_LINEAR if case == "worst" else cv2.INTER_CUBIC) > 0
    width, height = columns * _SIDE0, rows * _SIDE0
    return SlidePrediction(
        slide_id=case, tasks=(TaskSettings(classes=("normal", "tumor")),), tile=TileSpec(size_px=_SIDE0, mpp=0.5), coords=coords,
        extent0=(float(_SIDE0), float(_SIDE0)), tissue=np.ones(len(coords), np.float32), logits=logits,
        attention=attention.astype(np.float32), selected=selected, values=rng.normal(size=(len(selected), _DIM)).astype(np.float32),
        evidence=rng.normal(0.0, 0.05, (len(selected), 1)).astype(np.float32), outputs=np.array([1.3], np.float32),
        mpp=Mpp(0.5, 0.5, "manifest"), bounds=Box0(0, 0, width, height), size0=(width, height),
        outline=TissueOutline(mask, 0, 0, width / mask.shape[1], height / mask.shape[0]), tissue_mm2=1000.0, reader="twin",
        model_hash="0123456789abcdef" * 4, settings_hash="fedcba9876543210" * 4,
    )  # fmt: skip


def make_heatmap_slide(p: SlidePrediction) -> TwinSlide:
    """Draw the slide of a prediction: one disc of tissue, levels down to some 500 px."""
    width, height = p.size0
    levels = [Level(width // d, height // d, float(d)) for d in (1, 4, 16, 64, 256) if min(width, height) // d > 64]
    discs = (Disc0(width / 2, height / 2, 0.48 * min(width, height)),)
    return TwinSlide(levels, mpp=p.mpp, discs=discs, bounds=p.bounds, name=p.slide_id)


def _clouds(rng: np.random.Generator, rows: int, columns: int, step: int) -> np.ndarray:
    """A smooth random field (rows, columns) float32."""
    coarse = rng.normal(size=(rows // step + 3, columns // step + 3)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC))


def _logits(rng: np.random.Generator, case: Case, shape: tuple[int, int], n_heads: int) -> np.ndarray:
    """Attention logits (rows, columns, H) float32."""
    if case == "worst":
        return rng.normal(0.0, 2.0, (*shape, n_heads)).astype(np.float32)
    fields = [2.5 * _clouds(rng, *shape, 25) + 0.6 * rng.normal(size=shape) for _ in range(n_heads)]
    return np.stack(fields, axis=-1).astype(np.float32)

"""A drawn slide and a made prediction for it: awkward sizes, an offset scan, known attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pytest

from wsi_ips.config import TaskSettings, TileSpec
from wsi_ips.errors import Note
from wsi_ips.geometry import Box0
from wsi_ips.results import SlidePrediction, TissueOutline
from wsi_ips.slide.backends import ArraySlide

BINARY = TaskSettings(classes=("normal", "tumor"))


@lru_cache(maxsize=16)
def draw_tissue(width: int, height: int, bounds: Box0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw two pieces of pink tissue with dark nuclei: pixels (height, width, 3) uint8 and mask (height, width)."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    cx, cy = bounds.x0 + bounds.width0 // 2, bounds.y0 + bounds.height0 // 2
    axes = (bounds.width0 // 3, bounds.height0 // 3)
    cv2.ellipse(mask, (cx, cy), axes, 20, 0, 360, 1, -1)
    cv2.ellipse(mask, (cx, cy), (axes[0] // 4, axes[1] // 3), 60, 0, 360, 0, -1)
    pixels = np.full((height, width, 3), 243, np.uint8)
    pixels[mask > 0] = (226, 160, 196)
    for x, y in rng.integers(0, (width, height), (width * height // 900, 2)):
        if mask[y, x]:
            cv2.circle(pixels, (int(x), int(y)), int(rng.integers(3, 7)), (110, 70, 150), -1)
    noise = rng.integers(-12, 13, (height, width, 1))
    return np.clip(pixels.astype(np.int16) + noise, 0, 255).astype(np.uint8), mask > 0


@pytest.fixture(scope="session")
def make_slide() -> Callable[..., ArraySlide]:
    """Draw a slide: `make_slide(width, height, bounds=None, n_levels=2)`."""

    def make(
        width: int = 1537, height: int = 1011, bounds: Box0 | None = None, n_levels: int = 2, **more: Any
    ) -> ArraySlide:
        box = bounds or Box0(0, 0, width, height)
        pixels, _ = draw_tissue(width, height, box)
        levels = [pixels]
        for i in range(1, n_levels):
            levels.append(cv2.resize(pixels, (width // 4**i, height // 4**i), interpolation=cv2.INTER_AREA))
        return ArraySlide(levels, bounds=box, name="drawn", **more)

    return make


@pytest.fixture(scope="session")
def make_prediction() -> Callable[..., SlidePrediction]:
    """Make a prediction for a slide: attention uniform but for one hot tile, at `hot` (row number)."""

    def make(
        slide: ArraySlide, *, tile_px: int = 61, step_px: int | None = None, hot: int | None = None,
        times: float = 50.0, m: int = 12, tasks: tuple[TaskSettings, ...] = (BINARY,), seed: int = 0, **more: Any,
    ) -> SlidePrediction:  # fmt: skip
        b, step = slide.bounds, step_px or tile_px
        xs = np.arange(b.x0, b.x0 + b.width0 - tile_px + 1, step)
        ys = np.arange(b.y0, b.y0 + b.height0 - tile_px + 1, step)
        coords = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2).astype(np.int64)
        n, rng = len(coords), np.random.default_rng(seed)
        attention = np.ones((n, len(tasks)))
        if hot is not None:
            attention[hot] = times
        attention /= attention.sum(axis=0)
        selected = np.argsort(-attention.mean(axis=1), kind="stable")[:m]
        n_outputs = sum(t.n_outputs for t in tasks)
        mask = np.zeros((b.height0 // 8 + 1, b.width0 // 8 + 1), bool)
        _, full = draw_tissue(b.x0 + b.width0, b.y0 + b.height0, b)
        small = full[b.y0 :: 8, b.x0 :: 8]
        mask[: small.shape[0], : small.shape[1]] = small
        fields: dict[str, Any] = {
            "slide_id": "slide_1", "tasks": tasks, "tile": TileSpec(size_px=tile_px, mpp=slide.mpp.x), "coords": coords,
            "extent0": (float(tile_px), float(tile_px)), "tissue": np.ones(n, np.float32),
            "logits": np.log(attention)[..., None].astype(np.float32), "attention": attention.astype(np.float32),
            "selected": selected, "values": np.zeros((len(selected), 4), np.float32),
            "evidence": rng.normal(0, 0.1, (len(selected), n_outputs)).astype(np.float32),
            "outputs": rng.normal(0, 2, n_outputs).astype(np.float32), "mpp": slide.mpp, "bounds": b,
            "size0": (slide.levels[0].width, slide.levels[0].height),
            "outline": TissueOutline(mask, b.x0, b.y0, 8.0, 8.0),
            "tissue_mm2": 1.234, "reader": slide.reader, "model_hash": "0123456789abcdef" * 4,
            "settings_hash": "fedcba9876543210" * 4, "notes": (Note("E_MADE", "this slide was drawn, not scanned"),),
        }  # fmt: skip
        return SlidePrediction(**{**fields, **more})

    return make

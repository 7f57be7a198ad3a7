"""Small slides in memory, never square, with known things on known px."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from wsi_ips.slide.arrayslide import ArraySlide

GLASS = (242, 240, 243)
EOSIN = (214, 130, 172)


@pytest.fixture
def glass() -> Callable[..., np.ndarray]:
    """Glass with a scanner's noise, (H, W, 3) uint8."""

    def make(
        height: int, width: int, colour: tuple[int, int, int] = GLASS, noise: float = 2.0, seed: int = 7
    ) -> np.ndarray:
        rng = np.random.default_rng(seed)
        patch = np.clip(rng.normal(colour, noise, (331, 337, 3)), 0, 255).astype(np.uint8)
        return np.tile(patch, (height // 331 + 1, width // 337 + 1, 1))[:height, :width].copy()

    return make


@pytest.fixture
def stained(glass: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Glass with a rectangle (x, y, w, h) of stain on it."""

    def make(
        height: int, width: int, box: tuple[int, int, int, int], colour: tuple[int, int, int] = EOSIN
    ) -> np.ndarray:
        pixels = glass(height, width)
        x, y, w, h = box
        pixels[y : y + h, x : x + w] = glass(h, w, colour, noise=9.0, seed=3)
        return pixels

    return make


@pytest.fixture
def coordinates() -> Callable[..., ArraySlide]:
    """A slide whose px hold their own level-0 place: channels are x % 256, y % 256, x // 256 + 16 * (y // 256)."""

    def make(height: int, width: int, **options: object) -> ArraySlide:
        y, x = np.mgrid[:height, :width]
        return ArraySlide(np.stack([x % 256, y % 256, x // 256 + 16 * (y // 256)], axis=-1).astype(np.uint8), **options)

    return make


@pytest.fixture
def pyramid() -> Callable[..., list[np.ndarray]]:
    """Levels of a slide by area averaging, the finest first."""

    def make(pixels: np.ndarray, *factors: int) -> list[np.ndarray]:
        height, width = pixels.shape[:2]
        smaller = [cv2.resize(pixels, (width // f, height // f), interpolation=cv2.INTER_AREA) for f in factors]
        return [pixels, *smaller]

    return make

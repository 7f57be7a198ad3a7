"""Paints a slide that looks like H&E to software: tissue on glass, fibres, nuclei, lesions, pen.

Two maps of optical density are painted, one a stain (haematoxylin, eosin), and turned into colours by Beer and Lambert
through a table of all pairs. A lesion is a cluster of crowded, dark, enlarged nuclei. Each slide also has decoys:
clusters of small round dark nuclei (as lymphoid follicles have) in both classes, slow changes of density and stain.

Frames: everything is in level-0 px unless its name says µm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from shapely.geometry import Polygon

from wsi_ips.synthetic.shapes import blob, grow, inside, scatter, spread

__all__ = ["PaintedSlide", "SlideRecipe", "paint_slide"]

_PER_OD = 100.0  # density maps are uint8: 100 = one unit of optical density


class _Stain(NamedTuple):
    """Optical density per unit of stain in R, G, B, and the glass."""

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    glass: tuple[int, int, int]


# A: after Ruifrok and Johnston's vectors; B: a bluer haematoxylin and a more orange, paler eosin
_STAINS = {
    "A": _Stain((0.65, 0.70, 0.29), (0.09, 0.95, 0.30), (243, 242, 244)),
    "B": _Stain((0.78, 0.60, 0.20), (0.12, 0.80, 0.55), (240, 241, 236)),
}
_PENS = {"green": (20, 130, 60), "blue": (30, 50, 170), "black": (25, 25, 30), "red": (190, 20, 35)}


@dataclass(frozen=True)
class SlideRecipe:
    """Everything that decides a painted slide."""

    seed: int
    width: int = 2900
    """Level-0 px."""
    height: int = 2100
    """Level-0 px."""
    mpp: float = 0.5
    """µm per level-0 px; nuclei keep their physical size."""
    has_lesion: bool = False
    """Two or three lesions."""
    lesion_share: float | None = None
    """Instead: lesions all over, that cover about this share of the tissue, 0 to 0.7."""
    stain: str = "A"
    """Batch "A" or "B"."""
    pen: str | None = None
    """Colour of pen strokes: "green", "blue", "black", "red" or none."""


class PaintedSlide(NamedTuple):
    """A painted slide and what is known about it."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    tissue: np.ndarray  # (H // 8, W // 8) bool
    lesions: tuple[Polygon, ...]  # level-0 px


class _Kind(NamedTuple):
    """Nuclei of one kind."""

    per_mm2: float
    radius_um: tuple[float, float]  # median of the mean half-axis; spread (log)
    roundness: tuple[float, float]  # short over long half-axis, range
    density: tuple[float, float]  # optical density, range


_STROMA = _Kind(2800.0, (2.9, 0.16), (0.40, 0.95), (0.55, 1.05))
_LYMPHOID = _Kind(15000.0, (2.3, 0.08), (0.85, 1.00), (0.90, 1.30))
_TUMOUR = _Kind(6500.0, (4.6, 0.20), (0.60, 0.95), (0.90, 1.45))


def paint_slide(recipe: SlideRecipe) -> PaintedSlide:
    """Paint a slide; the same recipe gives the same pixels.

    Two slides that differ in their lesions alone share tissue and decoys.
    """
    rng, own = (np.random.default_rng([recipe.seed, part]) for part in (0, 1))
    size = (recipe.width, recipe.height)
    soft = _tissue(rng, size, recipe.mpp)  # (h, w) float32 in [0, 1], one px per 8
    tissue = soft > 0.5
    haem, eosin = _ground(rng, soft, size, recipe.mpp)
    sizes_um = (45.0, 110.0) if recipe.lesion_share is None else (30.0, 60.0)  # small decoys leave room for lesions
    nodules = _place(rng, tissue, int(rng.integers(1, 4)), sizes_um, recipe.mpp)
    lesions: tuple[Polygon, ...] = ()
    if recipe.lesion_share is not None:
        lesions = spread(own, tissue, recipe.lesion_share, recipe.mpp, avoid=nodules)
    elif recipe.has_lesion:
        lesions = _place(own, tissue, int(own.integers(2, 4)), (80.0, 130.0), recipe.mpp, avoid=nodules)
    clusters = (*nodules, *lesions)
    centres = scatter(rng, _STROMA.per_mm2 * _mottle(rng, tissue.shape, 0.5, 1.6) * tissue, recipe.mpp)
    centres = centres[~inside(centres, clusters)]
    _stamp(rng, haem, centres, _STROMA, recipe.mpp)
    for nodule in nodules:
        _stamp(rng, haem, grow(rng, nodule, _LYMPHOID.per_mm2, recipe.mpp), _LYMPHOID, recipe.mpp)
    for lesion in lesions:
        _stamp(own, haem, grow(own, lesion, _TUMOUR.per_mm2, recipe.mpp), _TUMOUR, recipe.mpp)
    pixels = _develop(rng, haem, eosin, _STAINS[recipe.stain])
    if recipe.pen is not None:
        _draw_pen(rng, pixels, _PENS[recipe.pen])
    return PaintedSlide(_add_noise(rng, pixels), tissue, lesions)


def _tissue(rng: np.random.Generator, size: tuple[int, int], mpp: float) -> np.ndarray:
    """One piece or two with smooth irregular outlines, and round holes: (h, w) float32, one px per 8 level-0 px."""
    width, height = size[0] // 8, size[1] // 8
    mask = np.zeros((height, width), np.uint8)
    one, two = [(0.5, 0.5, 0.44, 0.42)], [(0.27, 0.50, 0.23, 0.40), (0.74, 0.50, 0.22, 0.38)]
    for x, y, rx, ry in one if rng.random() < 0.7 else two:
        centre = np.array([x * width, y * height]) + rng.normal(0.0, 4.0, 2)
        outline = blob(rng, centre, np.array([rx * width, ry * height]), 0.13)
        cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 255)
    for _ in range(int(rng.integers(4, 14))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        cv2.circle(mask, (int(x), int(y)), max(2, int(rng.uniform(12.0, 45.0) / mpp / 8)), 0, -1)
    return cv2.GaussianBlur(mask, (0, 0), 0.8).astype(np.float32) / 255.0


def _ground(
    rng: np.random.Generator, soft: np.ndarray, size: tuple[int, int], mpp: float
) -> tuple[np.ndarray, np.ndarray]:
    """Stroma without nuclei: density of haematoxylin and eosin, (H, W) uint8 each."""
    half = (-(-size[0] // 2), -(-size[1] // 2))
    fibres = []
    for across in (True, False):  # two directions, blended by a slow map
        along, thin = 9.0 / mpp, 0.9 / mpp
        # wrapped before the blur, so that it repeats without a seam
        noise = np.pad(rng.standard_normal((512, 512), dtype=np.float32), 64, mode="wrap")
        sigma = (along / 2, thin / 2) if across else (thin / 2, along / 2)
        grain: np.ndarray = cv2.GaussianBlur(noise, (0, 0), sigma[0], sigmaY=sigma[1])[64:-64, 64:-64]
        grain = grain / float(grain.std())
        repeat = np.tile(grain, (-(-half[1] // 512), -(-half[0] // 512)))
        fibres.append(repeat[: half[1], : half[0]])
    blend = cv2.resize(_mottle(rng, soft.shape, 0.0, 1.0), half, interpolation=cv2.INTER_LINEAR)
    cloud = cv2.resize(_mottle(rng, soft.shape, 0.6, 1.3), half, interpolation=cv2.INTER_LINEAR)
    here = cv2.resize(soft, half, interpolation=cv2.INTER_LINEAR)
    strength = rng.uniform(0.8, 1.2, 2)
    eosin = strength[0] * here * cloud * (0.42 + 0.11 * (blend * fibres[0] + (1.0 - blend) * fibres[1]))
    haem = strength[1] * here * (0.05 + 0.06 * cloud)
    maps = [np.clip(m * _PER_OD, 0, 255).astype(np.uint8) for m in (haem, eosin)]
    first, second = (cv2.resize(m, size, interpolation=cv2.INTER_LINEAR) for m in maps)
    return first, second


def _mottle(rng: np.random.Generator, shape: tuple[int, int], low: float, high: float) -> np.ndarray:
    """A slow random map (h, w) float32 between two values."""
    coarse = rng.random((shape[0] // 40 + 3, shape[1] // 40 + 3), dtype=np.float32)
    smooth = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth, 0.0, 1.0) * (high - low) + low


def _place(
    rng: np.random.Generator,
    tissue: np.ndarray,
    count: int,
    radius_um: tuple[float, float],
    mpp: float,
    avoid: tuple[Polygon, ...] = (),
) -> tuple[Polygon, ...]:
    """Put up to `count` smooth outlines into the tissue, apart from each other; at least one always finds a place."""
    placed: list[Polygon] = []
    depth = cv2.distanceTransform(np.pad(tissue.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1] * 8
    for _ in range(count):
        radius = rng.uniform(*radius_um) / mpp
        for attempt in range(40):
            room = depth > min(0.8 * radius, 0.6 * float(depth.max()))
            y, x = np.argwhere(room)[rng.integers(int(room.sum()))]
            shape = rng.uniform(0.75, 1.3)
            centre = np.array([x, y]) * 8.0 + 4.0
            outline = Polygon(blob(rng, centre, np.array([radius * shape, radius / shape]), 0.12))
            is_free = all(outline.distance(other) > 30.0 / mpp for other in (*placed, *avoid))
            if is_free or (attempt == 39 and not placed):
                placed.append(outline)
                break
    return tuple(placed)


def _stamp(rng: np.random.Generator, haem: np.ndarray, centres: np.ndarray, kind: _Kind, mpp: float) -> None:
    """Draw nuclei (n, 2) into the density map, sixteenth-px exact."""
    n = len(centres)
    mean = kind.radius_um[0] / mpp * np.exp(rng.normal(0.0, kind.radius_um[1], n))
    ratio = rng.uniform(*kind.roundness, n)
    axes = np.stack([mean / np.sqrt(ratio), mean * np.sqrt(ratio)], axis=1)
    angles = rng.uniform(0.0, 180.0, n)
    shades = np.round(rng.uniform(*kind.density, n) * _PER_OD).astype(int)
    fixed = np.round(centres * 16).astype(int).tolist()
    half = np.round(axes * 16).astype(int).tolist()
    for (x, y), axis, angle, shade in zip(fixed, half, angles.tolist(), shades.tolist(), strict=True):
        cv2.ellipse(haem, (x, y), axis, angle, 0.0, 360.0, shade, -1, cv2.LINE_AA, 4)


def _develop(rng: np.random.Generator, haem: np.ndarray, eosin: np.ndarray, stain: _Stain) -> np.ndarray:
    """Turn densities into colours: I = I0 * exp(-c), (H, W, 3) uint8.

    Source: Ruifrok and Johnston, Analytical and Quantitative Cytology and Histology 23(4), 2001 (densities add up).
    """
    strength = rng.uniform(0.9, 1.1, 2)
    steps = np.arange(256) / _PER_OD
    amounts = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1) * strength  # (256, 256, 2)
    density = amounts @ np.array([stain.haematoxylin, stain.eosin])
    table = np.round(np.array(stain.glass) * np.exp(-density)).astype(np.uint8).reshape(-1, 3)
    chromatin = rng.normal(1.0, 0.13, (256, 256))
    chromatin = np.round(np.clip(chromatin, 0.5, 1.5) * 128).astype(np.uint8)
    repeat = np.tile(chromatin, (-(-haem.shape[0] // 256), -(-haem.shape[1] // 256)))[: haem.shape[0], : haem.shape[1]]
    grainy = cv2.multiply(haem, repeat, scale=1 / 128)
    pairs = (grainy.astype(np.uint16) << 8) | eosin
    return np.take(table, pairs, axis=0)


def _draw_pen(rng: np.random.Generator, pixels: np.ndarray, colour: tuple[int, int, int]) -> None:
    """One or two curved strokes near an edge of the slide, partly over tissue."""
    height, width = pixels.shape[:2]
    for _ in range(int(rng.integers(1, 3))):
        side = rng.uniform(0.04, 0.16) if rng.random() < 0.5 else rng.uniform(0.84, 0.96)
        along = np.linspace(rng.uniform(0.02, 0.3), rng.uniform(0.6, 0.98), 60)
        wave = side + 0.03 * np.sin(along * rng.uniform(4.0, 14.0) + rng.uniform(0.0, 6.0))
        points = np.stack([along * width, wave * height], axis=1)
        if rng.random() < 0.4:
            points = np.stack([wave * width, along * height], axis=1)
        line = [np.round(points).astype(np.int32)]
        cv2.polylines(pixels, line, False, colour, int(rng.integers(18, 44)), cv2.LINE_AA)


def _add_noise(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Add sensor noise of about 1.5 grey values."""
    noise = np.round(rng.normal(0.0, 1.5, (257, 251, 3))).astype(np.int16)  # odd sides: no visible repeat on tiles
    height, width = pixels.shape[:2]
    repeat = np.tile(noise, (-(-height // 257), -(-width // 251), 1))[:height, :width]
    return cv2.add(pixels, repeat, dtype=cv2.CV_8U)

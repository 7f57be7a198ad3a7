"""A cohort in a folder: slides, lesion outlines, a manifest with patient-level splits.

    FOLDER/manifest.csv   slides/<slide_id>.tif   lesions/<slide_id>.geojson

Nothing but the lesions tells the classes apart: stain batch, site, pen and size are dealt out evenly to both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_ips.errors import ConfigError
from wsi_ips.synthetic.lesions import write_lesions
from wsi_ips.synthetic.painting import PaintedSlide, SlideRecipe, paint_slide
from wsi_ips.synthetic.pyramid import PyramidPlan, array_source, write_pyramid
from wsi_ips.tables import csv_bytes

__all__ = ["PlannedSlide", "check_counts", "make_cohort", "write_slide", "write_table"]

_COLUMNS = ("slide_path", "slide_id", "patient_id", "label", "split", "site", "stain", "note")
_PENS = (None, None, None, "green", None, None, "blue", None, None, "black", None, None, "red", None)
_SMALLEST, _LARGEST = 0.3, 8.0  # scale


@dataclass(frozen=True)
class PlannedSlide:
    """A slide to paint, and its place in the cohort."""

    slide_id: str
    patient_id: str
    split: str
    recipe: SlideRecipe


def make_cohort(
    folder: str | os.PathLike[str],
    *,
    n_train: int = 24,
    n_val: int = 16,
    n_test: int = 40,
    seed: int = 0,
    mpp: float = 0.5,
    scale: float = 1.0,
    n_threads: int = 2,
) -> Path:
    """Paint a cohort of two classes, "negative" and "positive" (a lesion is present).

    Args:
        folder: made when absent; files of the same names are overwritten.
        n_train, n_val, n_test: slides of each split; half of each is positive (an odd one is negative).
            Every fifth patient or so has two slides, always in the same split and of the same label.
        seed: decides every pixel.
        mpp: µm per level-0 px.
        scale: of the slides' sides. 1 gives about 2900 x 2100 px and 0.6 s a slide; 0.6 about 1740 x 1275 px, 0.25 s,
            and some 1000 tiles of 32 px at `mpp`, which is enough to study selection on. Lesions keep their µm.
        n_threads: slides painted at a time.

    Returns:
        Path of `manifest.csv`; slide paths in it are relative to its folder.

    Raises:
        ConfigError: a negative number of slides, or none at all; a scale that leaves no room for a lesion.
    """
    counts = check_counts(n_train, n_val, n_test, scale)
    root = Path(folder)
    planned = _plan(counts, seed, mpp, scale)
    with ThreadPoolExecutor(n_threads) as pool:
        # list: an error in a thread surfaces here
        list(pool.map(lambda one: write_slide(root, one.slide_id, one.recipe), planned))
    return write_table(root / "manifest.csv", _COLUMNS, [_row(one) for one in planned])


def check_counts(n_train: int, n_val: int, n_test: int, scale: float) -> dict[str, int]:
    """Refuse numbers of slides and sizes that make no cohort; return slides by split.

    Raises:
        ConfigError: names the numbers.
    """
    counts = {"train": n_train, "val": n_val, "test": n_test}
    if min(counts.values()) < 0 or sum(counts.values()) == 0:
        raise ConfigError(f"cohort: {counts} slides; give numbers of at least 0 and one slide altogether")
    if not _SMALLEST <= scale <= _LARGEST:
        raise ConfigError(f"cohort: scale {scale:g}; give {_SMALLEST:g} to {_LARGEST:g}, 1 is about 2900 x 2100 px")
    return counts


def write_slide(root: Path, slide_id: str, recipe: SlideRecipe) -> PaintedSlide:
    """Paint a slide into `slides/` and its outlines into `lesions/`."""
    painted = paint_slide(recipe)
    for name in ("slides", "lesions"):
        (root / name).mkdir(parents=True, exist_ok=True)
    plan = PyramidPlan(recipe.width, recipe.height)
    write_pyramid(root / "slides" / f"{slide_id}.tif", array_source(painted.pixels), plan, mpp=recipe.mpp)
    write_lesions(root / "lesions" / f"{slide_id}.geojson", painted.lesions)
    return painted


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    """Write a manifest; returns its path."""
    path.write_bytes(csv_bytes([header, *rows]))
    return path


def _plan(counts: dict[str, int], seed: int, mpp: float, scale: float = 1.0) -> list[PlannedSlide]:
    rng = np.random.default_rng([seed, 7])
    planned: list[PlannedSlide] = []
    patient = 0
    for split, count in counts.items():
        labels = [bool(i % 2) for i in range(count)]
        rng.shuffle(labels)
        unshared: dict[bool, tuple[str, str]] = {}  # label -> the last patient with one slide, and its stain
        dealt = {label: [int(rng.integers(2)), int(rng.integers(len(_PENS)))] for label in (False, True)}
        for i, label in enumerate(labels):
            dealt[label] = [n + 1 for n in dealt[label]]
            patient_id, stain = f"P{patient + 1:03d}", "AB"[dealt[label][0] % 2]
            if i % 5 == 4 and label in unshared:
                patient_id, stain = unshared.pop(label)
            else:
                patient += 1
                unshared[label] = (patient_id, stain)
            recipe = SlideRecipe(
                seed=int(rng.integers(2**31)),
                width=round(int(rng.integers(2600, 3200)) * scale),
                height=round(int(rng.integers(1900, 2350)) * scale),
                mpp=mpp,
                has_lesion=label,
                stain=stain,
                pen=_PENS[dealt[label][1] % len(_PENS)],
            )
            planned.append(PlannedSlide(f"slide_{len(planned) + 1:03d}", patient_id, split, recipe))
    return planned


def _row(one: PlannedSlide) -> tuple[str, ...]:
    label = "positive" if one.recipe.has_lesion else "negative"
    site = {"A": "north", "B": "south"}[one.recipe.stain]
    note = f"{one.recipe.pen} pen" if one.recipe.pen else ""
    path = f"slides/{one.slide_id}.tif"
    return path, one.slide_id, one.patient_id, label, one.split, site, one.recipe.stain, note

"""A cohort to be graded: every slide has lesions, and only how much of the tissue they cover tells slides apart.

    FOLDER/manifest.csv   slides/<slide_id>.tif   lesions/<slide_id>.geojson

The columns `fraction` (a number, for regression) and `grade` (0 to 3, for an ordinal task) are the truth. A lesion
tile looks the same in every grade, and stain, site, slide size and decoys are dealt out evenly: finding a lesion is no
answer, the spread over the whole tissue is.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from wsi_ips.synthetic.cohort import PlannedSlide, check_counts, write_slide, write_table
from wsi_ips.synthetic.painting import PaintedSlide, SlideRecipe
from wsi_ips.synthetic.shapes import inside

__all__ = ["covered_fraction", "grade_of", "make_grading_cohort"]

_COLUMNS = ("slide_path", "slide_id", "patient_id", "fraction", "grade", "split", "site", "stain")
_GRADES = ((0.02, 0.14), (0.16, 0.29), (0.31, 0.44), (0.46, 0.60))  # asked for: with room to the bounds
_BOUNDS = (0.15, 0.30, 0.45)


def make_grading_cohort(
    folder: str | os.PathLike[str],
    *,
    n_train: int = 60,
    n_val: int = 20,
    n_test: int = 60,
    seed: int = 0,
    mpp: float = 0.5,
    scale: float = 0.6,
    n_threads: int = 2,
) -> Path:
    """Paint a cohort whose lesions cover 2 to 60 % of the tissue.

    Args:
        folder: made when absent; files of the same names are overwritten.
        n_train, n_val, n_test: slides of each split, the grades in turn, in random order. Every fifth slide is the
            second of a patient of its split; grades of one patient's slides are not related.
        seed: decides every pixel.
        mpp: µm per level-0 px.
        scale: of the slides' sides, 1 is about 2900 x 2100 px; see `make_cohort`.
        n_threads: slides painted at a time.

    Returns:
        Path of `manifest.csv`; slide paths in it are relative to its folder.

    Raises:
        ConfigError: a negative number of slides, or none at all; a scale that leaves no room for lesions.
    """
    counts = check_counts(n_train, n_val, n_test, scale)
    root = Path(folder)
    planned = _plan(counts, seed, mpp, scale)
    with ThreadPoolExecutor(n_threads) as pool:
        rows = list(pool.map(lambda one: _row(one, write_slide(root, one.slide_id, one.recipe)), planned))
    return write_table(root / "manifest.csv", _COLUMNS, rows)


def covered_fraction(painted: PaintedSlide) -> float:
    """Measure which share of the tissue lies inside a lesion, by the centres of squares of 8 level-0 px."""
    y, x = np.nonzero(painted.tissue)
    centres = np.stack([x, y], axis=1) * 8.0 + 4.0
    return float(inside(centres, painted.lesions).mean())


def grade_of(fraction: float) -> int:
    """Grade 0 to 3 of a covered fraction: below 0.15, 0.30, 0.45, and above."""
    return int(np.searchsorted(_BOUNDS, fraction, side="right"))


def _plan(counts: dict[str, int], seed: int, mpp: float, scale: float) -> list[PlannedSlide]:
    rng = np.random.default_rng([seed, 11])
    planned: list[PlannedSlide] = []
    patient = 0
    for split, count in counts.items():
        first = int(rng.integers(len(_GRADES)))
        grades = [(first + i) % len(_GRADES) for i in range(count)]
        rng.shuffle(grades)
        seen = [int(rng.integers(2)) for _ in _GRADES]  # decides the stain: in turn within a grade
        for i, grade in enumerate(grades):
            patient += i % 5 != 4
            seen[grade] += 1
            recipe = SlideRecipe(
                seed=int(rng.integers(2**31)),
                width=round(int(rng.integers(2600, 3200)) * scale),
                height=round(int(rng.integers(1900, 2350)) * scale),
                mpp=mpp,
                lesion_share=float(rng.uniform(*_GRADES[grade])),
                stain="AB"[seen[grade] % 2],
            )
            planned.append(PlannedSlide(f"graded_{len(planned) + 1:03d}", f"G{patient:03d}", split, recipe))
    return planned


def _row(one: PlannedSlide, painted: PaintedSlide) -> tuple[str, ...]:
    fraction = covered_fraction(painted)
    site = {"A": "north", "B": "south"}[one.recipe.stain]
    path = f"slides/{one.slide_id}.tif"
    truth = f"{fraction:.4f}", str(grade_of(fraction))
    return path, one.slide_id, one.patient_id, *truth, one.split, site, one.recipe.stain

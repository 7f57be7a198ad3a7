"""A cohort to grade: the columns say what was painted, and nothing but the covered share tells slides apart."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsi_ips.errors import ConfigError
from wsi_ips.slide.reader import open_slide
from wsi_ips.synthetic import SlideRecipe, make_grading_cohort, paint_slide, read_lesions
from wsi_ips.synthetic.grading import _plan, covered_fraction, grade_of
from wsi_ips.synthetic.shapes import inside, spread

_RECIPE = SlideRecipe(seed=4, width=1100, height=830)


def _rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four slides to train, one to test."""
    return make_grading_cohort(tmp_path_factory.mktemp("graded"), n_train=4, n_val=0, n_test=1, seed=2, scale=0.35)


def test_the_columns_say_what_was_painted(graded: Path) -> None:
    """Fraction is the share of the tissue inside the outlines of the file, grade its bin; every grade is there."""
    rows = _rows(graded)
    assert sorted(r["grade"] for r in rows if r["split"] == "train") == ["0", "1", "2", "3"]
    planned = _plan({"train": 4, "val": 0, "test": 1}, 2, 0.5, 0.35)
    for row, one in zip(rows, planned, strict=True):
        lesions = read_lesions(graded.parent / "lesions" / f"{row['slide_id']}.geojson")
        painted = paint_slide(one.recipe)
        assert float(row["fraction"]) == pytest.approx(covered_fraction(painted._replace(lesions=lesions)), abs=1e-4)
        assert int(row["grade"]) == grade_of(float(row["fraction"]))
        with open_slide(graded.parent / row["slide_path"]) as slide:
            assert slide.bounds.width0 > slide.bounds.height0


def test_the_same_seed_gives_the_same_cohort(graded: Path, tmp_path: Path) -> None:
    """Manifest and slides repeat themselves, whatever the number of threads."""
    again = make_grading_cohort(tmp_path, n_train=4, n_val=0, n_test=1, seed=2, scale=0.35, n_threads=1)
    assert again.read_bytes() == graded.read_bytes()
    first = _rows(again)[0]["slide_path"]
    assert (tmp_path / first).read_bytes() == (graded.parent / first).read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.25, 0.6])
def test_lesions_cover_the_share_asked_for(share: float) -> None:
    """Within a hundredth, and the outlines are valid; no share is no lesion."""
    painted = paint_slide(replace(_RECIPE, lesion_share=share))
    assert covered_fraction(painted) == pytest.approx(share, abs=0.01)
    assert all(one.is_valid for one in painted.lesions)
    assert bool(painted.lesions) == (share > 0.0)


def test_a_larger_share_holds_the_smaller_one() -> None:
    """Slides of one seed that differ in the share alone grow the same islands, on the same tissue."""
    tissue = np.zeros((120, 170), bool)
    tissue[10:110, 20:150] = True
    points = np.random.default_rng(0).uniform((160, 80), (1200, 880), (4000, 2))
    few, many = (inside(points, spread(np.random.default_rng(7), tissue, share, 0.5)) for share in (0.2, 0.5))
    assert few.sum() > 400
    assert (few & ~many).sum() < 0.02 * few.sum()
    assert many.mean() == pytest.approx(0.5, abs=0.06)


def test_what_is_to_be_avoided_stays_free() -> None:
    """No point inside an outline to avoid is covered."""
    from shapely.geometry import box

    tissue = np.ones((100, 140), bool)
    found = spread(np.random.default_rng(1), tissue, 0.6, 0.5, avoid=(box(300, 200, 700, 600),))
    points = np.random.default_rng(0).uniform((310, 210), (690, 590), (2000, 2))
    assert not inside(points, found).any()


def test_lesion_tissue_looks_the_same_in_every_grade() -> None:
    """Inside lesions and outside, mean colours differ between a few and many lesions by less than between in and out."""
    means = {}
    for share in (0.1, 0.5):
        painted = paint_slide(replace(_RECIPE, lesion_share=share, width=1500, height=1100))
        y, x = np.nonzero(painted.tissue)
        hit = inside(np.stack([x, y], axis=1) * 8.0 + 4.0, painted.lesions)
        cells = painted.pixels[: len(painted.tissue) * 8, : painted.tissue.shape[1] * 8]
        cells = cells.reshape(len(painted.tissue), 8, -1, 8, 3).mean((1, 3))[y, x]
        means[share] = cells[hit].mean(0)[0], cells[~hit].mean(0)[0]  # red
    assert abs(means[0.1][0] - means[0.5][0]) < 10
    assert abs(means[0.1][1] - means[0.5][1]) < 10
    assert means[0.1][1] - means[0.1][0] > 25


@pytest.mark.parametrize("seed", range(3))
def test_nothing_but_the_lesions_is_dealt_by_grade(seed: int) -> None:
    """Grades are even in each split; within a grade stains are even and sizes of one kind; patients stay on one side."""
    planned = _plan({"train": 60, "val": 20, "test": 40}, seed, 0.5, 0.6)
    grade = [grade_of(p.recipe.lesion_share or 0.0) for p in planned]
    for split, n in (("train", 15), ("val", 5), ("test", 10)):
        assert Counter(g for g, p in zip(grade, planned, strict=True) if p.split == split) == dict.fromkeys(range(4), n)
    for g in range(4):
        stains = Counter(p.recipe.stain for p, k in zip(planned, grade, strict=True) if k == g)
        assert abs(stains["A"] - stains["B"]) <= 3
    widths = [np.mean([p.recipe.width for p, k in zip(planned, grade, strict=True) if k == g]) for g in range(4)]
    assert max(widths) - min(widths) < 0.5 * (3200 - 2600) * 0.6
    sides = defaultdict(set)
    for p in planned:
        sides[p.patient_id].add(p.split)
    assert all(len(found) == 1 for found in sides.values())


def test_grades_are_bins_of_the_fraction() -> None:
    """A bound belongs to the grade above it."""
    assert [grade_of(f) for f in (0.0, 0.1499, 0.15, 0.29, 0.30, 0.45, 0.6)] == [0, 0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize(("options", "said"), [({"n_train": -1}, "at least 0"), ({"scale": 0.1}, "scale 0.1")])
def test_impossible_cohorts_are_refused(tmp_path: Path, options: dict[str, float], said: str) -> None:
    """Numbers that make no cohort are named and nothing is written."""
    with pytest.raises(ConfigError, match=said):
        make_grading_cohort(tmp_path / "new", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()

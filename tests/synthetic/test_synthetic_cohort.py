"""A cohort's manifest, its splits, and its reproducibility."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import openslide
import pytest

from wsi_ips.errors import ConfigError
from wsi_ips.synthetic import make_cohort, read_lesions
from wsi_ips.synthetic.cohort import _plan


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six slides: four to train, two to test."""
    return make_cohort(tmp_path_factory.mktemp("cohort"), n_train=4, n_val=0, n_test=2, seed=5)


def _rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_manifest_points_to_slides_that_open(cohort: Path) -> None:
    """Every slide of the manifest opens, is not square, and has the stated resolution."""
    rows = _rows(cohort)
    assert [r["split"] for r in rows] == ["train"] * 4 + ["test"] * 2
    for row in rows:
        with openslide.OpenSlide(cohort.parent / row["slide_path"]) as slide:
            assert slide.dimensions[0] > slide.dimensions[1]
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
            assert slide.level_count == 4


def test_label_says_whether_there_is_a_lesion(cohort: Path) -> None:
    """Positive slides have lesions inside the slide, negative ones have none."""
    for row in _rows(cohort):
        lesions = read_lesions(cohort.parent / "lesions" / f"{row['slide_id']}.geojson")
        assert bool(lesions) == (row["label"] == "positive")


def test_a_second_cohort_of_the_seed_is_the_same(cohort: Path, tmp_path: Path) -> None:
    """The seed decides the manifest and every byte of the slides, whatever the number of threads."""
    again = make_cohort(tmp_path, n_train=4, n_val=0, n_test=2, seed=5, n_threads=1)
    assert again.read_bytes() == cohort.read_bytes()
    for row in _rows(again):
        assert (tmp_path / row["slide_path"]).read_bytes() == (cohort.parent / row["slide_path"]).read_bytes()


@pytest.mark.parametrize("seed", range(5))
def test_splits_are_balanced_and_by_patient(seed: int) -> None:
    """Half of each split is positive, no patient stands in two splits, some have two slides, stains are even."""
    planned = _plan({"train": 24, "val": 16, "test": 40}, seed, 0.5)
    classes = Counter((p.split, p.recipe.has_lesion) for p in planned)
    assert classes == {(s, c): n // 2 for s, n in (("train", 24), ("val", 16), ("test", 40)) for c in (False, True)}
    splits, slides = defaultdict(set), Counter(p.patient_id for p in planned)
    for p in planned:
        splits[p.patient_id].add(p.split)
    assert all(len(found) == 1 for found in splits.values())
    assert max(slides.values()) == 2
    stains = Counter((p.recipe.has_lesion, p.recipe.stain) for p in planned)
    assert min(stains.values()) >= 14  # of 20 expected


def test_an_empty_cohort_is_refused(tmp_path: Path) -> None:
    """Nothing to make is an error, not an empty manifest."""
    with pytest.raises(ConfigError, match="at least 0"):
        make_cohort(tmp_path, n_train=0, n_val=0, n_test=0)


def test_small_slides_still_hold_many_small_tiles(tmp_path: Path) -> None:
    """At a scale of 0.6 a slide has about 1000 tiles of 32 px or more, enough to study selection on."""
    from wsi_ips.config import TileSpec, TissueSettings
    from wsi_ips.slide.reader import open_slide
    from wsi_ips.tiles.grid import plan_tiles
    from wsi_ips.tiles.tissue import find_tissue

    row = _rows(make_cohort(tmp_path, n_train=1, n_val=0, n_test=0, scale=0.6))[0]
    with open_slide(tmp_path / row["slide_path"]) as slide:
        assert 0.6 * 2600 <= slide.bounds.width0 < 0.6 * 3200
        tile = TileSpec(size_px=32, mpp=0.5)
        grid = plan_tiles(slide, find_tissue(slide, TissueSettings()), tile, min_fraction=0.1, max_tiles=10_000)
    assert len(grid.coords) > 900


def test_the_scale_changes_nothing_else() -> None:
    """Patients, labels, stains and pens of a cohort do not depend on the size of its slides."""
    large, small = (_plan({"train": 9, "val": 3, "test": 4}, 3, 0.5, scale) for scale in (1.0, 0.5))
    for a, b in zip(large, small, strict=True):
        assert (a.slide_id, a.patient_id, a.recipe.has_lesion, a.recipe.stain, a.recipe.pen, a.recipe.seed) == (
            b.slide_id, b.patient_id, b.recipe.has_lesion, b.recipe.stain, b.recipe.pen, b.recipe.seed,
        )  # fmt: skip
        assert b.recipe.width == round(a.recipe.width * 0.5)

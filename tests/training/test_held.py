"""Tiles that are read once: by place, level, size and colour handling, as long as there is room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_ips.manifest import load_manifest
from wsi_ips.slide.reader import open_slide
from wsi_ips.training import held as held_module
from wsi_ips.training.held import HeldSlides


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Files that were opened and how, in order."""
    found: list[tuple[str, str]] = []

    def watch(path: str, mpp: Any, *, icc: Any) -> Any:
        found.append((path, icc))
        return open_slide(path, mpp, icc=icc)

    monkeypatch.setattr(held_module, "open_slide", watch)
    return found


def test_what_is_held_is_what_the_file_holds(cohort: Path, opened: list[tuple[str, str]]) -> None:
    """Other places, levels and sizes are other pixels; asked again, the same ones come without the file."""
    record = load_manifest(cohort).records[0]
    slides, regions = HeldSlides(1.0), ((0, 0, 0, 32, 32), (64, 0, 0, 32, 32), (0, 0, 1, 32, 32), (0, 0, 0, 16, 32))
    with open_slide(record.slide_path, record.mpp) as slide:
        own = [slide.read_region(*region).pixels for region in regions]
    assert not np.array_equal(own[0], own[2])
    for _ in range(2):
        with slides.open(record, "none") as held:
            for region, pixels in zip(regions, own, strict=True):
                assert np.array_equal(held.read_region(*region).pixels, pixels)
    assert len(opened) == 1


def test_another_handling_of_colour_is_read_anew(cohort: Path, opened: list[tuple[str, str]]) -> None:
    """Pixels that were made with a profile do not serve where none is wanted."""
    record, slides = load_manifest(cohort).records[0], HeldSlides(1.0)
    for icc in ("none", "srgb", "none"):
        with slides.open(record, icc) as slide:
            slide.read_region(0, 0, 0, 32, 32)
    assert [icc for _, icc in opened] == ["none", "srgb"]


def test_what_does_not_fit_is_read_each_time(cohort: Path, opened: list[tuple[str, str]]) -> None:
    """Room for one tile of 32 x 32 px and not for two; without a budget nothing is held."""
    record = load_manifest(cohort).records[0]
    for n_tiles, n_opened in ((0.0, 2), (1.5, 2), (2.0, 1)):
        opened.clear()
        slides = HeldSlides(n_tiles * 32 * 32 * 3 / 2**30)
        for _ in range(2):
            with slides.open(record, "none") as slide:
                for x0 in (0, 32):
                    slide.read_region(x0, 0, 0, 32, 32)
        assert len(opened) == n_opened

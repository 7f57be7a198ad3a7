"""Tiles that are read once: by place, level, size and colour handling, as long as there is room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_ips.manifest import SlideRecord, load_manifest
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slide.reader import open_slide
from wsi_ips.tiles.stream import stream_tiles
from wsi_ips.tiles.tilegrid import TileGrid
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


def test_a_stream_is_read_once_too(cohort: Path, opened: list[tuple[str, str]]) -> None:
    """Tiles that a stream reads straight into its batch are held like others: the second time no file is opened."""
    record, slides = load_manifest(cohort).records[0], HeldSlides(1.0)
    found = []
    for _ in range(2):
        with slides.open(record, "none") as slide:
            grid = TileGrid(np.array([[0, 0], [64, 32], [128, 96]]), np.ones(3, np.float32), (32.0, 32.0), 0, (32, 32), 32)
            found.append(np.concatenate([c.pixels.copy() for c in stream_tiles(slide, grid, chunk_size=2)]))
    assert np.array_equal(*found)
    assert found[0].any()
    assert len(opened) == 1


def test_only_chosen_tiles_stay_and_a_function_gives_slides_that_are_no_files() -> None:
    """What is not chosen is read again; what is forgotten, too; without a budget the function's own slide is given."""
    record, made = SlideRecord("a", "canvas://a", "p"), list[ArraySlide]()
    whole = np.arange(64 * 96 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 96, 3)

    def opener(record: SlideRecord) -> ArraySlide:
        made.append(ArraySlide(whole))
        return made[-1]

    assert HeldSlides(0.0, opener).open(record, "none") is made[-1]
    slides, out = HeldSlides(float("inf"), opener), np.empty((32, 32, 3), np.uint8)

    def n_made(*corners: tuple[int, int]) -> int:
        before = len(made)
        with slides.open(record, "none") as slide:
            for x0, y0 in corners:
                slide.read_into(out, x0, y0, 0)
                assert np.array_equal(out, whole[y0 : y0 + 32, x0 : x0 + 32])
        return len(made) - before

    assert n_made((0, 0), (32, 0), (64, 32)) == 1
    assert n_made((0, 0), (32, 0), (64, 32)) == 0
    slides.keep_only(record, np.array([[32, 0]]))
    assert n_made((32, 0)) == 0
    assert n_made((0, 0)) == 1
    slides.forget()
    assert n_made((32, 0)) == 1

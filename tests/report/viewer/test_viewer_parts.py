"""The viewer's rooms by themselves: the pyramid over awkward slides, marks written by many at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_ips.geometry import Box0
from wsi_ips.report.thumbnail import UNREADABLE_RGB
from wsi_ips.report.viewer.pyramid import TilePlace, highest_shift, overview_shift, read_overview, read_tile, tile_box
from wsi_ips.report.viewer.reviews import Review, ReviewBook
from wsi_ips.slide.backends import ArraySlide

BOUNDS = Box0(203, 97, 1201, 703)


def _sheet(slide: ArraySlide, shift: int) -> np.ndarray:
    """All tiles of a shift, put together."""
    b, scale = slide.bounds, 1 << shift
    sheet = np.zeros((-(-b.height0 // scale), -(-b.width0 // scale), 3), np.uint8)
    first = overview_shift(slide)
    overview = None if first is None else read_overview(slide, first)
    for row in range(-(-sheet.shape[0] // 256)):
        for column in range(-(-sheet.shape[1] // 256)):
            place = TilePlace(shift, column, row)
            box = tile_box(b, place)
            assert box is not None
            sheet[row * 256 : row * 256 + 256, column * 256 : column * 256 + 256] = read_tile(slide, box, place, overview)
    return sheet


@pytest.mark.parametrize("n_levels", [1, 2])
@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_tiles_of_an_offset_scan_average_their_own_area(make_slide: Callable[..., Any], shift: int, n_levels: int) -> None:
    """Each px is the mean of the level-0 px under it, counted from the corner of the bounds, whatever levels there are."""
    slide = make_slide(1537, 1011, BOUNDS, n_levels)
    scale, b = 1 << shift, BOUNDS
    own = slide.read_region(b.x0, b.y0, 0, b.width0, b.height0).pixels
    sheet = _sheet(slide, shift)
    height, width = b.height0 // scale, b.width0 // scale
    wanted = own[: height * scale, : width * scale].reshape(height, scale, width, scale, 3).mean(axis=(1, 3))
    difference = np.abs(sheet[:height, :width] - wanted)
    assert difference.max() <= 0.51 if n_levels == 1 or shift < 2 else difference.mean() < 4
    assert sheet.shape[1] * scale >= b.width0


def test_a_slide_without_coarse_levels_is_shown_from_an_overview(monkeypatch: pytest.MonkeyPatch, make_slide: Callable[..., Any]) -> None:
    """Coarse tiles of a single level come from one reading, and are the same averages."""
    from wsi_ips.report.viewer import pyramid

    slide = make_slide(1537, 1011, BOUNDS, 1)
    direct = [_sheet(slide, shift) for shift in range(highest_shift(BOUNDS) + 1)]
    monkeypatch.setattr(pyramid, "_FACTOR", 1)
    assert overview_shift(slide) == 1
    for shift, sheet in enumerate(direct):
        inner = (slice(sheet.shape[0] - 1), slice(sheet.shape[1] - 1))  # the last px reaches beyond the scan
        assert np.abs(_sheet(slide, shift)[inner].astype(int) - sheet[inner]).max(initial=0) <= 1


def test_large_readings_are_done_in_parts(monkeypatch: pytest.MonkeyPatch, make_slide: Callable[..., Any]) -> None:
    """A tile that covers many px of a level is read piece by piece, to the same px."""
    from wsi_ips.report.viewer import pyramid

    slide = make_slide(1537, 1011, BOUNDS, 1)
    whole = _sheet(slide, 2)
    monkeypatch.setattr(pyramid, "_READ_PX", 150)
    assert np.array_equal(_sheet(slide, 2), whole)


def test_only_what_cannot_be_read_is_grey(make_slide: Callable[..., Any]) -> None:
    """Around an undecodable spot the slide is shown; the spot is grey, never filled in."""
    spot = Box0(600, 300, 20, 20)
    good, bad = make_slide(1537, 1011, BOUNDS, 1), make_slide(1537, 1011, BOUNDS, 1, fail_at=[spot])
    sheet, wanted = _sheet(bad, 0), _sheet(good, 0)
    grey = (sheet == UNREADABLE_RGB).all(axis=-1)
    y, x = spot.y0 - BOUNDS.y0, spot.x0 - BOUNDS.x0
    assert grey[y : y + 20, x : x + 20].all()
    assert grey.sum() <= 4 * 128 * 128
    assert np.array_equal(sheet[~grey], wanted[~grey])


def _review(i: int) -> Review:
    return Review("", "s", "r", "agree", f"note {i}", "tumor", "0.9", "hash")


def test_threads_and_servers_lose_no_mark(tmp_path: Path) -> None:
    """Two processes with two threads each write at once; every mark is there, whole."""
    code = (
        "import sys, threading; from pathlib import Path\n"
        "from wsi_ips.report.viewer.reviews import Review, ReviewBook\n"
        "book = ReviewBook(Path(sys.argv[1]))\n"
        "def work(k):\n"
        "    for i in range(10): book.add(Review('', 's', 'r', 'agree', f'{sys.argv[2]} {k} {i}', 'tumor', '0.9', 'hash'))\n"
        "threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    assert [p.wait() for p in running] == [0, 0]
    notes = {r.note for r in ReviewBook(tmp_path).reviews()}
    assert notes == {f"{name} {k} {i}" for name in "ab" for k in range(2) for i in range(10)}


def test_marks_of_one_book_are_written_by_turns(tmp_path: Path) -> None:
    """Threads of one server share a book."""
    book = ReviewBook(tmp_path)
    threads = [threading.Thread(target=lambda i=i: book.add(_review(i))) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(book.reviews()) == 8
    assert book.latest()["s"].mark == "agree"


def test_text_goes_into_the_table_and_comes_back(tmp_path: Path) -> None:
    """Quotes, commas, formulas and odd letters survive; a last line without an end is completed."""
    book = ReviewBook(tmp_path)
    note = '=1+1, "ä" \u202e,;\'x'
    book.add(_review(0)._replace(note=note))
    table = tmp_path / "reviews.csv"
    table.write_bytes(table.read_bytes().rstrip(b"\n"))
    book.add(_review(1))
    assert [r.note for r in ReviewBook(tmp_path).reviews()] == [note, "note 1"]

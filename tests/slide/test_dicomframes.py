"""DICOM read straight from its frames: OpenSlide's px to the last bit, and no px where a frame is damaged."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import simplejpeg
from dicomfile import pydicom, write_wsi

from wsi_ips.errors import TileReadError, UnreadableSlideError
from wsi_ips.slide import dicom
from wsi_ips.slide.dicomframes import dicom_levels
from wsi_ips.slide.directtiles import DirectTiles
from wsi_ips.slide.fileslide import FileSlide
from wsi_ips.slide.reader import open_slide
from wsi_ips.synthetic import SlideRecipe, paint_slide

SIDE, WIDTH, HEIGHT = 128, 700, 500
ITEM = b"\xfe\xff\x00\xe0"


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """(500, 700, 3) uint8."""
    return np.ascontiguousarray(paint_slide(SlideRecipe(3)).pixels[700 : 700 + HEIGHT, 900 : 900 + WIDTH])


@pytest.fixture
def series(tmp_path: Path, tissue: np.ndarray) -> Path:
    """Level 0 of a series of two levels in JPEG."""
    write_wsi(tmp_path / "0.dcm", tissue, frame_px=SIDE, is_jpeg=True)
    write_wsi(tmp_path / "1.dcm", np.ascontiguousarray(tissue[::2, ::2]), number=2, downsample=2, frame_px=SIDE, is_jpeg=True)
    return tmp_path / "0.dcm"


def _openslide(path: Path, x0: int, y0: int, level: int, width: int, height: int) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        rgba = np.asarray(slide.read_region((x0, y0), level, (width, height)))
    return np.where(rgba[..., 3:] == 0, np.uint8(255), rgba[..., :3])


def _frames(data: bytes) -> list[tuple[int, int]]:
    """Where each frame's item begins, and its stream ends."""
    found, at = [], data.index(ITEM, data.index(b"\xe0\x7f\x10\x00OB"))
    while data[at : at + 4] == ITEM:
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        found.append((at, end))
        at = end
    return found[1:]  # the first is the table of offsets


def _rewritten(path: Path, change: Any) -> None:
    """Change elements of a file."""
    wsi = pydicom.dcmread(path)
    change(wsi)
    wsi.save_as(path, enforce_file_format=True)


def test_every_pixel_is_openslides(series: Path) -> None:
    """Level 0 on and off the grid, over the edges; a coarser level in a file of its own."""
    with open_slide(series) as slide:
        assert slide.reader.startswith("direct (simplejpeg"), slide.reader
        for x0, y0, width, height in ((0, 0, SIDE, SIDE), (57, 191, 333, 128), (256, 128, 17, 300), (WIDTH - 100, HEIGHT - 90, 150, 130)):
            found = slide.read_region(x0, y0, 0, width, height)
            assert np.array_equal(found.pixels, _openslide(series, x0, y0, 0, width, height)), (x0, y0)
            assert found.n_missing == 0
        assert np.array_equal(slide.read_region(66, 34, 1, 200, 170).pixels, _openslide(series, 66, 34, 1, 200, 170))


@pytest.mark.parametrize("name", ["dicom-cmu", "dicom-lung", "dicom-small/boxes_0.dcm"])
def test_real_slides_have_openslides_pixels(shared_data: Path, name: str) -> None:
    """Every px of level 0, in blocks off the grid."""
    path = shared_data / "slides" / name
    with open_slide(path, 0.5) as slide:
        assert slide.reader.startswith("direct"), slide.reader
        file = path if path.is_file() else max(path.iterdir(), key=lambda p: p.stat().st_size)
        width, height, _ = slide.levels[0]
        for y0 in range(-100, height, 700):
            for x0 in range(-100, width, 700):
                ours = slide.read_region(x0, y0, 0, 700, 700).pixels
                assert np.array_equal(ours, _openslide(file, x0, y0, 0, 700, 700)), (x0, y0)


@pytest.mark.parametrize("spoil", ["its codes", "its end", "its item"])
def test_a_damaged_frame_is_no_px(series: Path, spoil: str) -> None:
    """The frame is an error with its place; its neighbours stay what they were. OpenSlide shows px where codes are damaged."""
    data = bytearray(series.read_bytes())
    start, end = _frames(bytes(data))[7]  # second row of six, second column
    before = _openslide(series, 2 * SIDE, SIDE, 0, SIDE, SIDE)
    if spoil == "its codes":
        data[end - 900 : end - 880] = bytes(range(20))
    elif spoil == "its end":
        data[end - 300 : end] = bytes(300)
    else:
        data[start : start + 8] = bytes(8)
    series.write_bytes(data)
    with open_slide(series) as slide:
        assert slide.reader.startswith("direct"), slide.reader
        with pytest.raises(TileReadError, match=r"0\.dcm: pixels at level-0 px \(128, 128\)"):
            slide.read_region(SIDE + 4, SIDE, 0, 64, 64)
        assert np.array_equal(slide.read_region(2 * SIDE, SIDE, 0, SIDE, SIDE).pixels, before)
    if spoil == "its codes":
        _openslide(series, SIDE + 4, SIDE, 0, 64, 64)  # says nothing


def test_a_file_cut_short_gives_the_frames_it_has(series: Path) -> None:
    """What lies behind the cut is an error, tile by tile."""
    data = series.read_bytes()
    start, end = _frames(data)[10]
    series.write_bytes(data[: (start + end) // 2])
    with open_slide(series) as slide:
        assert slide.reader.startswith("direct"), slide.reader
        slide.read_region(0, 0, 0, WIDTH, SIDE)
        for column in (4, 5):
            with pytest.raises(TileReadError):
                slide.read_region(column * SIDE, SIDE, 0, 32, 32)


def test_frames_without_a_table_of_offsets_are_followed(series: Path) -> None:
    """An empty table, as some writers leave it; a broken link between items leaves the file to OpenSlide."""
    _rewritten(series, lambda wsi: setattr(wsi, "PixelData", pydicom.encaps.encapsulate(
        list(pydicom.encaps.generate_frames(wsi.PixelData, number_of_frames=wsi.NumberOfFrames)), has_bot=False)))  # fmt: skip
    with open_slide(series) as slide:
        assert slide.reader.startswith("direct"), slide.reader
        assert np.array_equal(slide.read_region(57, 191, 0, 333, 128).pixels, _openslide(series, 57, 191, 0, 333, 128))
    data = bytearray(series.read_bytes())
    start, _ = _frames(bytes(data))[9]
    data[start : start + 4] = bytes(4)
    series.write_bytes(data)
    with open_slide(series) as slide:
        assert slide.reader.startswith("openslide"), slide.reader


def _with_frames(path: Path, frames: list[list[bytes]], *, spoil_table: bool = False) -> None:
    """Write a file's frames anew, each in the given items, with a table of offsets."""
    data = path.read_bytes()
    start = data.index(ITEM, data.index(b"\xe0\x7f\x10\x00OB"))
    items = [b"".join(ITEM + len(part).to_bytes(4, "little") + part for part in parts) for parts in frames]
    offsets = np.cumsum([0, *map(len, items[:-1])]).astype("<u4")
    if spoil_table:
        offsets[9] = 0x7FFFFFFF
    table = ITEM + (4 * len(items)).to_bytes(4, "little") + offsets.tobytes()
    path.write_bytes(data[:start] + table + b"".join(items) + b"\xfe\xff\xdd\xe0\0\0\0\0")


def _streams(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return [data[start + 8 : end] for start, end in _frames(data)]


def test_frames_in_several_items_are_joined(series: Path) -> None:
    """Some frames, and all of a level, the last one included."""
    split = [[s[:200], s[200:]] if i % 3 or i == 23 else [s] for i, s in enumerate(_streams(series))]
    _with_frames(series, split)
    coarse = series.with_name("1.dcm")
    _with_frames(coarse, [[s[:100], s[100:200], s[200:]] for s in _streams(coarse)])
    with open_slide(series) as slide:
        assert slide.reader.startswith("direct"), slide.reader
        assert np.array_equal(slide.read_region(0, 0, 0, WIDTH, HEIGHT).pixels, _openslide(series, 0, 0, 0, WIDTH, HEIGHT))
        assert np.array_equal(slide.read_region(0, 0, 1, 300, 250).pixels, _openslide(series, 0, 0, 1, 300, 250))


def test_a_damaged_table_of_offsets_is_refused(series: Path) -> None:
    """OpenSlide would follow the entry beyond the file, and end the process."""
    _with_frames(series, [[s] for s in _streams(series)], spoil_table=True)
    with pytest.raises(UnreadableSlideError, match=r"E_ABSURD: 0\.dcm: its table of frames is damaged, it has frame 10 at byte 2147"):
        open_slide(series)


@pytest.mark.parametrize("frame", ["empty", "beginless", "larger", "smaller"])
@pytest.mark.parametrize("shrink", [1, 2])
def test_a_frame_that_is_not_what_it_should_be_is_no_px(series: Path, tissue: np.ndarray, frame: str, shrink: int) -> None:
    """Nothing in it, no beginning, another size: at any scale, and the first frame of all."""
    streams = _streams(series)
    other = {"larger": 256, "smaller": 64}.get(frame, SIDE)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(tissue[:other, :other]), quality=90, colorsubsampling="422")
    streams[0] = {"empty": b"", "beginless": b"\0\0" + streams[0][2:]}.get(frame, jpeg + b"\0" * (len(jpeg) % 2))
    _with_frames(series, [[s] for s in streams])
    with open_slide(series) as slide:
        assert isinstance(slide, FileSlide)
        assert slide.reader.startswith("direct"), slide.reader
        assert shrink in slide.shrinks(0)
        out = np.empty((SIDE // shrink, SIDE // shrink, 3), np.uint8)
        with pytest.raises(TileReadError, match="E_TILE"):
            slide.read_into(out, 0, 0, 0, shrink)
        slide.read_into(out, SIDE, 0, 0, shrink)


@pytest.mark.filterwarnings("error")
def test_a_level_that_went_away_leaves_no_file_open(series: Path) -> None:
    """The first file is closed again, and nothing is said behind the error's back."""
    levels = dicom_levels(series, [(WIDTH, HEIGHT)])[1]
    with pytest.raises(FileNotFoundError):
        DirectTiles([str(series), str(series.with_name("gone.dcm"))], "a", levels)
    gc.collect()


def test_a_folder_that_cannot_be_listed_leaves_the_file_alone(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of the series then is this file."""
    def refuse(folder: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(dicom, "_folder", refuse)
    assert dicom.series_files(series) == []


def test_a_slide_that_nobody_closes_keeps_no_file_open(series: Path) -> None:
    """Both files of the series are let go with it."""
    def n_open() -> int:
        return sum(os.readlink(f"/proc/self/fd/{n}").startswith(str(series.parent)) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}"))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no list of open files on this system")
    slide = open_slide(series)
    assert n_open() >= 2
    del slide
    gc.collect()
    assert n_open() == 0


@pytest.mark.parametrize(
    "element",
    [{"DimensionOrganizationType": "TILED_SPARSE"}, {"PhotometricInterpretation": "YBR_ICT"}, {"NumberOfFrames": 23},
     {"Columns": 0}, {"BitsAllocated": 16}],
)  # fmt: skip
def test_what_is_not_proven_stays_with_openslide(series: Path, element: dict[str, Any]) -> None:
    """Other orders, colours, counts of frames and samples: no level is taken, the whole file is left."""
    sizes = [(WIDTH, HEIGHT), (WIDTH // 2, HEIGHT // 2)]
    assert len(dicom_levels(series, sizes)[1]) == 2
    _rewritten(series, lambda wsi: [setattr(wsi, keyword, value) for keyword, value in element.items()])
    assert dicom_levels(series, sizes) == ([], [])


def test_a_frame_of_other_colours_than_openslides_is_left_to_it(series: Path) -> None:
    """A header that calls YCbCr RGB: found by comparing px, whichever of the two is right."""
    for path in series.parent.iterdir():
        _rewritten(path, lambda wsi: setattr(wsi, "PhotometricInterpretation", "RGB"))
    with open_slide(series) as slide:
        shown = slide.read_region(0, 0, 0, SIDE, SIDE).pixels
    assert np.array_equal(shown, _openslide(series, 0, 0, 0, SIDE, SIDE))


def test_streams_of_frames_are_whole_jpegs(series: Path, tissue: np.ndarray) -> None:
    """What another decoder is given is the frame's own stream."""
    with open_slide(series) as slide:
        assert isinstance(slide, FileSlide)
        assert slide.has_streams(np.array([[0, 0], [SIDE, SIDE]]), 0, SIDE, 1 << 20)
        pixels = simplejpeg.decode_jpeg(slide.tile_stream(SIDE, SIDE, 0))
        assert np.array_equal(pixels, slide.read_region(SIDE, SIDE, 0, SIDE, SIDE).pixels)

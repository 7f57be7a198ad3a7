"""The bounded parser: hostile and broken directories end as errors with numbers, before any decoder."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from wsi_ips.errors import UnreadableSlideError
from wsi_ips.slide.reader import open_slide
from wsi_ips.slide.tiffcheck import check_tiff, missing_mask, tiles_under
from wsi_ips.slide.tiffheader import TiffHeader, read_tiff_header

MakeTiff = Callable[..., Path]


def header_of(path: Path) -> TiffHeader:
    with path.open("rb") as f:
        return read_tiff_header(f, path.stat().st_size, path.name)


def refusal(path: Path) -> UnreadableSlideError:
    with pytest.raises(UnreadableSlideError) as caught:
        open_slide(path)
    return caught.value


def overwrite(path: Path, tag: int, value: object, page: int = 0) -> None:
    with tifffile.TiffFile(path, mode="r+") as f:
        f.pages[page].tags[tag].overwrite(value)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_it_agrees_with_tifffile(tmp_path: Path, picture: np.ndarray, bigtiff: bool, byteorder: str) -> None:
    """Both byte orders and both generations of the format give the numbers another parser gives."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as writer:
        for level in (1, 2):
            writer.write(picture[::level, ::level], tile=(128, 64), compression="zlib", photometric="rgb",
                         metadata=None, resolution=(20_000, 10_000), resolutionunit=3)  # fmt: skip
    header = header_of(path)
    with tifffile.TiffFile(path) as f:
        for ifd, page in zip(header.ifds, f.pages, strict=True):
            assert (ifd.width, ifd.height) == (page.imagewidth, page.imagelength)
            assert (ifd.tile_width, ifd.tile_height, ifd.bits, ifd.samples) == (64, 128, (8, 8, 8), 3)
            assert ifd.offsets.tolist() == list(page.dataoffsets)
            assert ifd.byte_counts.tolist() == list(page.databytecounts)
            assert ifd.resolution == (20_000.0, 10_000.0)
            assert ifd.resolution_unit == 3
    assert header.n_chain == 2
    assert header.primary.number == 0
    check_tiff(header, "a.tif")


@pytest.mark.parametrize(("bigtiff", "reader"), [(False, "tiffslide"), (True, "direct")])
def test_a_big_endian_slide_opens(tmp_path: Path, picture: np.ndarray, bigtiff: bool, reader: str) -> None:
    """Byte order changes no pixel, only the reader where OpenSlide does not know it."""
    path = tmp_path / "a.tif"
    keywords = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(path, picture, byteorder=">", bigtiff=bigtiff, **keywords)
    with open_slide(path, mpp=0.5) as slide:
        assert slide.reader.startswith(reader)
        assert (slide.read_region(7, 9, 0, 300, 200).pixels == picture[9:209, 7:307]).all()


@pytest.mark.parametrize(
    ("tag", "value"), [(322, 1 << 20), (323, 1 << 31), (256, 40_000_000), (257, 1 << 31), (256, 60_000)]
)
def test_fault_010_and_011_absurd_sizes_are_refused_before_a_decoder(make_tiff: MakeTiff, tag: int, value: int) -> None:
    """Sides no slide has, or more tiles than the directory lists, never reach a library."""
    path = make_tiff()
    overwrite(path, tag, value)
    error = refusal(path)
    assert error.code == "E_ABSURD"
    assert "a.tif" in error.message


def test_fault_014_a_loop_of_directories_is_refused(make_tiff: MakeTiff) -> None:
    """A directory that points back to an earlier one ends the parse."""
    path = make_tiff(levels=2)
    with tifffile.TiffFile(path) as f:
        first, second = f.pages[0].offset, f.pages[1].offset
    _set_next(path, second, first)
    error = refusal(path)
    assert error.code == "E_ABSURD"
    assert "loop" in error.message


def test_fault_014_a_next_pointer_beyond_the_end_is_a_cut_file(make_tiff: MakeTiff) -> None:
    """The directory says where the file must reach."""
    path = make_tiff()
    with tifffile.TiffFile(path) as f:
        first = f.pages[0].offset
    _set_next(path, first, 99_999_999)
    error = refusal(path)
    assert error.code == "E_TRUNCATED"
    assert "100000001" in error.message


def test_fault_016_a_huge_colour_profile_is_refused(make_tiff: MakeTiff) -> None:
    """32 MiB of profile are nobody's."""
    assert refusal(make_tiff(iccprofile=bytes(32 << 20))).code == "E_ABSURD"


def test_fault_015_missing_tile_offsets_are_refused(make_tiff: MakeTiff, edit_bytes: Callable[..., None]) -> None:
    """A slide without tile offsets is not an empty slide."""
    path = make_tiff(compression="jpeg2000")
    with tifffile.TiffFile(path) as f:
        entry = f.pages[0].tags[324].offset
    edit_bytes(path, entry, struct.pack("<H", 65_000))
    assert refusal(path).code == "E_ABSURD"


def test_fault_003_every_cut_of_a_file_is_an_error_of_the_family(make_tiff: MakeTiff, picture: np.ndarray) -> None:
    """Wherever a file ends, it is refused with a code; nothing else is raised."""
    path = make_tiff(data=picture[:130, :200], levels=2)
    data = path.read_bytes()
    for end in range(8, len(data) - 1, max(1, len(data) // 150)):
        with pytest.raises(UnreadableSlideError) as caught:
            check_tiff(read_tiff_header(io.BytesIO(data[:end]), end, "a.tif"), "a.tif")
        assert caught.value.code in ("E_TRUNCATED", "E_NOT_A_SLIDE")


def test_random_damage_raises_nothing_else(make_tiff: MakeTiff, picture: np.ndarray) -> None:
    """Flipped bytes in a directory give a header or an error of the family, quickly."""
    path = make_tiff(data=picture[:130, :200], levels=2)
    clean = path.read_bytes()
    rng = np.random.default_rng(0)
    with tifffile.TiffFile(path) as f:
        starts = [page.offset for page in f.pages]
    for _ in range(400):
        data = bytearray(clean)
        at = int(rng.choice(starts)) + int(rng.integers(0, 200))
        data[min(at, len(data) - 1)] = int(rng.integers(0, 256))
        with contextlib.suppress(UnreadableSlideError):
            check_tiff(read_tiff_header(io.BytesIO(bytes(data)), len(data), "a.tif"), "a.tif")


def test_tiles_under_a_rectangle_and_their_holes(make_tiff: MakeTiff) -> None:
    """700 px wide are 6 tiles of 128: the numbering and the hole are exact."""
    ifd = header_of(make_tiff()).primary
    assert tiles_under(ifd, 120, 130, 20, 300).tolist() == [6, 7, 12, 13, 18, 19]
    assert missing_mask(ifd, 0, 0, 700, 500) is None
    ifd.byte_counts[7] = 0
    gone = missing_mask(ifd, 120, 130, 20, 300)
    assert gone is not None
    assert gone.sum() == 12 * 126
    assert gone[:126, 8:].all()


def _set_next(path: Path, directory: int, target: int) -> None:
    with path.open("r+b") as f:
        f.seek(directory)
        n = struct.unpack("<H", f.read(2))[0]
        f.seek(directory + 2 + 12 * n)
        f.write(struct.pack("<I", target))

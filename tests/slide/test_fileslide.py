"""Threads, processes, bounds and colour of a slide in a file."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from wsi_ips.errors import ConfigError, UnreadableSlideError
from wsi_ips.geometry import Box0
from wsi_ips.slide import backends
from wsi_ips.slide.opening import _properties
from wsi_ips.slide.reader import Slide, open_slide
from wsi_ips.slide.regions import clip_region, composite_on_white, usable_levels
from wsi_ips.slide.tiffheader import read_tiff_header

MakeTiff = Callable[..., Path]


@pytest.mark.parametrize("compression", ["zlib", "jpeg2000"])
def test_four_threads_read_the_same_pixels(make_tiff: MakeTiff, compression: str) -> None:
    """Who reads, and how many at once, changes no pixel."""
    places = [(x, y) for y in range(0, 400, 90) for x in range(0, 600, 90)]
    with open_slide(make_tiff(compression=compression)) as slide:
        one = [slide.read_region(x, y, 0, 120, 100).pixels for x, y in places]
        with ThreadPoolExecutor(4) as pool:
            four = list(pool.map(lambda p: slide.read_region(*p, 0, 120, 100).pixels, places))
    assert all((a == b).all() for a, b in zip(one, four, strict=True))


def test_it_is_a_slide_and_closes(make_tiff: MakeTiff) -> None:
    """A closed slide says so instead of reading."""
    with open_slide(make_tiff()) as slide:
        assert isinstance(slide, Slide)
    with pytest.raises(ConfigError, match="closed"):
        slide.read_region(0, 0, 0, 10, 10)


def test_it_refuses_pickling(make_tiff: MakeTiff) -> None:
    """Handles do not travel between processes; paths do."""
    with open_slide(make_tiff()) as slide, pytest.raises(TypeError, match="pickled"):
        pickle.dumps(slide)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_it_refuses_to_be_read_after_a_fork(make_tiff: MakeTiff) -> None:
    """A handle shared through fork would return wrong pixels in silence."""
    with open_slide(make_tiff()) as slide:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                slide.read_region(0, 0, 0, 10, 10)
                answer = b"read"
            except ConfigError as error:
                answer = str(error).encode()
            os.write(write_end, answer)
            os._exit(0)
        os.waitpid(child, 0)
        assert b"open a slide in the process that reads it" in os.read(read_end, 500)


def test_fault_039_bounds_are_kept(make_tiff: MakeTiff, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing outside the scanner's bounds is shown, on any level; bounds beyond level 0 are cut."""
    monkeypatch.setattr(backends, "_bounds", lambda properties, prefix: Box0(200, 100, 9999, 150))
    with open_slide(make_tiff(levels=2)) as slide:
        assert slide.bounds == Box0(200, 100, 500, 150)
        region = slide.read_region(180, 80, 0, 100, 300)
        wanted = np.full((300, 100, 3), 255, np.uint8)
        wanted[20:170, 20:] = picture[100:250, 200:280]
        assert (region.pixels == wanted).all()
        assert region.n_missing == 0
        coarse = slide.read_region(180, 80, 1, 50, 150).pixels
        assert (coarse[10:85, 10:] == picture[::2, ::2][50:125, 100:140]).all()
        assert (coarse[:10] == 255).all()
        assert (slide.read_region(0, 0, 0, 64, 32).pixels == 255).all()


def test_reads_beyond_the_slide_are_white_and_not_missing(make_tiff: MakeTiff) -> None:
    """The glass beside the scan is not lost data, for both readers, on odd levels too."""
    for compression in ("zlib", "jpeg2000"):
        with open_slide(make_tiff(compression=compression, levels=3)) as slide:
            for level, (width, height, downsample) in enumerate(slide.levels):
                region = slide.read_region(0, 0, level, width + 9, height + 7)
                assert region.n_missing == 0, (compression, level, downsample)
                assert (region.pixels[height:] == 255).all()
                assert (region.pixels[:, width:] == 255).all()


def test_a_colour_profile_is_applied_on_wish(make_tiff: MakeTiff, picture: np.ndarray) -> None:
    """Off by default; with "srgb" the px are what Pillow's own conversion gives, and white stays white."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = make_tiff(iccprofile=profile)
    with open_slide(plain) as slide:
        raw = slide.read_region(650, 450, 0, 80, 70).pixels
    assert (raw[:50, :50] == picture[450:, 650:]).all()
    with open_slide(plain, icc="srgb") as slide:
        assert slide.notes == ()
        mapped = slide.read_region(650, 450, 0, 80, 70).pixels
    source = ImageCms.getOpenProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    wanted = ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(picture[450:, 650:])), transform)
    assert (mapped[:50, :50] == np.asarray(wanted)).all()
    assert (mapped[50:] == 255).all()


def test_a_profile_that_is_not_there_or_broken(make_tiff: MakeTiff) -> None:
    """Absent: a note. Damaged: refused when asked for, ignored when not."""
    with open_slide(make_tiff(), icc="srgb") as slide:
        assert [n.code for n in slide.notes] == ["E_NO_ICC"]
    broken = make_tiff(iccprofile=b"x" * 400)
    open_slide(broken).close()
    with pytest.raises(UnreadableSlideError, match=r"E_PIXEL_FORMAT.*colour profile"):
        open_slide(broken, icc="srgb")


def test_properties_come_from_an_allow_list(make_tiff: MakeTiff) -> None:
    """Names, dates and serial numbers in the file stay in the file."""
    description = "Aperio Image Library v1\r\n700x500|AppMag = 20|MPP = 0.5|Filename = SMITH|ScanScope ID = 7|Date = 1"
    with open_slide(make_tiff("a.svs", description=description, compression="jpeg")) as slide:
        allowed = {"vendor", "width", "height", "levels", "objective_power", "tile_width", "tile_height", "icc_bytes"}
        assert set(slide.properties) <= allowed
        assert slide.properties["vendor"] == "aperio"
        assert "SMITH" not in str(slide.properties)


def test_fault_039_regions_bounds_and_focal_planes_are_recorded(make_tiff: MakeTiff) -> None:
    """A slide of several is said to be one; a plain slide says nothing of it."""
    places = {f"openslide.region[{i}].{side}": "9" for i in range(3) for side in ("x", "y", "width", "height")}
    said = backends.Description("r", "leica", [(700, 500)], Box0(20, 10, 600, 400), places)
    path = make_tiff()
    with path.open("rb") as f:
        header = read_tiff_header(f, path.stat().st_size, "a.tif")
    header = replace(header, ifds=tuple(replace(header.primary, focus=plane) for plane in (0, -1000, 1000)))
    found = _properties(said, None, header)
    assert (found["regions"], found["bounds"], found["focal_planes"]) == ("3", "600x400 px at (20, 10)", "3")
    plain = _properties(backends.Description("r", "aperio", [(700, 500)], Box0(0, 0, 700, 500), {}), None, None)
    assert not {"regions", "bounds", "focal_planes"} & set(plain)


def test_compositing_is_exact() -> None:
    """Alpha 0 is white and missing, 255 is itself, half is half way to white."""
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 100, 255, 128]]], np.uint8)
    region = composite_on_white(rgba)
    assert region.n_missing == 1
    assert region.pixels[0].tolist() == [[255, 255, 255], [10, 20, 30], [127, 177, 255]]


def test_fault_024_odd_level_sizes_are_kept_and_strange_ones_not() -> None:
    """Rounding of sides is no other aspect; a level of half the width is."""
    numbers, levels, notes = usable_levels([(4443, 3567), (2221, 1783), (37, 31), (1110, 1783)])
    assert numbers == (0, 1) + ((2,) if 2 in numbers else ())
    assert 3 not in numbers
    assert levels[1].downsample == pytest.approx(2.0005055)
    assert {n.code for n in notes} == {"E_LEVEL"}
    assert usable_levels([(300, 250), (150, 125), (75, 62), (37, 31)])[0] == (0, 1, 2, 3)
    assert usable_levels([(75, 62), (300, 250)])[0] == (1, 0)


def test_clipping_keeps_whole_pixels() -> None:
    """A px of a level is inside when its centre is."""
    clip = clip_region(Box0(10, 0, 101, 50), 2.0, 0, 0, 80, 30)
    assert (clip.left_px, clip.width_px, clip.top_px, clip.height_px) == (5, 50, 0, 25)
    assert clip_region(Box0(0, 0, 10, 10), 1.0, 20, 20, 5, 5).width_px == 0

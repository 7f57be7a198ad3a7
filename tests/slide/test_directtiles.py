"""The fast path: the px of OpenSlide, whatever the file's coding and the place on its grid; errors stay errors."""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile

from wsi_ips.errors import ConfigError, TileReadError
from wsi_ips.slide import proving
from wsi_ips.slide.fileslide import FileSlide
from wsi_ips.slide.jpegstream import stream_head
from wsi_ips.slide.reader import open_slide
from wsi_ips.slide.tilecache import TileCache
from wsi_ips.slide.tilecodes import decode_jpeg

Make = Callable[..., Path]
KINDS = ("420", "422", "444", "rgb", "rgb-jfif", "ycbcr-adobe", "jp2k", "deflate", "differences", "lzw", "lzw-plain")
DEFLATED = ("deflate", "differences")
LOSSLESS = (*DEFLATED, "lzw", "lzw-plain")
WIDTH, HEIGHT = 1021, 733


@pytest.fixture(scope="session")
def tissue() -> np.ndarray:
    """(733, 1021, 3) uint8, coloured blobs and noise: chroma that subsampling blurs, edges that ring."""
    rng = np.random.default_rng(3)
    low = rng.integers(60, 256, (47, 65, 3), np.uint8)
    pixels = cv2.resize(low, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(pixels + rng.integers(-20, 21, pixels.shape), 0, 255).astype(np.uint8)


def _encode(tile: np.ndarray, kind: str) -> bytes:
    if kind == "jp2k":
        return bytes(imagecodecs.jpeg2k_encode(tile, level=40, codecformat="j2k", colorspace="SRGB", mct=False, reversible=False))
    if kind in LOSSLESS:
        plain = (imagecodecs.delta_encode(tile, axis=1) if kind in ("differences", "lzw") else tile).tobytes()
        return zlib.compress(plain) if kind in DEFLATED else bytes(imagecodecs.lzw_encode(plain))
    if kind.startswith("rgb"):
        data = bytes(imagecodecs.jpeg8_encode(tile, level=85, colorspace="RGB", outcolorspace="RGB", subsampling="444"))
        frame = data.index(b"\xff\xc0")
        kept = data[:frame].replace(data[2 : data.index(b"\xff\xdb")], b"")  # no marker tells the colours
        frame_bytes = bytearray(data[frame:])
        frame_bytes[10:19:3] = bytes((1, 2, 3))  # component ids that mean YCbCr to those who guess
        scan = frame_bytes.index(b"\xff\xda")
        frame_bytes[scan + 5 : scan + 11 : 2] = bytes((1, 2, 3))
        data = kept + bytes(frame_bytes)
        jfif = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"  # says YCbCr, and is not to be believed
        return data[:2] + jfif + data[2:] if kind == "rgb-jfif" else data
    sampling = "420" if kind == "ycbcr-adobe" else kind
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(tile), quality=85, colorspace="RGB", colorsubsampling=sampling)
    if kind == "ycbcr-adobe":  # a marker behind the tables that says RGB
        frame = data.index(b"\xff\xc0")
        return data[:2] + data[20:frame] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + data[frame:]
    return bytes(data)


def write_slide(path: Path, pixels: np.ndarray, kind: str, side: int, levels: int = 1, skip: tuple[int, ...] = ()) -> Path:
    """Write a tiled TIFF of a kind; levels are halved; `skip` names level-0 tiles that are never written."""
    is_aperio = kind in ("rgb", "rgb-jfif", "jp2k")
    tags: dict[str, object] = {"photometric": "rgb", "compression": 33005 if kind == "jp2k" else "jpeg"}
    if kind in LOSSLESS:
        tags = {"photometric": "rgb", "compression": "deflate" if kind in DEFLATED else "lzw",
                "predictor": kind in ("differences", "lzw")}  # fmt: skip
    elif not kind.startswith(("rgb", "jp2k")):
        tags = {"photometric": "ycbcr", "compression": "jpeg",
                "subsampling": {"422": (2, 1), "444": (1, 1)}.get(kind, (2, 2))}  # fmt: skip
    elif kind != "jp2k":
        tags |= {"subsampling": (1, 1), "compressionargs": {"outcolorspace": "rgb"}}
    about = {"description": "Aperio Image Library v1\r\n1x1 |AppMag = 20|MPP = 0.5"} if is_aperio else {}
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        for level in range(levels):
            height, width = pixels.shape[:2]
            padded = np.pad(pixels, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")
            tiles = [np.ascontiguousarray(padded[y : y + side, x : x + side])
                     for y in range(0, height, side) for x in range(0, width, side)]  # fmt: skip
            data = [b"" if not level and i in skip else _encode(tile, kind) for i, tile in enumerate(tiles)]
            out.write(iter(data), shape=pixels.shape, dtype=np.uint8, tile=(side, side), **tags, **about,
                      subfiletype=1 if level and not is_aperio else 0, resolution=(20_000, 20_000),
                      resolutionunit="CENTIMETER", metadata=None, software=False)  # fmt: skip
            pixels = np.ascontiguousarray(pixels[::2, ::2])
    return path


@pytest.fixture
def make(tmp_path: Path, tissue: np.ndarray) -> Make:
    """Write a slide of tissue; see `write_slide`."""

    def write(kind: str = "420", side: int = 128, **options: object) -> Path:
        name = "a.svs" if kind in ("rgb", "rgb-jfif", "jp2k") else "a.tif"
        return write_slide(tmp_path / name, tissue, kind, side, **options)  # type: ignore[arg-type]

    return write


def _openslide(path: Path, x0: int, y0: int, level: int, width: int, height: int) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        rgba = slide.read_region((x0, y0), level, (width, height))
        white = np.full((height, width, 3), 255, np.uint8)
        found = np.asarray(rgba)
        return np.where(found[..., 3:] == 0, white, found[..., :3])


def _places(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Aligned, off the grid, across four file tiles, over the edges."""
    return [(0, 0, 128, 128), (240, 240, 240, 240), (128, 256, 128, 128), (1, 3, 200, 170), (57, 191, 333, 128), (256, 128, 17, 300),
            (width - 100, height - 90, 150, 130), (-20, -7, 90, 60), (width - 5, 0, 64, 64), (width + 3, 5, 20, 20)]  # fmt: skip


@pytest.mark.parametrize("side", [128, 240])
@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_is_openslides(make: Make, kind: str, side: int) -> None:
    """Difference 0 for every coding, on and off the grid of file tiles, at the edges, whatever markers say of colours."""
    path = make(kind, side)
    with open_slide(path) as slide:
        assert slide.reader.startswith("direct"), slide.reader
        for x0, y0, width, height in _places(WIDTH, HEIGHT):
            ours = slide.read_region(x0, y0, 0, width, height)
            assert np.array_equal(ours.pixels, _openslide(path, x0, y0, 0, width, height)), (x0, y0)
            assert ours.n_missing == 0


def test_coarser_levels_are_openslides_where_px_fall_on_px(tmp_path: Path, tissue: np.ndarray) -> None:
    """A level of half the size, read where its px begin on whole level-0 px."""
    path = write_slide(tmp_path / "a.tif", tissue[:512, :896], "420", 128, levels=3)
    with open_slide(path) as slide:
        assert slide.reader.startswith("direct")
        for level in (1, 2):
            step = 2**level
            for x, y, width, height in ((0, 0, 128, 128), (33, 17, 90, 60), (896 // step - 50, 3, 80, 70)):
                found = slide.read_region(x * step, y * step, level, width, height).pixels
                assert np.array_equal(found, _openslide(path, x * step, y * step, level, width, height)), (level, x, y)


@pytest.mark.parametrize("name", ["aperio/CMU-1-Small-Region.svs", "tiff/CMU-1-Small-Region.jpeg.tiff",
                                  "aperio/tcga-cr-7395-01a-01-ts1.svs"])  # fmt: skip
def test_real_slides_have_openslides_pixels(shared_data: Path, name: str) -> None:
    """Every px of level 0, in blocks off the grid, and of the other levels as far as px fall on px."""
    path = shared_data / "slides" / name
    with open_slide(path, 0.5) as slide:
        assert slide.reader.startswith("direct")
        width, height, _ = slide.levels[0]
        for y0 in range(-100, height, 700):
            for x0 in range(-100, width, 700):
                ours = slide.read_region(x0, y0, 0, 700, 700)
                assert np.array_equal(ours.pixels, _openslide(path, x0, y0, 0, 700, 700)), (x0, y0)
        if len(slide.levels) > 1:
            assert np.array_equal(slide.read_region(0, 0, 1, 600, 500).pixels, _openslide(path, 0, 0, 1, 600, 500))


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("kind", ["420", "422", "444", "rgb"])
def test_shrunk_by_the_decoder_it_looks_as_averaged(make: Make, kind: str, shrink: int) -> None:
    """Mean difference of at most 2 from decoding and averaging, at every place, on the grid and off it."""
    with open_slide(make(kind, 240 if kind == "444" else 128)) as slide:
        assert isinstance(slide, FileSlide)
        if shrink not in slide.shrinks(0):
            assert kind == "422"
            return
        for x0, y0, width, height in ((0, 0, 64, 64), (8, 24, 30, 40), (16, 8, 80, 61), (160, 80, 100, 75)):
            out = np.empty((height, width, 3), np.uint8)
            assert slide.read_into(out, x0, y0, 0, shrink) == 0
            whole = slide.read_region(x0, y0, 0, width * shrink, height * shrink).pixels
            wanted = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
            assert np.abs(out.astype(int) - wanted).mean() <= 2.0, (x0, y0)


def test_shrunk_over_edges_and_off_the_grid(make: Make) -> None:
    """Corners between shrunk px and rectangles that reach out of the scan are averaged from whole px, white outside."""
    with open_slide(make("420")) as slide:
        for x0, y0, width, height in ((3, 5, 40, 30), (800, 600, 120, 100), (WIDTH - 20, 0, 30, 30), (-8, 0, 20, 20)):
            out = np.empty((height, width, 3), np.uint8)
            slide.read_into(out, x0, y0, 0, 2)  # type: ignore[attr-defined]
            whole = slide.read_region(x0, y0, 0, width * 2, height * 2).pixels
            wanted = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
            assert np.abs(out.astype(int) - wanted).mean() <= 2.0
            beyond = max(0, (WIDTH - x0 + 1) // 2)
            assert (out[:, beyond:] == 255).all()


def test_missing_tiles_are_white_and_counted(make: Make) -> None:
    """A tile that was never written is white; its px inside the rectangle are counted, as OpenSlide has them."""
    path = make("420", skip=(0, 9))  # (0, 0) and column 1 of row 1
    with open_slide(path) as slide:
        assert slide.reader.startswith("direct")
        found = slide.read_region(0, 0, 0, 128, 128)
        assert (found.n_missing, found.pixels.min()) == (128 * 128, 255)
        found = slide.read_region(100, 100, 0, 100, 90)
        assert found.n_missing == 28 * 28 + 72 * 62
        assert np.array_equal(found.pixels, _openslide(path, 100, 100, 0, 100, 90))
        out = np.empty((64, 64, 3), np.uint8)
        assert slide.read_into(out, 0, 0, 0, 2) == 128 * 128  # type: ignore[attr-defined]
        assert out.min() == 255


def test_a_missing_tile_of_a_coarse_aperio_level_stays_with_openslide(tmp_path: Path, tissue: np.ndarray) -> None:
    """There OpenSlide shows the finer level; so it goes on reading."""
    path = write_slide(tmp_path / "a.svs", tissue, "rgb", 128, levels=2)
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[1].tags["TileByteCounts"]
        at, code = tag.valueoffset, {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
    with path.open("r+b") as f:
        f.seek(at)
        f.write(b"\0" * code)
    with open_slide(path) as slide:
        assert slide.reader.startswith("openslide")


@pytest.mark.parametrize("how", ["cut short", "bad code", "no stream", "other size"])
def test_a_damaged_tile_raises_and_the_next_one_reads(make: Make, tissue: np.ndarray, how: str) -> None:
    """P6: no px are made up for it, directly or through a neighbour; what is whole reads on."""
    path = make("420")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[10], tiff.pages[0].databytecounts[10]
    small = simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8), colorsubsampling="420")
    with path.open("r+b") as f:
        f.seek(offset + (count // 2 if how in ("cut short", "bad code") else 0))
        n = count - count // 2
        f.write({"cut short": b"\0" * n, "bad code": b"\xff\xd9" + b"\x55" * (n - 2), "no stream": b"\0" * count,
                 "other size": small}[how])  # fmt: skip
    with open_slide(path) as slide:
        assert slide.reader.startswith("direct")
        for _ in range(2):
            with pytest.raises(TileReadError, match=r"a\.tif: pixels at level-0 px \(256, 128\).* cannot be decoded"):
                slide.read_region(256, 128, 0, 128, 128)
            with pytest.raises(TileReadError):
                slide.read_region(200, 100, 0, 100, 100)
        fine = slide.read_region(384, 128, 0, 128, 128).pixels
        assert np.abs(fine.astype(int) - tissue[128:256, 384:512]).mean() < 15


def _is_damaged(stream: bytes, head: bytes) -> bool:
    try:
        decode_jpeg(stream, head, 1, np.empty((128, 128, 3), np.uint8))
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("kind", ["420", *DEFLATED])
def test_damage_where_the_file_is_probed_does_not_change_the_reader(make: Make, kind: str) -> None:
    """P6: OpenSlide would fill such a tile with grey; that it can is no reason to let it read the file."""
    path = make(kind)
    with tifffile.TiffFile(path) as tiff:
        page, number = tiff.pages[0], int(np.argmax(tiff.pages[0].databytecounts))
        at, count, head = page.dataoffsets[number], page.databytecounts[number], stream_head(page.jpegtables or b"\xff\xd8\xff\xd9", is_rgb=False)
    x0, y0, sound = number % -(-WIDTH // 128) * 128, number // -(-WIDTH // 128) * 128, path.read_bytes()
    for place in range(at + count // 2, at + count):  # the first byte whose change OpenSlide does not mind and a strict decoder does
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x41]) + sound[place + 1 :])
        with contextlib.suppress(openslide.OpenSlideError):
            _openslide(path, x0, y0, 0, 128, 128)
            if kind != "420" or _is_damaged(path.read_bytes()[at : at + count], head):
                break
    else:
        pytest.fail("OpenSlide minds every change")
    with open_slide(path) as slide:
        assert slide.reader.startswith("direct")
        with pytest.raises(TileReadError, match="cannot be decoded"):
            slide.read_region(x0, y0, 0, 128, 128)


def test_a_coarse_level_that_is_all_damage_does_not_change_the_reader(tmp_path: Path, tissue: np.ndarray) -> None:
    """P6: level 0 has proven the file; the coarse level's tiles fail, and level 0 reads on."""
    path = write_slide(tmp_path / "a.tif", tissue, "420", 128, levels=2)
    with tifffile.TiffFile(path) as tiff:
        tiles = list(zip(tiff.pages[1].dataoffsets, tiff.pages[1].databytecounts, strict=True))
    with path.open("r+b") as f:
        for at, count in tiles:
            f.seek(at + count // 2)
            f.write(b"\xff\xfa" * 20)
    with open_slide(path) as slide:
        assert slide.reader.startswith("direct")
        with pytest.raises(TileReadError, match="cannot be decoded"):
            slide.read_region(0, 0, 1, 128, 128)
        assert slide.read_region(0, 0, 0, 128, 128).pixels.std() > 10


@pytest.mark.parametrize("kind", DEFLATED)
def test_one_wrong_byte_of_a_deflated_tile_is_found(make: Make, kind: str) -> None:
    """Its checksum is held, so that no px is wrong in silence."""
    path = make(kind)
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].dataoffsets[10] + tiff.pages[0].databytecounts[10] // 2
    with path.open("r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 1]))
    with open_slide(path) as slide:
        assert slide.reader.startswith("direct")
        with pytest.raises(TileReadError, match=r"\(256, 128\)"):
            slide.read_region(260, 130, 0, 50, 50)
        assert slide.read_region(0, 0, 0, 128, 128).pixels.std() > 10


def test_an_lzw_tile_that_openslide_refuses_is_refused(make: Make) -> None:
    """LZW holds no checksum: what was cut short or holds an impossible code is found here exactly where OpenSlide finds it."""
    path, rng = make("lzw"), np.random.default_rng(0)
    with tifffile.TiffFile(path) as tiff:
        at, count = tiff.pages[0].dataoffsets[10], tiff.pages[0].databytecounts[10]
    whole, n_refused = path.read_bytes(), 0
    for trial in range(60):
        damaged, k = bytearray(whole), int(rng.integers(0, count))
        if trial % 3:
            damaged[at + k] ^= 1 << int(rng.integers(0, 8))
        else:
            damaged[at + k : at + count] = b"\xff" * (count - k)
        path.write_bytes(damaged)
        with openslide.OpenSlide(path) as judge, open_slide(path) as slide:
            assert slide.reader.startswith("direct")
            try:
                theirs = np.asarray(judge.read_region((256, 128), 0, (128, 128)))[..., :3]
            except openslide.OpenSlideError:
                n_refused += 1
                with pytest.raises(TileReadError, match=r"\(256, 128\)"):
                    slide.read_region(256, 128, 0, 128, 128)
            else:
                assert np.array_equal(slide.read_region(256, 128, 0, 128, 128).pixels, theirs)
    assert 10 < n_refused < 60


def test_threads_read_the_same_and_decode_each_file_tile_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the grid, in rows, by four threads: the px of one thread, and as many decodings as there are file tiles."""
    path, decoded = make("420"), []
    original = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: (decoded.append(1), original(*a, **k))[1])
    places = [(x, y) for y in range(64, 600, 128) for x in range(64, 860, 128)]
    with open_slide(path) as slide:
        decoded.clear()
        with ThreadPoolExecutor(4) as pool:
            four = list(pool.map(lambda p: slide.read_region(*p, 0, 128, 128).pixels, places))
        n_decoded = len(decoded)
    with open_slide(path) as slide:
        assert all(np.array_equal(a, slide.read_region(*p, 0, 128, 128).pixels) for a, p in zip(four, places, strict=True))
    assert 8 * 6 - 6 <= n_decoded <= 8 * 6  # a few are left from the comparison with OpenSlide


def test_the_fast_path_is_only_for_files_that_agree(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that gives other px than OpenSlide is found out before the first tile, and OpenSlide reads."""
    path = make("420")
    original = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: original(*a, **k, fastupsample=True))
    with open_slide(path) as slide:
        assert slide.reader.startswith("openslide")
        assert np.array_equal(slide.read_region(5, 5, 0, 90, 80).pixels, _openslide(path, 5, 5, 0, 90, 80))


def test_the_fast_path_can_be_left_out(make: Make) -> None:
    """For those who want to compare."""
    path = make("420")
    with open_slide(path, reader="library") as slide, open_slide(path) as fast:
        assert slide.reader.startswith("openslide")
        assert np.array_equal(slide.read_region(7, 9, 0, 300, 200).pixels, fast.read_region(7, 9, 0, 300, 200).pixels)


def test_other_vendors_and_codings_stay_with_openslide(make: Make, tmp_path: Path, tissue: np.ndarray) -> None:
    """Px that are not packed at all, and JPEG of a vendor who places tiles by rules of their own."""
    with tifffile.TiffWriter(tmp_path / "plain.tif") as out:
        out.write(tissue, tile=(128, 128), photometric="rgb", resolution=(20_000, 20_000), resolutionunit=3)
    with open_slide(tmp_path / "plain.tif") as slide:
        assert slide.reader.startswith("openslide")
    from wsi_ips.slide.tiffheader import read_tiff_header

    path = make("420")
    with path.open("rb") as stream:
        header = read_tiff_header(stream, path.stat().st_size, path.name)
    assert proving.prove_direct(path, header, "ventana", [(WIDTH, HEIGHT)], lambda: pytest.fail("no need to look")) is None
    assert proving.prove_direct(path, header, "generic-tiff", [(WIDTH, HEIGHT - 1)], lambda: pytest.fail("no level")) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_closed_and_forked_it_refuses(make: Make) -> None:
    """As with any reader."""
    with open_slide(make("420")) as slide:
        read_end, write_end = os.pipe()
        if os.fork() == 0:
            try:
                slide.read_region(0, 0, 0, 10, 10)
                os.write(write_end, b"read")
            except ConfigError as error:
                os.write(write_end, str(error).encode())
            os._exit(0)
        assert b"open a slide in the process that reads it" in os.read(read_end, 500)
    with pytest.raises(ConfigError, match="closed"):
        slide.read_region(0, 0, 0, 10, 10)


def test_a_file_closes_when_its_last_reader_is_done(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed while a thread reads, the number stays that file's until the thread is done; twice is nothing."""
    path, closed = make("420"), []
    reading, go_on, pread, close = threading.Event(), threading.Event(), os.pread, os.close

    def slow(*a: int) -> bytes:
        reading.set()
        assert go_on.wait(20)
        return pread(*a)

    slide = open_slide(path)
    monkeypatch.setattr(os, "pread", slow)
    monkeypatch.setattr(os, "close", lambda number: (closed.append(number), close(number))[1])
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(slide.read_region, 0, 0, 0, 128, 128)
        assert reading.wait(20)
        slide.close()
        slide.close()
        assert not closed
        go_on.set()
        assert found.result().pixels.std() > 10
    assert len(closed) == 1


def test_the_cache_keeps_what_was_used_last_within_its_limit() -> None:
    """Four arrays fit; the fifth takes the place of the one used longest ago, and never of one that is lent."""
    cache, made = TileCache(max_bytes=4 * 300), []

    def fill(key: int) -> Callable[[np.ndarray], None]:
        return lambda pixels: (made.append(key), pixels.fill(key))[1]

    def get(key: int) -> int:
        return int(cache.get(key, (10, 10, 3), fill(key))[0, 0, 0])

    assert [get(k) for k in (1, 2, 3, 4, 1)] == [1, 2, 3, 4, 1]
    held = cache.get(2, (10, 10, 3), fill(2))[3:4]  # a view is enough
    assert [get(k) for k in (5, 6, 7, 8)] == [5, 6, 7, 8]
    assert held.min() == held.max() == 2
    assert 2 in cache
    assert 1 not in cache
    assert 3 not in cache
    assert made == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_cannot_be_made_is_not_kept() -> None:
    """An error reaches every caller, and the next call tries again."""
    cache = TileCache()

    def fail(pixels: np.ndarray) -> None:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            cache.get(1, (2, 2, 3), fail)
    assert cache.get(1, (2, 2, 3), lambda pixels: pixels.fill(9)).max() == 9

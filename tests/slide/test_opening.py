"""What is refused, with which code, and what opens with which reader."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import tiffslide

from wsi_ips.errors import MppError, SlideError, TileReadError
from wsi_ips.geometry import Mpp
from wsi_ips.report.thumbnail import read_thumbnail
from wsi_ips.slide import limits
from wsi_ips.slide.metadata import fingerprint
from wsi_ips.slide.reader import open_slide, read_into
from wsi_ips.slide.stamps import refuse_changed

MakeTiff = Callable[..., Path]


def refusal(path: str | Path, **options: float) -> SlideError:
    """The error of a slide that must not open."""
    with pytest.raises(SlideError) as caught:
        open_slide(path, **options)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", "E_EMPTY", "0 bytes"),
        (b"hello there\n", "E_NOT_A_SLIDE", "plain text"),
        (b"<!DOCTYPE html><html>404</html>", "E_NOT_A_SLIDE", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "E_NOT_A_SLIDE", "git lfs pull"),
        (b"\x1f\x8b\x08\0\0\0", "E_NOT_A_SLIDE", "gzip"),
        (b"PK\x03\x04\0\0", "E_NOT_A_SLIDE", "zip"),
        (bytes(4096), "E_NOT_A_SLIDE", "zero bytes"),
        (bytes(range(200)), "E_NOT_A_SLIDE", "none of the slide formats"),
        (b"II*\0\0\0\0\0", "E_NOT_A_SLIDE", "without any image"),
    ],
)
def test_fault_001_and_002_files_that_are_no_slides_say_what_they_are(tmp_path: Path, content: bytes, code: str, words: str) -> None:
    """A download gone wrong is named for what it is."""
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    error = refusal(path)
    assert error.code == code
    assert words in error.message
    assert "a.svs" in error.message


def test_fault_025_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe would hang for ever, a folder or device is no slide, a dangling link is missing."""
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "link.svs").symlink_to(tmp_path / "nowhere")
    assert refusal(tmp_path / "pipe.svs").code == "E_NOT_A_FILE"
    assert refusal(tmp_path).code == "E_NOT_A_FILE"
    assert refusal("/dev/null").code == "E_NOT_A_FILE"
    assert refusal(tmp_path / "link.svs").code == "E_MISSING"
    assert refusal(tmp_path / "none.svs").code == "E_MISSING"
    (tmp_path / "round.svs").symlink_to(tmp_path / "about.svs")
    (tmp_path / "about.svs").symlink_to(tmp_path / "round.svs")
    assert refusal(tmp_path / "round.svs").code == "E_MISSING"
    (tmp_path / "hole.svs").touch()
    os.truncate(tmp_path / "hole.svs", 1 << 40)
    assert refusal(tmp_path / "hole.svs").code == "E_NOT_A_SLIDE"
    assert fingerprint(tmp_path / "hole.svs")["size"] == 1 << 40  # in an instant


def test_messages_hold_no_folder(make_tiff: MakeTiff) -> None:
    """Folder names may name a patient: they stay out of messages."""
    path = make_tiff(data=np.zeros((500, 700), np.uint8), photometric="minisblack")
    assert str(path.parent) not in refusal(path).message


def test_a_tiled_tiff_opens_with_openslide(make_tiff: MakeTiff, picture: np.ndarray) -> None:
    """The plain case: exact pixels, sizes, downsamples and resolution."""
    with open_slide(make_tiff(levels=3, compression="lzw"), reader="library") as slide:
        assert slide.reader.startswith("openslide ")
        assert [(v.width, v.height) for v in slide.levels] == [(700, 500), (350, 250), (175, 125)]
        assert slide.mpp == Mpp(0.5, 0.5, "tiff")
        assert (slide.read_region(100, 50, 0, 300, 200).pixels == picture[50:250, 100:400]).all()
        assert (slide.read_region(100, 52, 1, 30, 20).pixels == picture[::2, ::2][26:46, 50:80]).all()


@pytest.mark.parametrize("compression", ["jpeg2000", "webp"])
def test_compressions_unknown_to_openslide_go_to_tiffslide(
    make_tiff: MakeTiff, picture: np.ndarray, compression: str
) -> None:
    """JPEG 2000 (34712) and WebP are read by TiffSlide, chosen before reading, at the right place."""
    with open_slide(make_tiff(compression=compression, levels=2)) as slide:
        assert slide.reader.startswith("tiffslide ")
        pixels = slide.read_region(100, 50, 1, 200, 150).pixels.astype(int)
        wanted = np.full((150, 200, 3), 255)
        wanted[:150, :200] = picture[::2, ::2][25:175, 50:250]
        assert np.abs(pixels - wanted).mean() < 3


def test_ome_tiff_pyramids_go_to_tiffslide(tmp_path: Path, picture: np.ndarray) -> None:
    """Levels in sub-images, which OpenSlide does not see, and the resolution out of the XML."""
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        meta = {"axes": "YXS", "PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}
        writer.write(picture, tile=(128, 128), photometric="rgb", compression="zlib", subifds=1, metadata=meta)
        writer.write(picture[::2, ::2], tile=(128, 128), photometric="rgb", compression="zlib", subfiletype=1)
    with open_slide(path) as slide:
        assert slide.reader.startswith("tiffslide ")
        assert slide.mpp == Mpp(0.25, 0.25, "ome")
        assert [v.downsample for v in slide.levels] == [1.0, 2.0]
        assert (slide.read_region(602, 400, 1, 60, 70).pixels[:50, :49] == picture[::2, ::2][200:250, 301:350]).all()


@pytest.mark.parametrize(
    ("dtype", "shape", "options", "words"),
    [
        (np.uint16, (500, 700, 3), {}, "16-bit"),
        (np.float32, (500, 700, 3), {}, "float"),
        (np.uint8, (500, 700), {"photometric": "minisblack"}, "grey"),
        (np.uint8, (500, 700, 4), {"photometric": "separated", "extrasamples": ()}, "CMYK"),
        (np.uint8, (3, 500, 700), {"planarconfig": "separate"}, "separate planes"),
        (np.uint8, (3, 500, 700), {"photometric": "minisblack"}, "multichannel"),
    ],
)
def test_fault_017_and_018_other_pixels_than_8_bit_rgb_are_refused(
    make_tiff: MakeTiff, dtype: type, shape: tuple[int, ...], options: dict, words: str
) -> None:
    """What was found is named, and what is needed."""
    path = make_tiff(data=np.zeros(shape, dtype), **options) if len(shape) < 3 or shape[0] != 3 else None
    if path is None:
        path = _write_planes(make_tiff, np.zeros(shape, dtype), options)
    error = refusal(path)
    assert error.code == "E_PIXEL_FORMAT"
    assert words in error.message
    assert "8-bit RGB" in error.message


def _write_planes(make_tiff: MakeTiff, data: np.ndarray, options: dict) -> Path:
    path = make_tiff()
    tifffile.imwrite(path, data, **({"tile": (128, 128), "photometric": "rgb"} | options))
    return path


def test_fault_019_strips_are_refused_with_the_cure(make_tiff: MakeTiff) -> None:
    """An untiled image is refused, with the command that makes it a slide."""
    error = refusal(make_tiff(tile=...))
    assert error.code == "E_UNTILED"
    assert "vips tiffsave" in error.message


@pytest.mark.parametrize("compression", ["zlib", "jpeg2000"])
def test_fault_003_a_cut_file_states_how_much_is_missing(make_tiff: MakeTiff, compression: str) -> None:
    """At 90 % of its length a slide is refused, with bytes found and needed, whatever the reader."""
    path = make_tiff(compression=compression, levels=2)
    size = path.stat().st_size
    os.truncate(path, size * 9 // 10)
    error = refusal(path)
    assert error.code == "E_TRUNCATED"
    assert str(size * 9 // 10) in error.message


def test_unknown_compression_is_named(make_tiff: MakeTiff) -> None:
    """A compression nobody decodes is refused by number before a decoder sees it."""
    path = make_tiff()
    with tifffile.TiffFile(path, mode="r+") as f:
        f.pages[0].tags[259].overwrite(34925)
    error = refusal(path)
    assert error.code == "E_UNSUPPORTED"
    assert "34925" in error.message


def test_fault_007_a_missing_tile_is_white_and_counted_by_both_readers(make_tiff: MakeTiff, picture: np.ndarray) -> None:
    """A tile of zero bytes is no black tissue."""
    for compression in ("zlib", "jpeg2000"):
        path = make_tiff(compression=compression)
        _zero_length(path, tile=1)
        with open_slide(path) as slide:
            region = slide.read_region(100, 100, 0, 200, 100)
        assert region.n_missing == 128 * 28
        assert (region.pixels[:28, 28:156] == 255).all()
        assert np.abs(region.pixels[30:].astype(int) - picture[130:200, 100:300]).mean() < 3


def test_fault_004_a_broken_tile_does_not_poison_the_others(make_tiff: MakeTiff, picture: np.ndarray) -> None:
    """After an error the same slide still reads its good tiles, and errs at the same place again."""
    for compression, where in (("zlib", r"\(384, 0\)"), ("lzw", r"\(384, 0\)"), ("jpeg2000", r"\(390, 10\)")):
        path = make_tiff(compression=compression)
        with tifffile.TiffFile(path) as f:
            offset, count = f.pages[0].dataoffsets[3], f.pages[0].databytecounts[3]
        with path.open("r+b") as f:
            f.seek(offset)
            f.write(bytes(count))
        with open_slide(path) as slide:
            for _ in range(2):
                with pytest.raises(TileReadError, match=r"E_TILE.*" + where):
                    slide.read_region(390, 10, 0, 50, 50)
                pixels = slide.read_region(10, 200, 0, 300, 100).pixels
                assert np.abs(pixels.astype(int) - picture[200:300, 10:310]).mean() < 3


def test_fault_006_an_error_never_changes_the_reader(make_tiff: MakeTiff, monkeypatch: pytest.MonkeyPatch) -> None:
    """P6: where OpenSlide refuses a file or a tile, TiffSlide is not asked: a second library's yes is wrong pixels."""
    asked = []
    monkeypatch.setattr(tiffslide, "TiffSlide", lambda *_: asked.append("opened"))
    path = make_tiff()
    with tifffile.TiffFile(path) as f:
        offset, count = f.pages[0].dataoffsets[3], f.pages[0].databytecounts[3]
    with path.open("r+b") as f:
        f.seek(offset)
        f.write(bytes(count))
    with open_slide(path) as slide, pytest.raises(TileReadError):
        slide.read_region(390, 10, 0, 50, 50)

    def refuse(*_: object) -> None:
        raise openslide.OpenSlideError("broken in some way")

    monkeypatch.setattr(openslide, "OpenSlide", refuse)
    error = refusal(path)
    assert error.code == "E_UNSUPPORTED"
    assert "OpenSlide cannot open it: broken in some way" in error.message
    assert not asked


def test_label_and_macro_images_never_leave_the_file(make_tiff: MakeTiff, monkeypatch: pytest.MonkeyPatch) -> None:
    """P12: they carry names: neither library is asked for them, and neither is taken for a level of the slide."""
    path = make_tiff("a.svs", description="Aperio Image Library v1\r\n700x500 (128x128)|AppMag = 20|MPP = 0.499")
    with tifffile.TiffWriter(path, append=True) as writer:
        for name, kind in (("thumbnail", 0), ("label", 1), ("macro", 9)):
            picture = np.full((250, 350, 3), 7, np.uint8)
            writer.write(picture, photometric="rgb", metadata=None, subfiletype=kind, rowsperstrip=50,
                         description=f"Aperio Image Library v1\r\n{name} 350x250")  # fmt: skip
    with openslide.OpenSlide(path) as plain:
        assert set(plain.associated_images) == {"thumbnail", "label", "macro"}
    asked = []
    for library in (openslide.OpenSlide, tiffslide.TiffSlide):
        monkeypatch.setattr(library, "associated_images", property(lambda _: asked.append("opened") or {}))
    with open_slide(path) as slide:
        assert slide.reader.startswith("direct")
        assert [(v.width, v.height) for v in slide.levels] == [(700, 500)]
        read_thumbnail(slide, 3.0)
        words = " ".join([*slide.properties, *slide.properties.values()]).lower()
        assert not any(name in words for name in ("thumbnail", "label", "macro"))
    assert not asked


def test_fault_006_a_jpeg_tile_cut_short_is_an_error_for_tiffslide_too(make_tiff: MakeTiff) -> None:
    """The grey rest of half a JPEG tile never becomes pixels, although the decoder offers it."""
    description = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"/>'
    path = make_tiff(compression="jpeg", description=description)
    with tifffile.TiffFile(path, mode="r+") as f:
        counts = list(f.pages[0].databytecounts)
        counts[0] //= 2
        f.pages[0].tags[325].overwrite(counts)
    with open_slide(path) as slide:
        assert slide.reader.startswith("tiffslide")
        with pytest.raises(TileReadError, match="cut short"):
            slide.read_region(0, 0, 0, 100, 80)
        slide.read_region(300, 200, 0, 100, 80)


def test_half_transparent_pixels_are_laid_on_white(make_tiff: MakeTiff) -> None:
    """Alpha 0 is missing and white; alpha 255 is the colour itself."""
    rgba = np.zeros((500, 700, 4), np.uint8)
    rgba[:, 350:, 3] = 255
    path = make_tiff(data=rgba, compression="webp", extrasamples=["unassalpha"])
    with open_slide(path) as slide:
        region = slide.read_region(300, 100, 0, 100, 40)
    assert region.n_missing == 50 * 40
    assert (region.pixels[:, :50] == 255).all()
    assert (region.pixels[:, 50:] <= 2).all()


def test_a_remote_slide_is_read_through_fsspec(make_tiff: MakeTiff, picture: np.ndarray) -> None:
    """`memory://` stands for any store: same pixels, same refusals."""
    fsspec = pytest.importorskip("fsspec")
    data = make_tiff(levels=2).read_bytes()
    store = fsspec.filesystem("memory")
    store.pipe({"/wsi/a.tif": data, "/wsi/cut.tif": data[: len(data) * 9 // 10], "/wsi/empty.tif": b"",
                "/wsi/text.tif": b"hello"})  # fmt: skip
    with open_slide("memory://wsi/a.tif") as slide:
        assert slide.name == "a.tif"
        assert slide.reader.startswith("tiffslide ")
        assert (slide.read_region(90, 40, 0, 120, 110).pixels == picture[40:150, 90:210]).all()
    assert refusal("memory://wsi/cut.tif").code == "E_TRUNCATED"
    assert refusal("memory://wsi/empty.tif").code == "E_EMPTY"
    assert refusal("memory://wsi/text.tif").code == "E_NOT_A_SLIDE"
    assert refusal("memory://wsi/none.tif").code == "E_MISSING"
    assert refusal("nonsense://wsi/none.tif").code == "E_UNSUPPORTED"


def test_fault_030_a_slide_without_resolution_needs_the_manifest(make_tiff: MakeTiff) -> None:
    """No µm per px, no slide; given one, it opens and says who gave it."""
    path = make_tiff(resolution=..., resolutionunit=...)
    error = refusal(path)
    assert isinstance(error, MppError)
    assert error.code == "E_MPP"
    assert "column 'mpp'" in error.message
    with open_slide(path, mpp=0.25) as slide:
        assert slide.mpp == Mpp(0.25, 0.25, "manifest")


def test_fault_024_a_level_of_other_aspect_is_left_out(make_tiff: MakeTiff, picture: np.ndarray) -> None:
    """A thumbnail of something else never serves as a level."""
    path = make_tiff()
    keywords = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(picture, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **keywords)
        writer.write(picture[:200:2, ::2], subfiletype=1, **keywords)
        writer.write(picture[::4, ::4], subfiletype=1, **keywords)
    with open_slide(path) as slide:
        assert [(v.width, v.height) for v in slide.levels] == [(700, 500), (175, 125)]
        assert [n.code for n in slide.notes] == ["E_LEVEL"]
        assert (slide.read_region(40, 20, 1, 30, 20).pixels == picture[::4, ::4][5:25, 10:40]).all()


def test_fault_020_and_032_aperio_names_are_understood_without_openslide(make_tiff: MakeTiff) -> None:
    """A JPEG 2000 SVS that only TiffSlide reads keeps its vendor's resolution, decimal comma and all."""
    description = "Aperio Image Library v1\r\n700x500 (128x128) J2K|AppMag = 20|MPP = 0,4990"
    with open_slide(make_tiff("a.svs", compression="jpeg2000", description=description)) as slide:
        assert slide.mpp == Mpp(0.499, 0.499, "vendor")
        assert slide.properties["vendor"] == "aperio"
        assert slide.properties["objective_power"] == "20"


def test_fault_037_an_svs_without_its_description_is_noted(make_tiff: MakeTiff) -> None:
    """A lost vendor block loses levels and resolution: the reader is told."""
    with open_slide(make_tiff("a.svs")) as slide:
        assert [n.code for n in slide.notes] == ["E_METADATA"]


def test_fault_056_entities_in_a_description_are_refused(make_tiff: MakeTiff) -> None:
    """XML bombs do not reach a parser."""
    error = refusal(make_tiff(description='<!DOCTYPE a [<!ENTITY b "c">]><OME>&b;</OME>'))
    assert error.code == "E_ABSURD"


def test_fault_008_a_tile_that_points_at_another_one_shows_in_the_strict_fingerprint(
    make_tiff: MakeTiff, picture: np.ndarray
) -> None:
    """Nothing in such a file is wrong, so it opens; that it is another file is recorded."""
    path = make_tiff()
    before = fingerprint(path, strict=True)
    with tifffile.TiffFile(path, mode="r+") as f:
        offsets, counts = list(f.pages[0].dataoffsets), list(f.pages[0].databytecounts)
        offsets[3], counts[3] = offsets[0], counts[0]
        f.pages[0].tags[324].overwrite(offsets)
        f.pages[0].tags[325].overwrite(counts)
    with open_slide(path) as slide:
        assert (slide.read_region(384, 0, 0, 128, 128).pixels == picture[:128, :128]).all()
    assert fingerprint(path, strict=True)["sha256"] != before["sha256"]


def test_fault_009_a_tile_beyond_the_end_of_the_file_is_a_cut_file(make_tiff: MakeTiff) -> None:
    """The bytes found and needed are said, before a decoder is asked."""
    path = make_tiff()
    with tifffile.TiffFile(path, mode="r+") as f:
        offsets = list(f.pages[0].dataoffsets)
        offsets[3] = 99_000_000
        f.pages[0].tags[324].overwrite(offsets)
    error = refusal(path)
    assert error.code == "E_TRUNCATED"
    assert f"it has {path.stat().st_size} bytes" in error.message
    assert "needs at least 990" in error.message


def test_fault_004_every_tile_of_a_half_copied_slide_is_tried(make_tiff: MakeTiff) -> None:
    """A file with zeros from its middle on: each tile is judged by itself, good ones after bad ones too."""
    path = make_tiff(compression="jpeg")
    with tifffile.TiffFile(path) as f:
        offsets, counts = f.pages[0].dataoffsets, f.pages[0].databytecounts
    half = path.stat().st_size // 2
    with path.open("r+b") as f:
        f.seek(half)
        f.write(bytes(offsets[-1] - half))
    gone = {i for i, (at, n) in enumerate(zip(offsets[:-1], counts, strict=False)) if at + n > half}
    found = set()
    with open_slide(path) as slide:
        for tile in reversed(range(len(offsets))):
            try:
                slide.read_region(tile % 6 * 128, tile // 6 * 128, 0, 100, 100)
            except TileReadError:
                found.add(tile)
    assert 5 < len(gone) < len(offsets) - 5
    assert found == gone


@pytest.mark.parametrize("compression", ["zlib", "jpeg", "jpeg2000"])
def test_fault_021_a_slide_read_twice_has_the_same_pixels(make_tiff: MakeTiff, compression: str) -> None:
    """No decoder leaves px as memory happened to hold them: fresh handles agree on every px, over the edges too."""
    path = make_tiff(compression=compression, levels=2)
    hashes = []
    for fill in (0, 255):
        with open_slide(path) as slide:
            found = hashlib.sha256()
            for level in range(2):
                pixels = np.full((560, 760, 3), fill, np.uint8)
                read_into(slide, pixels, -20, -30, level)
                found.update(pixels)
            hashes.append(found.hexdigest())
    assert hashes[0] == hashes[1]


def test_fault_026_files_that_change_are_told(make_tiff: MakeTiff) -> None:
    """Written over, replaced by another file of the same size, or gone: each is `E_CHANGED`, with sizes."""
    path = make_tiff()
    data = path.read_bytes()
    for change in (lambda: path.write_bytes(data + b"x"), lambda: _replace(path, data), path.unlink):
        path.write_bytes(data)
        with open_slide(path) as slide:
            refuse_changed(slide.path, slide.stamps)
            change()
            with pytest.raises(SlideError, match=r"E_CHANGED: a.tif: the file was changed") as caught:
                refuse_changed(slide.path, slide.stamps)
    assert "it is gone" in caught.value.message


def _replace(path: Path, data: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(data)
    other.replace(path)


def test_fault_027_a_mirax_index_without_its_files_names_what_is_missing(tmp_path: Path) -> None:
    """The folder, its index, a data file; and an index of a size that no scanner writes is not read."""
    index, folder = tmp_path / "a.mrxs", tmp_path / "a"
    index.write_bytes(b"\xff\xd8\xff a small picture")
    error = refusal(index)
    assert (error.code, "the folder a" in error.message) == ("E_PARTS", True)
    folder.mkdir()
    assert "Slidedat.ini" in refusal(index).message
    lines = ["[GENERAL]", "[HIERARCHICAL]", "INDEXFILE=Index.dat", "[DATAFILE]", "FILE_COUNT=2", "FILE_0=Data0.dat", "FILE_1=Data1.dat"]
    (folder / "Slidedat.ini").write_text("\n".join(lines))
    (folder / "Index.dat").touch()
    (folder / "Data0.dat").touch()
    error = refusal(index)
    assert (error.code, "missing Data1.dat in its folder a" in error.message) == ("E_PARTS", True)
    os.truncate(folder / "Slidedat.ini", limits.MAX_INDEX_BYTES + 1)
    assert refusal(index).code == "E_ABSURD"


def test_fault_027_a_vms_index_without_its_pictures_names_what_is_missing(tmp_path: Path) -> None:
    """Pictures and map are needed; what only speeds reading up is not."""
    lines = ["[Virtual Microscope Specimen]", "NoLayers=1", "ImageFile=a.jpg", "ImageFile(1,0)=b.jpg", "MapFile=map.jpg",
             "OptimisationFile=a.opt"]  # fmt: skip
    (tmp_path / "a.vms").write_text("\r\n".join(lines))
    (tmp_path / "a.jpg").touch()
    error = refusal(tmp_path / "a.vms")
    assert (error.code, "missing b.jpg, map.jpg beside it" in error.message) == ("E_PARTS", True)
    for name in ("b.jpg", "map.jpg"):
        (tmp_path / name).touch()
    assert refusal(tmp_path / "a.vms").code == "E_UNSUPPORTED"  # empty pictures: OpenSlide's own words


def test_fault_038_names_and_metadata_are_printed_escaped(tmp_path: Path, make_tiff: MakeTiff) -> None:
    """Control characters of a file's name or of its index move no cursor and begin no line."""
    path = make_tiff("a\x1b[31m\nb.tif", resolution=..., resolutionunit=...)
    assert refusal(path).message.startswith("a?[31m?b.tif: no believable")
    with open_slide(path, mpp=0.5) as slide:
        assert slide.name == "a?[31m?b.tif"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "Slidedat.ini").write_text("[GENERAL]\nSLIDE_TYPE=FLUORESCENCE\x1b[2J\n")
    (tmp_path / "m.mrxs").write_bytes(b"x")
    error = refusal(tmp_path / "m.mrxs")
    assert error.code == "E_PIXEL_FORMAT"
    assert "(FLUORESCENCE?[2J)" in error.message


@pytest.mark.parametrize("tag", [270, 700])
@pytest.mark.parametrize(
    "xml",
    ['<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode("utf-16"), '\ufeff<!DOCTYPE a []><a/>'.encode(),
     b'<?xml version="1.0" encoding="UTF-7"?>+ADwAIQ-DOCTYPE a []><a/>', b"<a/><!entity b 'c'>"],
    ids=["UTF-16", "UTF-8 with a mark", "UTF-7", "small letters"],
)  # fmt: skip
def test_fault_056_entities_in_any_encoding_are_refused(make_tiff: MakeTiff, tag: int, xml: bytes) -> None:
    """In the description and in XMP, which vendors' readers parse: refused before any of them sees the file."""
    error = refusal(make_tiff(description=..., extratags=[(tag, 7, len(xml), xml, True)]))
    assert error.code == "E_ABSURD"
    assert "entities" in error.message


def _zero_length(path: Path, tile: int) -> None:
    with tifffile.TiffFile(path, mode="r+") as f:
        counts = list(f.pages[0].databytecounts)
        counts[tile] = 0
        f.pages[0].tags[325].overwrite(counts)

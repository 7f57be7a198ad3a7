"""Headers that state too much, and tiles that would swell: refused in an instant, with next to no memory."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from wsi_ips.errors import SlideError, TileReadError, UnreadableSlideError
from wsi_ips.slide import dicom, icc, limits, tiffcheck, tiffheader
from wsi_ips.slide.backends import _profile_bytes
from wsi_ips.slide.reader import open_slide
from wsi_ips.slide.streamsize import frame_size
from wsi_ips.slide.tilecodes import decode_jpeg2000, decode_lossless

MakeTiff = Callable[..., Path]


def refusal(path: Path) -> SlideError:
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    return caught.value


def tiff_of(*directories: list[tuple[int, int, int, int]], size: int = 1 << 30) -> Callable[[], tiffheader.TiffHeader]:
    """Lay a little-endian TIFF of directories of (tag, kind, count, value or offset), and read its header."""
    data = bytearray(struct.pack("<2sHI", b"II", 42, 8))
    for i, entries in enumerate(directories):
        data += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries)
        data += struct.pack("<I", len(data) + 4 if i + 1 < len(directories) else 0)
    return lambda: tiffheader.read_tiff_header(_Sparse(bytes(data)), size, "a.tif")


class _Sparse(io.BytesIO):
    """A file that is zeros behind its header, as far as anyone reads."""

    def read(self, n: int | None = -1) -> bytes:
        return super().read(n).ljust(n or 0, b"\0")


IMAGE = [(256, 4, 1, 700), (257, 4, 1, 500), (322, 4, 1, 128), (323, 4, 1, 128)]


def test_fault_039_the_focal_plane_of_an_image_is_read() -> None:
    """Hamamatsu's own tag, signed, and nobody else's."""
    focus = (65424, 9, 1, (1 << 32) - 1000)
    assert tiff_of([*IMAGE, (65420, 4, 1, 1), focus])().ifds[0].focus == -1000
    assert tiff_of([*IMAGE, focus])().ifds[0].focus == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([(256, 4, 1, limits.MAX_SIDE_PX + 1)], "size of 2000001 x 500"),
        ([(322, 4, 1, limits.MAX_TILE_PX + 1)], "tiles of 8193 x 128"),
        ([(324, 1, limits.MAX_TILES + 1, 0)], "tag 324 .* 20000001 values"),
        ([(34675, 7, limits.MAX_ICC_BYTES + 1, 0)], "colour profile states 16777217 bytes"),
        ([(270, 2, limits.MAX_TEXT_BYTES + 1, 0)], "tag 270 of its directory 0 states 16777217 bytes"),
        ([(270, 1, limits.MAX_TEXT_BYTES + 1, 0)], "description of its image 0 states 16777217 bytes"),
        ([(305, 2, limits.MAX_TEXT_BYTES + 1, 0)], "tag 305"),
        ([(700, 1, limits.MAX_TEXT_BYTES + 1, 0)], "tag 700"),
    ],
)  # fmt: skip
def test_fault_010_and_011_and_016_and_037_a_tag_beyond_its_limit_is_refused(
    more: list[tuple[int, int, int, int]], words: str
) -> None:
    """One more than each limit is refused by name, though the file could hold it; the limit itself is not."""
    fields = {e[0]: e for e in [*IMAGE, *more]}
    with pytest.raises(UnreadableSlideError, match=f"E_ABSURD: a.tif: .*{words}"):
        tiff_of(list(fields.values()))()
    tag, kind, count, value = more[0]
    fields[tag] = (tag, kind, count - 1, value) if count > 1 else (tag, kind, 1, value - 1)
    if kind != 1:  # bytes at the limit are read, or need not be
        tiff_of(list(fields.values()))()


def test_fault_011_directories_cannot_state_more_than_a_machine_holds() -> None:
    """Many directories may share the same values: what they state in all is limited, and so is their number."""
    shared = [*IMAGE, (324, 16, 0, 0), (325, 4, 15_000_000, 8)]
    with pytest.raises(UnreadableSlideError, match=r"E_ABSURD.* more than 256 MiB of values"):
        tiff_of(*[shared] * 6)()
    with pytest.raises(UnreadableSlideError, match=r"E_ABSURD.* more than 1000 directories"):
        tiff_of(*[IMAGE] * (limits.MAX_IMAGES + 1))()
    with pytest.raises(UnreadableSlideError, match=r"E_ABSURD.* states 4097 entries"):
        tiff_of([IMAGE[0]] * (limits.MAX_ENTRIES + 1))()


def test_fault_011_levels_and_their_area_are_limited(make_tiff: MakeTiff) -> None:
    """More levels than any pyramid, or sides that are each possible and together are not."""
    levels = [[(256, 4, 1, 700 + i), *IMAGE[1:]] for i in range(limits.MAX_LEVELS + 1)]
    with pytest.raises(UnreadableSlideError, match=r"E_ABSURD: a.tif: states 257 levels"):
        tiffcheck.check_tiff(tiff_of(*levels)(), "a.tif")
    wide = [(256, 4, 1, 1_000_000), (257, 4, 1, 500_001), *IMAGE[2:]]
    with pytest.raises(UnreadableSlideError, match=r"E_ABSURD: a.tif: states a level 0 of 1000000 x 500001 px"):
        tiffcheck.check_tiff(tiff_of(wide)(), "a.tif")


def test_fault_016_a_huge_profile_that_only_the_library_sees_is_not_read() -> None:
    """What OpenSlide says of its size decides before it is asked for the profile."""

    class Slide:
        properties = {"openslide.icc-size": str(limits.MAX_ICC_BYTES + 1)}  # noqa: RUF012

        @property
        def color_profile(self) -> object:
            raise AssertionError("was read")

    with pytest.raises(UnreadableSlideError, match=r"E_ABSURD: a: its colour profile states 16777217 bytes"):
        _profile_bytes(Slide(), "a")
    with pytest.raises(UnreadableSlideError, match="E_ABSURD"):
        icc.SrgbTransform(bytes(limits.MAX_ICC_BYTES + 1), "a")


def dicom_file(path: Path, **changed: bytes) -> Path:
    """Write the header of a level of a DICOM slide, its elements by name."""
    fields = {
        "syntax": (0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.1\0"), "kind": (0x0008, 0x0008, b"CS", b"ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
        "sop": (0x0008, 0x0016, b"UI", b"1.2.840.10008.5.1.4.1.1.77.1.6"), "series": (0x0020, 0x000E, b"UI", b"1.2"),
        "samples": (0x0028, 0x0002, b"US", struct.pack("<H", 3)), "rows": (0x0028, 0x0010, b"US", struct.pack("<H", 240)),
        "columns": (0x0028, 0x0011, b"US", struct.pack("<H", 240)), "bits": (0x0028, 0x0100, b"US", struct.pack("<H", 8)),
        "width": (0x0048, 0x0006, b"UL", struct.pack("<I", 2220)), "height": (0x0048, 0x0007, b"UL", struct.pack("<I", 2967)),
    }  # fmt: skip
    elements = b"".join(
        struct.pack("<HH2sH", group, element, vr, len(changed.get(name, value))) + changed.get(name, value)
        for name, (group, element, vr, value) in fields.items()
        if name != "height" or "text" not in changed
    )
    long_text = struct.pack("<HH2sHI", 0x0048, 0x0001, b"UT", 0, int.from_bytes(changed.get("text", b""), "little"))
    path.write_bytes(bytes(128) + b"DICM" + elements + (long_text if "text" in changed else b""))
    return path


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"width": struct.pack("<I", limits.MAX_SIDE_PX + 1)}, "a level of 2000001 x 2967 px"),
        ({"width": struct.pack("<I", 1_000_000), "height": struct.pack("<I", 500_001)}, "a level of 1000000 x 500001 px"),
        ({"columns": struct.pack("<H", limits.MAX_TILE_PX + 1)}, "tiles of 8193 x 240 px"),
        ({"text": struct.pack("<I", limits.MAX_TEXT_BYTES + 1)}, "an element of 16777217 bytes"),
    ],
)  # fmt: skip
def test_fault_010_and_011_and_037_a_dicom_header_is_held_against_the_same_limits(
    tmp_path: Path, changed: dict[str, bytes], words: str
) -> None:
    """Levels, tiles and texts, before OpenSlide sees the file; the plain header passes."""
    assert dicom.check_dicom(dicom_file(tmp_path / "plain.dcm")) == ()
    (tmp_path / "plain.dcm").unlink()
    error = refusal(dicom_file(tmp_path / "a.dcm", **changed))
    assert error.code == "E_ABSURD"
    assert words in error.message


def test_fault_037_a_description_that_is_no_text_or_not_there(make_tiff: MakeTiff, edit_bytes: Callable[..., None]) -> None:
    """Binary: it opens as what it is, and says that levels and resolution may be lost. Beyond the end: cut short."""
    path = make_tiff("a.svs", description="Aperio Image Library v1\r\n700x500 (128x128)|AppMag = 20|MPP = 0.499")
    with tifffile.TiffFile(path) as f:
        tag = f.pages[0].tags[270]
        entry, text = tag.offset, tag.valueoffset
    edit_bytes(path, text, bytes(range(128, 168)))
    with open_slide(path) as slide:
        assert [n.code for n in slide.notes] == ["E_METADATA"]
        assert slide.mpp.source == "tiff"
    edit_bytes(path, entry + 4, struct.pack("<I", 1 << 20))
    assert refusal(path).code == "E_TRUNCATED"
    edit_bytes(path, entry + 4, struct.pack("<I", 1 << 30))
    assert refusal(path).code == "E_ABSURD"


def swollen(compression: str) -> bytes:
    """A tile whose stream states 65,500 x 65,500 px."""
    tile = np.zeros((128, 128, 3), np.uint8)
    if compression == "jpeg":
        data = bytearray(imagecodecs.jpeg8_encode(tile, level=80))
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">2H", 65_500, 65_500)
    else:
        data = bytearray(imagecodecs.jpeg2k_encode(tile, codecformat="j2k"))
        for at in (8, 24):  # image, tile
            data[at : at + 8] = struct.pack(">2I", 65_500, 65_500)
    return bytes(data)


@pytest.fixture
def little_room() -> Iterator[None]:
    """Let this process grow by half a GiB and no more."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (512 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def with_tile(path: Path, tile: int, data: bytes) -> Path:
    """Let one tile of a slide hold other bytes."""
    with tifffile.TiffFile(path, mode="r+") as f:
        offsets, counts = list(f.pages[0].dataoffsets), list(f.pages[0].databytecounts)
        offsets[tile], counts[tile] = path.stat().st_size, len(data)
        f.pages[0].tags[324].overwrite(offsets)
        f.pages[0].tags[325].overwrite(counts)
    with path.open("ab") as f:
        f.write(data)
    return path


@pytest.mark.parametrize(
    ("name", "compression", "reader"),
    [("a.tif", "jpeg", "direct"), ("a.ome.tif", "jpeg", "tiffslide"), ("a.svs", "jpeg2000", "tiffslide")],
)
def test_fault_012_a_tile_that_states_a_huge_picture_is_refused_unswollen(
    make_tiff: MakeTiff, name: str, compression: str, reader: str, little_room: None
) -> None:
    """It alone fails, whoever reads; its neighbours are read; no room is made for what it states."""
    more = {"description": '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"/>'} if "ome" in name else {}
    path = with_tile(make_tiff(name, compression=compression, **more), 7, swollen(compression))
    with open_slide(path) as slide:
        assert slide.reader.startswith(reader)
        with pytest.raises(TileReadError, match=r"E_TILE"):
            slide.read_region(130, 130, 0, 100, 100)
        slide.read_region(260, 130, 0, 100, 100)


def test_fault_012_our_own_jpeg_2000_decoder_asks_the_stream_first(little_room: None) -> None:
    """The tile's size is the only one it makes room for."""
    with pytest.raises(ValueError, match=r"states \(65500, 65500\) px instead of 128 x 128"):
        decode_jpeg2000(swollen("jpeg2000"), np.empty((128, 128, 3), np.uint8))


@pytest.mark.parametrize(("n_bytes", "reader"), [(1 << 20, "direct"), (512 << 20, "openslide")])
def test_fault_013_a_tile_that_unpacks_to_too_much_takes_no_memory(
    make_tiff: MakeTiff, n_bytes: int, reader: str, little_room: None
) -> None:
    """Our decoder refuses it; a stream longer than any tile's is left to OpenSlide, which takes what fits."""
    bomb = zlib.compress(bytes(n_bytes), 1)
    out = np.empty((128, 128, 3), np.uint8)
    with pytest.raises(RuntimeError):
        decode_lossless(bomb, 8, 1, out)
    with open_slide(with_tile(make_tiff(), 7, bomb)) as slide:
        assert slide.reader.startswith(reader)
        if reader == "direct":
            with pytest.raises(TileReadError, match="E_TILE"):
                slide.read_region(130, 130, 0, 100, 100)
        else:
            assert not slide.read_region(130, 130, 0, 100, 100).pixels.any()
        assert slide.read_region(260, 130, 0, 100, 100).pixels.any()


def _progressive(tile: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(tile).save(out, "JPEG", progressive=True)
    return out.getvalue()


def test_what_a_stream_states_is_read_from_its_first_bytes() -> None:
    """JPEG, progressive too, JPEG 2000 with and without boxes, WebP in its three kinds; None for anything else."""
    tile = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    streams = [
        imagecodecs.jpeg8_encode(tile), _progressive(tile),
        imagecodecs.jpeg2k_encode(tile, codecformat="j2k"), imagecodecs.jpeg2k_encode(tile, codecformat="jp2"),
        imagecodecs.webp_encode(tile, level=50), imagecodecs.webp_encode(tile, lossless=True),
        imagecodecs.webp_encode(np.dstack([tile, tile[..., 0]]), level=50),
    ]  # fmt: skip
    assert [frame_size(bytes(s)[:400]) for s in streams] == [(90, 70)] * len(streams)
    assert [frame_size(s) for s in (b"", b"\xff\xd8", b"\xff\xd8\xff\xc0", bytes(64), b"RIFF\0\0\0\0WEBPVP8 ")] == [None] * 5

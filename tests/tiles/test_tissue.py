"""Tissue and nothing but tissue: on planted squares, on made H&E, on real slides."""

from __future__ import annotations

import inspect
import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from wsi_ips.config import TissueSettings
from wsi_ips.errors import NoTissueError, TileReadError
from wsi_ips.geometry import Box0
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slide.protocol import Region
from wsi_ips.slide.reader import open_slide
from wsi_ips.tiles.regions import restrict_tissue
from wsi_ips.tiles.tissue import TissueMask, find_tissue
from wsi_ips.tiles.view import plan_view, read_view

Paint = Callable[..., np.ndarray]
SETTINGS = TissueSettings()
EOSIN = (214, 130, 172)
PENS = {"green": (20, 130, 60), "blue": (30, 50, 170), "black": (30, 30, 38), "red": (200, 25, 40)}


def _share(mask: TissueMask, x0: int, y0: int, width0: int, height0: int) -> float:
    return float(mask.fraction(np.array([[x0, y0]]), (width0, height0))[0])


@pytest.mark.parametrize("factors", [(), (4,), (4, 16)])
def test_a_planted_rectangle_is_found_whatever_the_pyramid(
    stained: Paint, pyramid: Callable[..., list[np.ndarray]], factors: tuple[int, ...]
) -> None:
    """The mask covers the stained rectangle and leaves the glass, within two view px, from any level."""
    pixels = stained(1500, 2300, (700, 400, 500, 300))
    mask = find_tissue(ArraySlide(pyramid(pixels, *factors), mpp=0.5), SETTINGS)
    assert _share(mask, 732, 432, 436, 236) == 1.0
    assert _share(mask, 0, 0, 2300, 360) == _share(mask, 0, 740, 2300, 700) == 0.0
    assert mask.tissue_mm2 == pytest.approx(500 * 300 * 0.25e-6, rel=0.12)
    assert np.abs(np.subtract(mask.mask.shape, (1500 / 16, 2300 / 16))).max() <= 1.0


def test_the_view_has_one_resolution_whatever_the_scanner(stained: Paint) -> None:
    """The same tissue at 0.25 and at 0.2525 µm/px gives masks of px of nearly the same size in µm."""
    for mpp in (0.25, 0.2525, 1.9, 8.0):
        mask = find_tissue(ArraySlide(stained(900, 1300, (200, 200, 700, 500)), mpp=mpp), SETTINGS)
        assert mask.downsample_x * mpp == pytest.approx(8.0, rel=0.02)
        assert mask.downsample_y * mpp == pytest.approx(8.0, rel=0.02)
        assert mask.mask.shape[1] * mask.downsample_x == pytest.approx(1300)


def test_bounds_move_the_mask(stained: Paint) -> None:
    """The mask starts at the scan's corner; what lies outside the bounds is not tissue."""
    pixels = stained(1500, 2300, (700, 400, 900, 300))
    mask = find_tissue(ArraySlide(pixels, mpp=0.5, bounds=Box0(611, 203, 700, 1001)), SETTINGS)
    assert (mask.x0, mask.y0) == (611, 203)
    assert _share(mask, 732, 432, 550, 236) == 1.0
    assert _share(mask, 1311, 0, 900, 1500) == 0.0


@pytest.mark.parametrize("noise", [0.0, 2.0, 8.0])
@pytest.mark.parametrize("colour", [(255, 255, 255), (242, 240, 243), (236, 232, 214), (205, 206, 200)])
@pytest.mark.parametrize("mpp", [0.5, 4.0])
def test_glass_alone_is_no_tissue(glass: Paint, colour: tuple[int, int, int], noise: float, mpp: float) -> None:
    """Bare glass of any tint and noise is an empty slide, never a bag of glass."""
    with pytest.raises(NoTissueError, match="E_NO_TISSUE") as caught:
        find_tissue(ArraySlide(glass(700, 1100, colour, noise), mpp=mpp, name="bare.svs"), SETTINGS)
    assert caught.value.code == "E_NO_TISSUE"
    assert "bare.svs" in str(caught.value)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128)])
def test_scanner_fill_alone_is_no_tissue(colour: tuple[int, int, int]) -> None:
    """A slide of one constant grey holds nothing."""
    with pytest.raises(NoTissueError):
        find_tissue(ArraySlide(np.full((700, 1100, 3), colour, np.uint8)), SETTINGS)


@pytest.mark.parametrize(
    "colour", [EOSIN, (120, 90, 160), (233, 214, 228), (120, 80, 50), (178, 186, 205), (52, 30, 74), (225, 205, 190)],
    ids=["eosin", "haematoxylin", "pale", "dab", "counterstain", "dark purple", "pale dab"],
)  # fmt: skip
def test_one_per_cent_of_tissue_of_any_stain_is_found(stained: Paint, colour: tuple[int, int, int]) -> None:
    """One per cent of tissue is found whole, whether dark, pale or brown."""
    pixels = stained(1500, 2300, (900, 700, 215, 160), colour)
    mask = find_tissue(ArraySlide(pixels, mpp=1.0), SETTINGS)
    assert _share(mask, 916, 716, 183, 128) == 1.0
    assert mask.mask.mean() == pytest.approx(0.01, rel=0.3)


def test_pale_tissue_beside_dark_tissue_is_kept(stained: Paint, glass: Paint) -> None:
    """Otsu alone would cut between dark and pale; the ceiling keeps both."""
    pixels = stained(1500, 2300, (300, 400, 700, 700), (110, 70, 150))
    pixels[400:1100, 1200:1900] = glass(700, 700, (233, 214, 228))
    mask = find_tissue(ArraySlide(pixels), SETTINGS)
    assert _share(mask, 332, 432, 636, 636) == _share(mask, 1232, 432, 636, 636) == 1.0


@pytest.mark.parametrize("colour", [EOSIN, (233, 214, 228), (120, 90, 160)])
def test_a_slide_that_is_all_tissue_is_kept_whole(glass: Paint, colour: tuple[int, int, int]) -> None:
    """Without any glass to compare with, tissue is still tissue."""
    mask = find_tissue(ArraySlide(glass(700, 1100, colour, noise=9.0)), SETTINGS)
    assert mask.mask.all()


@pytest.mark.parametrize("pen", PENS)
def test_pen_on_glass_is_left_out(stained: Paint, pen: str) -> None:
    """A broad stroke of marker beside the tissue never becomes tissue; alone it makes an empty slide."""
    pixels = stained(1500, 2300, (300, 400, 600, 600))
    stroke = np.full((1500, 2300, 3), 242, np.uint8)
    cv2.polylines(stroke, [np.array([[1200, 150], [1700, 700], [1500, 1300]])], False, PENS[pen], 130)
    stroke = cv2.GaussianBlur(stroke, (0, 0), 9)
    mask = find_tissue(ArraySlide(np.minimum(pixels, stroke)), SETTINGS)
    assert _share(mask, 1060, 0, 1240, 1500) == 0.0
    assert _share(mask, 332, 432, 536, 536) == 1.0
    with pytest.raises(NoTissueError):
        find_tissue(ArraySlide(stroke), SETTINGS)


def test_pen_is_kept_on_request(glass: Paint) -> None:
    """Someone with a blue stain can say so, and is told when most of the colour was taken for ink."""
    pixels = glass(900, 1300)
    pixels[200:700, 300:700] = (30, 60, 170)
    pixels[200:500, 900:1100] = EOSIN
    assert [n.code for n in find_tissue(ArraySlide(pixels), SETTINGS).notes] == ["E_PEN"]
    kept = find_tissue(ArraySlide(pixels), SETTINGS.replace(remove_pen=False))
    assert _share(kept, 332, 232, 336, 436) == 1.0
    assert kept.notes == ()


def test_black_borders_and_white_patches_are_no_tissue(stained: Paint, glass: Paint) -> None:
    """Black borders with compression noise, and pure white between scanned fields, are left out."""
    pixels = stained(1500, 2300, (700, 400, 500, 300))
    pixels[:, :220] = glass(1500, 220, (6, 3, 9), noise=5.0)
    pixels[1100:] = 255
    mask = find_tissue(ArraySlide(pixels), SETTINGS)
    assert _share(mask, 0, 0, 640, 1500) == _share(mask, 0, 800, 2300, 700) == 0.0
    assert _share(mask, 732, 432, 436, 236) == 1.0


def test_small_holes_are_filled_and_large_ones_stay(stained: Paint, glass: Paint) -> None:
    """Holes below max_hole_um2 are tissue, larger ones are not; specks below min_region_um2 are dropped."""
    pixels = stained(1500, 2300, (300, 300, 1200, 900))
    pixels[450:650, 450:650] = glass(200, 200)  # 10,000 µm²
    pixels[600:1000, 900:1300] = glass(400, 400)  # 40,000 µm²
    pixels[100:230, 1900:2030] = EOSIN  # 4,225 µm²
    mask = find_tissue(ArraySlide(pixels), SETTINGS)
    assert _share(mask, 450, 450, 200, 200) == 1.0
    assert _share(mask, 932, 632, 336, 336) == 0.0
    assert _share(mask, 1800, 0, 500, 300) == 0.0
    specks = find_tissue(ArraySlide(pixels), SETTINGS.replace(min_region_um2=2000.0))
    assert _share(specks, 1932, 132, 66, 66) == 1.0


def test_missing_pixels_are_no_tissue(stained: Paint) -> None:
    """What the file does not hold is shown white and never becomes tissue."""
    missing = np.zeros((900, 1300), bool)
    missing[:, 700:] = True
    mask = find_tissue(ArraySlide(stained(900, 1300, (0, 0, 1300, 900)), missing=missing), SETTINGS)
    assert _share(mask, 732, 0, 568, 900) == 0.0
    assert _share(mask, 0, 0, 672, 900) == 1.0


def test_the_same_slide_gives_the_same_mask(stained: Paint) -> None:
    """No chance, no threads, no dependence on earlier slides."""
    slide = ArraySlide(stained(901, 1303, (200, 200, 700, 500)), mpp=0.2525)
    assert np.array_equal(find_tissue(slide, SETTINGS).mask, find_tissue(slide, SETTINGS).mask)


@pytest.mark.parametrize("mpp", [0.2525, 0.5, 3.1])
def test_blocks_give_the_same_view_as_one_read(mpp: float) -> None:
    """Reading a view in small blocks gives, to the last bit, what one read gives, and its px are exact means."""
    slide = ArraySlide(np.random.default_rng(5).integers(0, 256, (611, 903, 3), dtype=np.uint8), mpp=mpp)
    view = plan_view(slide, 8.0)
    views = []
    for block_px in (2048, 64, 37):
        pixels = np.zeros((view.height_px, view.width_px, 3), np.uint8)
        for rows, columns, block in read_view(slide, view, block_px):
            pixels[rows, columns] = block
        views.append(pixels)
    assert np.array_equal(views[0], views[1])
    assert np.array_equal(views[0], views[2])
    whole = slide.read_region(0, 0, 0, 903, 611).pixels
    box = whole[view.edges_y[3] : view.edges_y[4], view.edges_x[5] : view.edges_x[6]].astype(float)
    assert np.abs(views[0][3, 5] - box.mean(axis=(0, 1))).max() <= 0.5


def test_no_label_enters() -> None:
    """Tissue depends on the slide and the settings, on nothing that a manifest says of it."""
    assert list(inspect.signature(find_tissue).parameters) == ["slide", "settings"]


def test_a_slide_with_tiles_of_its_own_is_tissue_throughout() -> None:
    """Where a slide names its tiles, white ones count as well, and nothing is read."""
    slide = ArraySlide(
        np.full((60, 90, 3), 255, np.uint8), tile_corners=np.array([[0, 0]]), fail_at=[Box0(0, 0, 90, 60)]
    )
    assert find_tissue(slide, SETTINGS).mask.all()


def test_a_whole_slide_is_tissue_unread(tmp_path: Path) -> None:
    """With the method `whole` everything inside the bounds is tissue, white too, and no px is read; a mask restricts."""
    white = np.full((600, 900, 3), 255, np.uint8)
    slide = ArraySlide(white, mpp=0.5, bounds=Box0(100, 40, 640, 480), fail_at=[Box0(0, 0, 900, 600)])
    mask = find_tissue(slide, SETTINGS.replace(method="whole"))
    assert mask.mask.all()
    assert (mask.x0, mask.y0) == (100, 40)
    assert mask.tissue_mm2 == pytest.approx(640 * 480 * 0.25e-6)
    assert mask.notes == ()
    (tmp_path / "left.geojson").write_text(
        '{"type": "Polygon", "coordinates": [[[100, 0], [420, 0], [420, 600], [100, 600], [100, 0]]]}'
    )
    left = restrict_tissue(mask, slide, tmp_path / "left.geojson")
    assert _share(left, 100, 40, 320, 480) == 1.0
    assert _share(left, 420, 40, 320, 480) == 0.0
    with pytest.raises(NoTissueError):
        find_tissue(ArraySlide(white, mpp=0.5), SETTINGS)


class _TornLevel(ArraySlide):
    """A slide whose coarse levels fail at some places; the finest one fails only where `fail_at` says."""

    torn: dict[int, Box0]

    def read_region(self, x0: int, y0: int, level: int, width_px: int, height_px: int) -> Region:
        box, step = self.torn.get(level), self.levels[level].downsample
        if box and x0 < box.x0 + box.width0 and box.x0 < x0 + width_px * step and y0 < box.y0 + box.height0 and box.y0 < y0 + height_px * step:
            raise TileReadError("E_TILE", f"level {level} is torn")
        return super().read_region(x0, y0, level, width_px, height_px)


@pytest.mark.parametrize("n_torn", [1, 2])
def test_fault_023_a_damaged_coarse_level_gives_way_to_the_next_finer_one(
    stained: Paint, pyramid: Callable[..., list[np.ndarray]], n_torn: int
) -> None:
    """The mask is the sound slide's but for rounding, and a note names the level; level 0 alone may serve."""
    levels = pyramid(stained(2900, 4303, (700, 600, 2500, 1500)), 4, 16)
    sound = find_tissue(ArraySlide(levels, mpp=0.5), SETTINGS)
    torn = _TornLevel(levels, mpp=0.5)
    torn.torn = dict.fromkeys((2, 1)[:n_torn], Box0(0, 0, 4303, 2900))
    found = find_tissue(torn, SETTINGS)
    assert [n.code for n in found.notes] == ["E_LEVEL"]
    assert found.mask.shape == sound.mask.shape
    assert np.count_nonzero(found.mask != sound.mask) <= 0.01 * np.count_nonzero(sound.mask)
    assert np.array_equal(find_tissue(torn, SETTINGS).mask, found.mask)


def test_what_no_level_gives_counts_as_tissue(stained: Paint) -> None:
    """Pixels that cannot be decoded are never taken for glass: their tiles are tried, and counted where they fail."""
    pixels = stained(900, 1300, (200, 200, 500, 500))
    sound = find_tissue(ArraySlide(pixels, mpp=0.5), SETTINGS)
    found = find_tissue(ArraySlide(pixels, mpp=0.5, fail_at=[Box0(1000, 100, 3, 3)]), SETTINGS)
    assert [n.code for n in found.notes] == ["E_LEVEL"]
    assert "counts as tissue" in found.notes[0].message
    more = found.mask & ~sound.mask
    rows, columns = np.nonzero(more)
    assert more[round(100 / found.downsample_y), round(1000 / found.downsample_x)]
    assert (np.ptp(rows) + 1) * found.downsample_y <= 256 + 16  # about a file tile, not the whole block
    assert (np.ptp(columns) + 1) * found.downsample_x <= 256 + 16
    assert not (sound.mask & ~found.mask)[:, : round(900 / found.downsample_x)].any()


def test_a_slide_of_which_nothing_can_be_read_is_an_error(stained: Paint) -> None:
    """There is no mask of nothing."""
    slide = ArraySlide(stained(900, 1300, (200, 200, 700, 500)), fail_at=[Box0(0, 0, 1300, 900)])
    with pytest.raises(TileReadError):
        find_tissue(slide, SETTINGS)


@pytest.mark.parametrize("n_channels", [1, 2, 5])
def test_slides_of_other_channels_have_tissue_too(n_channels: int) -> None:
    """Without RGB, what is darker than the ground is tissue."""
    pixels = np.full((700, 1100, n_channels), 255, np.uint8)
    pixels[200:500, 300:800] = 120
    mask = find_tissue(ArraySlide(pixels), SETTINGS)
    assert _share(mask, 332, 232, 436, 236) == 1.0
    assert _share(mask, 0, 0, 1100, 160) == 0.0


def test_fraction_is_exact_area() -> None:
    """Parts of mask px count by their area, also beyond the mask's edges, for 20,000 tiles against plain sums."""
    rng = np.random.default_rng(2)
    found = TissueMask(rng.random((1301, 47)) < 0.4, 100, -50, 3.0, 2.0, 1.0)
    fine = np.repeat(np.repeat(found.mask, 2, axis=0), 3, axis=1).astype(float)  # one px per level-0 px
    coords = np.stack([rng.integers(60, 260, 20_000), rng.integers(-90, 2600, 20_000)], axis=1)
    got = found.fraction(coords, (20.0, 31.0))
    padded = np.pad(fine, 200)
    sums = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    x, y = coords[:, 0] - 100 + 200, coords[:, 1] + 50 + 200
    want = (sums[y + 31, x + 20] - sums[y, x + 20] - sums[y + 31, x] + sums[y, x]) / (20 * 31)
    assert got.dtype == np.float32
    assert np.abs(got - want).max() < 1e-6
    one = replace(found, mask=np.array([[True, False]]), x0=0, y0=0, downsample_x=4.0, downsample_y=4.0)
    assert one.fraction(np.array([[2, 2]]), (2.5, 4.0))[0] == pytest.approx((2.0 * 2.0) / (2.5 * 4.0))
    assert one.fraction(np.empty((0, 2), np.int64), (2.5, 4.0)).shape == (0,)


def test_the_outline_is_small_and_lies_where_the_mask_does() -> None:
    """A large mask travels reduced; a px stays tissue when half of it is; the frame is kept."""
    mask = np.zeros((70, 101), bool)
    mask[20:40, 50:80] = True
    outline = TissueMask(mask, 11, 22, 16.0, 15.0, 1.0).outline(max_px=500)
    assert outline.mask.size <= 600
    assert (outline.x0, outline.y0, outline.downsample_x, outline.downsample_y) == (11, 22, 64.0, 60.0)
    assert np.array_equal(np.argwhere(outline.mask)[[0, -1]], [[5, 12], [9, 19]])
    whole = TissueMask(mask, 0, 0, 16.0, 16.0, 1.0).outline()
    assert np.array_equal(whole.mask, mask)


def test_made_slides_agree_with_their_painter() -> None:
    """On painted H&E the mask meets the painted tissue: intersection over union above 0.9, with or without pen."""
    from wsi_ips.synthetic.painting import SlideRecipe, paint_slide

    for seed, (stain, pen) in enumerate((("A", None), ("B", None), ("A", "black"))):
        painted = paint_slide(SlideRecipe(seed=seed, width=1900, height=1300, stain=stain, pen=pen, has_lesion=True))  # type: ignore[arg-type]
        found = find_tissue(ArraySlide(painted.pixels), SETTINGS)
        truth = (
            cv2.resize(painted.tissue.astype(np.float32), found.mask.shape[::-1], interpolation=cv2.INTER_AREA) > 0.5
        )
        assert (found.mask & truth).sum() / (found.mask | truth).sum() > 0.9, (stain, pen)


@pytest.mark.parametrize(
    ("name", "share"),
    [("aperio/CMU-1-Small-Region.svs", (0.33, 0.48)), ("aperio/tcga-cr-7395-01a-01-ts1.svs", (0.58, 0.70)),
     ("dicom-lung", (0.30, 0.42))],
)  # fmt: skip
def test_real_slides_have_the_tissue_one_sees(shared_data: Path, name: str, share: tuple[float, float]) -> None:
    """Skin, squamous carcinoma on white patchwork, lung with dense nodules: shares judged by eye."""
    with open_slide(shared_data / "slides" / name, mpp=0.5) as slide:
        found = find_tissue(slide, SETTINGS)
        assert share[0] < found.mask.mean() < share[1]
        assert found.notes == ()


def test_a_speck_of_immunohistochemistry_is_found(shared_data: Path) -> None:
    """Real kidney with brown and blue stain, a third of a per cent of the slide (reduced 48 times)."""
    with Image.open(shared_data / "slides" / "tiff" / "kidney-48-5.tif") as image:
        pixels = np.asarray(image.convert("RGB"))
    found = find_tissue(ArraySlide(pixels, mpp=8.0), SETTINGS)
    assert 0.002 < found.mask.mean() < 0.01


@pytest.mark.parametrize(
    ("folder", "file", "mpp", "side"),
    [("camelyon_patches", "camelyon16_patches_256.zip", 0.25, 7), ("idc_tiles", "idc_tiles.zip", 1.0, 40)],
)
def test_real_tissue_patches_stay(shared_data: Path, folder: str, file: str, mpp: float, side: int) -> None:
    """Lymphocytes and carcinoma of many stains, laid side by side without glass, are not taken for ink or glass."""
    with zipfile.ZipFile(shared_data / folder / file) as archive:
        names = [n for n in sorted(archive.namelist()) if n.endswith(".png")]
        tiles = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names[: side * side + 40]]
    tiles = [t for t in tiles if t.shape == tiles[0].shape][: side * side]
    rows = [np.concatenate(tiles[i * side : (i + 1) * side], axis=1) for i in range(side)]
    found = find_tissue(ArraySlide(np.concatenate(rows), mpp=mpp), SETTINGS)
    assert found.mask.mean() > 0.93

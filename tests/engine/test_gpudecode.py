"""Tiles decoded where the encoder is: the same slide as its own reader shows, or left to that reader, and always said.

The decoder runs on the CPU here; the tests marked gpu run the same on a GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from typer.testing import CliRunner

from wsi_ips.cli import app
from wsi_ips.config import ReadSettings, TileSpec
from wsi_ips.engine.encoding import embedding_key, read_tiles
from wsi_ips.engine.gpudecode import TileDecoder, choose_decoding
from wsi_ips.engine.passtools import PassTools
from wsi_ips.engine.predict import Labelled, PredictJob, label_slide
from wsi_ips.engine.scan import plan_slide
from wsi_ips.engine.sources import PixelSource
from wsi_ips.engine.tuning import describe_pace
from wsi_ips.engine.worker import SlideWorker
from wsi_ips.model.bundle import Bundle, load_bundle
from wsi_ips.slide.directtiles import DirectTiles
from wsi_ips.slide.reader import Slide, open_slide
from wsi_ips.synthetic import PyramidPlan, array_source, write_pyramid
from wsi_ips.tiles.grid import tiles_at

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision")
GPU = pytest.param("cuda:0", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")])
DEVICES = ["cpu", GPU]
MPP = 4.0  # at which the model's tiles of 32 px are the file's
ALLOW = ReadSettings(max_bad_tiles=0.2)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A slide of 715 x 491 px in file tiles of 32 px: stain in squares that end inside them, and noise."""
    rng = np.random.default_rng(3)
    pixels = np.full((491, 715, 3), 243, np.int16)
    pixels[30:470, 20:700] = rng.integers((150, 60, 130), (220, 140, 200), (11, 17, 3)).repeat(40, 0).repeat(40, 1)
    noisy = np.clip(pixels + rng.integers(-6, 7, pixels.shape), 0, 255).astype(np.uint8)
    write_pyramid(tmp_path / "a.tif", array_source(noisy), PyramidPlan(715, 491, tile_px=32, n_levels=1), mpp=MPP)
    return tmp_path / "a.tif"


def _label(path: Path, bundle: Bundle, tools: PassTools, read: ReadSettings | None = None) -> Labelled:
    with open_slide(path) as slide:
        return label_slide(slide, bundle, PredictJob("s", read=read or ReadSettings()), None, None, tools)


def _file_tile(path: Path, x0: int, y0: int) -> tuple[int, int, int]:
    """Number, offset and bytes of a file tile."""
    with tifffile.TiffFile(path) as tiff:
        page, number = tiff.pages[0], y0 // 32 * (-(-715 // 32)) + x0 // 32
        return number, page.dataoffsets[number], page.databytecounts[number]


def _overwrite(path: Path, x0: int, y0: int, how: str) -> None:
    _, offset, count = _file_tile(path, x0, y0)
    small = (offset, b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x10\x00\x10" + b"\0" * (count - 13) + b"\xff\xd9")
    at, data = {"cut short": (offset + count // 2, b"\0" * (count - count // 2)), "ends early": (offset + count - 30, b"\xff\xd9\x55\x55"),
                "no stream": (offset, b"\0" * count), "no tables": small}[how]  # fmt: skip
    with path.open("r+b") as f:
        f.seek(at)
        f.write(data)


@pytest.mark.parametrize("device", DEVICES)
def test_a_slide_of_whole_file_tiles_is_labelled_as_ever(path: Path, bundle: Bundle, device: str) -> None:
    """The same tiles selected, the same colours and features but for roundings; the recorded reader names both decoders."""
    bundle.classifier.to(device)
    try:
        usual, found = _label(path, bundle, PassTools()), _label(path, bundle, PassTools(decoder=TileDecoder(device)))
    finally:
        bundle.classifier.to("cpu")
    apart = np.abs(found.prediction.logits - usual.prediction.logits).max()
    assert apart == 0 if device == "cpu" else apart < 0.2
    assert len(set(found.prediction.selected) & set(usual.prediction.selected)) >= (6 if device == "cpu" else 4)  # M = 6
    assert np.allclose(list((found.scan.colour or {}).values()), list((usual.scan.colour or {}).values()), atol=0.01)
    assert usual.prediction.reader.startswith("direct (simplejpeg")
    kind = "libjpeg" if device == "cpu" else "nvjpeg"
    assert found.prediction.reader.startswith(f"{usual.prediction.reader}, tiles decoded by {kind} through torchvision")


@pytest.mark.parametrize("device", DEVICES)
def test_tiles_taken_again_come_from_the_same_decoder(path: Path, bundle: Bundle, device: str) -> None:
    """To the last bit, in any order; and on a CPU they are the very px of the slide's reader."""
    with open_slide(path) as slide, PassTools(decoder=TileDecoder(device)) as tools:
        grid = plan_slide(slide, bundle.settings, ReadSettings()).grid
        source = PixelSource(slide, grid, bundle.classifier, ReadSettings(), None, tools)
        embeddings = np.concatenate([chunk.embeddings for chunk in source.chunks()])
        rows = np.array([40, 3, 77])
        assert np.array_equal(source.take(rows), embeddings[rows])
        again = read_tiles(slide, grid, rows, ReadSettings(), None, tools.decoding_of(slide, grid))
        apart = np.abs(again.astype(int) - read_tiles(slide, grid, rows, ReadSettings())).mean()
        assert apart == 0 if device == "cpu" else apart <= 3
        assert tools.clock.seconds()["decode"] > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", ["cut short", "ends early", "no stream", "no tables"])
def test_a_damaged_tile_has_failed_and_its_neighbours_have_not(path: Path, bundle: Bundle, how: str, device: str) -> None:
    """One tile less, as by the slide's reader; never pixels for it."""
    with open_slide(path) as slide:
        plan = plan_slide(slide, bundle.settings, ReadSettings())  # a tissue mask needs every tile of a slide without levels
    _overwrite(path, 320, 224, how)
    found = _label(path, bundle, PassTools(plan=plan, decoder=TileDecoder(device)), ALLOW)
    usual = _label(path, bundle, PassTools(plan=plan), ALLOW)
    assert "through torchvision" in found.prediction.reader
    assert found.prediction.n_failed_reads == usual.prediction.n_failed_reads == 1
    assert [320, 224] not in found.prediction.coords.tolist()
    assert np.array_equal(found.prediction.coords, usual.prediction.coords)


def test_a_missing_tile_is_white_and_counted(path: Path, bundle: Bundle) -> None:
    """A tile that was never written, as the slide's reader shows it."""
    number, _, _ = _file_tile(path, 320, 224)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        counts[number] = 0
        tiff.pages[0].tags["TileByteCounts"].overwrite(counts)
    mask_everything = bundle.settings.tissue.replace(method="whole")
    settings = bundle.settings.replace(tissue=mask_everything.model_dump())
    with open_slide(path) as slide:
        grid = plan_slide(slide, settings, ReadSettings()).grid
        tools = PassTools(decoder=TileDecoder("cpu"))
        row = np.flatnonzero((grid.coords == (320, 224)).all(axis=1))
        assert (read_tiles(slide, grid, row, ReadSettings(), None, tools.decoding_of(slide, grid)) == 255).all()
        for one in (tools, PassTools()):
            source = PixelSource(slide, grid, bundle.classifier, ReadSettings(), None, one)
            assert sum(len(chunk.rows) for chunk in source.chunks()) == len(grid.coords)
            assert (source.n_missing, source.failed.any()) == (1, False)


def _off_grid(slide: Slide) -> tuple[TileSpec, np.ndarray]:
    return TileSpec(size_px=32, mpp=MPP), np.array([[64, 64], [97, 64]])


def _resized(slide: Slide) -> tuple[TileSpec, np.ndarray]:
    return TileSpec(size_px=32, mpp=MPP * 2), np.array([[64, 64], [128, 64]])


def _over_the_edge(slide: Slide) -> tuple[TileSpec, np.ndarray]:
    return TileSpec(size_px=32, mpp=MPP), np.array([[64, 64], [704, 64]])


@pytest.mark.parametrize("lay", [_off_grid, _resized, _over_the_edge])
def test_tiles_that_are_not_the_files_are_left_to_its_reader(path: Path, lay: object) -> None:
    """Off the grid, at another resolution, beyond the scan: the usual reader, and a note that says why."""
    with open_slide(path) as slide:
        decoding = choose_decoding(TileDecoder("cpu"), slide, tiles_at(slide, *lay(slide)))  # type: ignore[operator]
        assert (decoding.decoder, decoding.reader) == (None, slide.reader)
        assert decoding.note == "tiles are decoded by the slide's reader: its tiles are not whole JPEG tiles of the file"
        assert decoding.source(slide) is slide


def test_a_decoder_that_mistakes_colours_is_found_out(path: Path, bundle: Bundle) -> None:
    """Compared before the first tile; the slide's reader decodes, and the pace line says so."""
    decoder = TileDecoder("cpu")
    real = decoder._decode_jpeg
    decoder._decode_jpeg = lambda *a, **k: [one.flip(0) for one in real(*a, **k)]
    tools = PassTools(decoder=decoder)
    found, usual = _label(path, bundle, tools), _label(path, bundle, PassTools())
    assert found.prediction.reader == usual.prediction.reader
    assert np.array_equal(found.prediction.logits, usual.prediction.logits)
    assert tools.decoding is not None
    assert "grey values apart in the mean" in tools.decoding.note
    pace = {"readers": 2, "chunk": 16, "batch": 16, "decode_ms": 1.0, "encode_ms": 1.0, "waited": 0.5, "batches_gib": 0.1}
    assert describe_pace(pace | {"decoder": tools.decoding.note}).endswith(tools.decoding.note)
    decoder._decode_jpeg = lambda *a, **k: (_ for _ in ()).throw(RuntimeError("not compiled"))
    assert "do not agree on which tiles are sound" in _note(decoder, path, bundle)


def _note(decoder: TileDecoder, path: Path, bundle: Bundle) -> str:
    with open_slide(path) as slide:
        return choose_decoding(decoder, slide, plan_slide(slide, bundle.settings, ReadSettings()).grid).note


@pytest.mark.parametrize("device", DEVICES)
def test_rgb_streams_without_a_marker_have_their_colours_or_are_left_out(shared_data: Path, device: str) -> None:
    """Aperio's RGB: right on a CPU; on a GPU right, or decoded by the slide's reader."""
    with open_slide(shared_data / "slides" / "aperio" / "CMU-1-Small-Region.svs", 0.5) as slide:
        places = np.array([[240, 240], [480, 960], [960, 1200]])
        grid = tiles_at(slide, TileSpec(size_px=240, mpp=0.5), places)
        decoding = choose_decoding(TileDecoder(device), slide, grid)
        assert decoding.decoder is not None or device != "cpu", decoding.note
        found = read_tiles(slide, grid, np.arange(3), ReadSettings(), None, decoding)
        assert np.abs(found.astype(int) - read_tiles(slide, grid, np.arange(3), ReadSettings())).mean() <= 3


def test_the_cache_keeps_both_apart(path: Path, bundle: Bundle) -> None:
    """What one decoder showed the encoder is not taken for what the other would."""
    with open_slide(path) as slide:
        grid = plan_slide(slide, bundle.settings, ReadSettings()).grid
        reader = choose_decoding(TileDecoder("cpu"), slide, grid).reader
        usual = embedding_key(slide, grid, bundle.classifier, {})
        assert embedding_key(slide, grid, bundle.classifier, {}, None, choose_decoding(None, slide, grid).reader) == usual
        assert embedding_key(slide, grid, bundle.classifier, {}, None, reader) == usual | {"reader": reader}


def test_a_worker_decodes_slides_ahead_and_remembers_them(
    path: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen by `decode_device`, recorded with the pace; the second slide is prepared so, too, and found in the cache again."""
    (tmp_path / "run").mkdir()
    streams: list[int] = []
    real = DirectTiles.stream
    monkeypatch.setattr(DirectTiles, "stream", lambda *a: (streams.append(1), real(*a))[1])
    machine = {"threads": 1, "device": "cpu", "decode_device": "cpu"}
    worker = SlideWorker(str(tiny_bundle), str(tmp_path / "run"), {}, None, False, {"name": "torch", "or_torch": False}, machine,
                         {"place": str(tmp_path / "cache"), "strict": False})  # fmt: skip
    jobs = [{"slide_id": i, "patient_id": "p", "slide_path": str(path), "features_path": None, "mpp": mpp, "mask_path": None,
             "identity": {}, "retry_failed": False, "formats": []} for i, mpp in (("a", 4.0), ("b", 4.01), ("c", 4.0))]  # fmt: skip
    worker.expect(jobs[1], lambda: None)
    first = worker.work(jobs[0], lambda *_: None)
    n_first = len(streams)
    worker.expect(None, lambda: None)
    second, third = (worker.work(job, lambda *_: None) for job in jobs[1:])
    assert first["status"] == second["status"] == "ok", (first["message"], second["message"])
    assert n_first >= first["n_encoded"] > 0
    assert second["was_ahead"]
    assert "through torchvision" in first["pace"]["decoder"]
    assert first["cells"]["reader"] == third["cells"]["reader"]
    assert (third["is_cached"], third["n_encoded"]) == (True, 0)


def test_without_a_gpu_the_command_line_refuses(path: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Before the first slide, with the option it takes."""
    base = ["classify", str(path), "--model", str(tiny_bundle), "--out", str(tmp_path / "run"), "--device", "cpu"]
    for given, words in (("gpu", "--decode gpu needs --device cuda"), ("fast", "--decode fast: expected cpu or gpu")):
        done = CliRunner().invoke(app, [*base, "--decode", given])
        assert done.exit_code != 0
        assert words in f"{done.output}{done.exception}"

"""The embedding cache: never a stale number, never half an entry, never a failed slide for its sake."""

from __future__ import annotations

import copy
import multiprocessing as mp
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.engine import entrywriter, scan
from wsi_ips.engine.embeddings import EmbeddingCache, cache_place, open_cache
from wsi_ips.engine.encoding import embedding_key, slide_embeddings
from wsi_ips.engine.predict import Labelled, PredictJob, label_slide
from wsi_ips.engine.scan import plan_slide, scan_slide
from wsi_ips.errors import ConfigError
from wsi_ips.model.bundle import Bundle, load_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.selector import Selection, StreamingSelector
from wsi_ips.results import ledger_bytes
from wsi_ips.slide.reader import Slide, open_slide
from wsi_ips.tiles.grid import TileGrid

READ = ReadSettings(n_readers=1)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk a part, so that a slide of some forty tiles has three."""
    monkeypatch.setattr(entrywriter, "_PART_TILES", 16)


def _label(slide: Slide, bundle: Bundle, cache: EmbeddingCache | None) -> Labelled:
    return label_slide(slide, bundle, PredictJob("s", read=READ), None, cache)


def _grid(slide: Slide, bundle: Bundle, **tile: object) -> TileGrid:
    settings = bundle.settings.replace(tile=bundle.settings.tile.replace(**tile).model_dump())
    return plan_slide(slide, settings, READ).grid


def _entries(cache: EmbeddingCache) -> list[Path]:
    return [p.parent for p in cache.folder.glob("??/*/index.json")]


def test_cached_and_uncached_passes_give_the_same_bytes(
    slide: Slide, bundle: Bundle, cache: EmbeddingCache, small_parts: None
) -> None:
    """Without a cache, into it and out of it the ledger is one; out of it no tile is encoded."""
    without, miss, hit = _label(slide, bundle, None), _label(slide, bundle, cache), _label(slide, bundle, cache)
    n = without.prediction.n_tiles
    assert n > 32  # three parts
    assert [(x.scan.n_encoded, x.scan.is_cached) for x in (without, miss, hit)] == [(n, False), (n, False), (0, True)]
    assert ledger_bytes(without.prediction) == ledger_bytes(miss.prediction) == ledger_bytes(hit.prediction)
    assert hit.scan.colour == miss.scan.colour == without.scan.colour
    assert not cache.trouble


def test_the_context_of_a_label_is_the_same_from_the_cache(slide: Slide, bundle: Bundle, cache: EmbeddingCache) -> None:
    """A label that the unselected tiles enter too is bit for bit the same, and there is such a context."""
    selection = bundle.settings.selection.replace(context=True)
    settings = bundle.settings.replace(selection=selection.model_dump())
    classifier = IPSClassifier(bundle.classifier.encoder, settings)
    classifier.load_state_dict(bundle.classifier.state_dict())
    other = replace(bundle, settings=settings, classifier=classifier.eval())
    once, again = (_label(slide, other, cache).prediction for _ in range(2))
    assert once.context is not None
    assert ledger_bytes(once) == ledger_bytes(again)
    assert not np.array_equal(once.outputs, _label(slide, bundle, None).prediction.outputs)


def test_members_that_left_the_buffer_come_from_the_cache(
    slide: Slide, bundle: Bundle, cache: EmbeddingCache, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each to its place, from whichever part holds it, and nothing is encoded for them."""

    class Forgets(StreamingSelector):
        def finish(self) -> Selection:
            found = super().finish()
            found.features[:] = np.nan
            return found._replace(missing=np.arange(len(found.rows)))

    whole = _label(slide, bundle, cache)
    monkeypatch.setattr(scan, "StreamingSelector", Forgets)
    hit = _label(slide, bundle, cache)
    assert len(set(whole.prediction.selected // 16)) > 1  # in several parts
    assert (hit.scan.n_encoded, hit.prediction.n_reencoded) == (0, 6)
    assert np.array_equal(hit.prediction.values, whole.prediction.values)


def test_a_hundred_mutations_give_no_stale_hit(
    slide_file: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight, one byte of the file, tiles, resolution, normalisation, precision, batch: each is a miss; undone, a hit."""
    path = shutil.copy(slide_file, tmp_path / "b.tif")
    cache = EmbeddingCache(tmp_path / "cache", strict=True)
    classifier = copy.deepcopy(bundle.classifier)
    assert isinstance(classifier, IPSClassifier)
    with open_slide(path) as slide:
        grid = _grid(slide, bundle)
        slide_embeddings(slide, grid, classifier, READ, cache)

        def is_hit(c: IPSClassifier = classifier, g: TileGrid = grid, s: Slide = slide) -> bool:
            return cache.find(embedding_key(s, g, c, cache.fingerprint(str(path)) or {})) is not None

        n_stale = n_tried = 0
        for mutated in _mutations(path, slide, grid, bundle, classifier, is_hit, monkeypatch):
            n_tried, n_stale = n_tried + 1, n_stale + mutated
            assert is_hit(), f"mutation {n_tried} was not undone, so the next one would prove nothing"
    assert (n_tried, n_stale) == (100, 0)


def _mutations(
    path: Path, slide: Slide, grid: TileGrid, bundle: Bundle, classifier: IPSClassifier, is_hit: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[bool]:  # fmt: skip
    """Make one change at a time, tell whether it was found in the cache, and undo it."""
    rng = np.random.default_rng(11)
    names = [name for name, t in classifier.encoder.state_dict().items() if t.is_floating_point()]
    for i in range(39):  # one bit of one weight; the mean and std of the colours first
        tensor = classifier.encoder.state_dict()[("mean", "std")[i] if i < 2 else str(rng.choice(names))]
        tensor = tensor.data if i % 2 else tensor  # past the counter of changes, too
        at = tuple(int(rng.integers(n)) for n in tensor.shape)
        before = tensor[at].clone()
        tensor[at] = torch.nextafter(before, before + 1)
        found = is_hit()
        tensor[at] = before
        yield found
    content = path.read_bytes()
    for at in rng.integers(0, len(content), 25):
        with path.open("r+b") as f:
            f.seek(int(at))
            f.write(bytes([content[at] ^ 1]))
        found = is_hit()
        path.write_bytes(content)
        yield found
    others = {"size_px": (16, 24, 31, 33, 48), "mpp": (2.0, 3.9, 3.999, 4.001), "overlap_px": (1, 2, 8, 16)}
    for key, values in others.items():
        for value in values:
            yield is_hit(g=_grid(slide, bundle, **{key: value}))
    yield is_hit(g=replace(grid, coords=grid.coords[1:], tissue=grid.tissue[1:]))
    yield is_hit(g=replace(grid, coords=grid.coords + 1))
    yield is_hit(g=replace(grid, level=grid.level + 1))
    for mpp in (0.5, 0.999, 1.001, 2.0):
        with open_slide(path, mpp) as other:
            yield is_hit(s=other)
            yield is_hit(s=other, g=_grid(other, bundle))
    for batch in (1, 8, 15, 17):
        selection = bundle.settings.selection.replace(chunk_size=batch)
        yield is_hit(IPSClassifier(classifier.encoder, bundle.settings.replace(selection=selection.model_dump())))
    yield is_hit(IPSClassifier(classifier.encoder, bundle.settings.replace(icc="srgb")))
    for kind in (torch.float64, torch.float16):
        yield is_hit(copy.deepcopy(classifier).to(kind))
    architecture = classifier.encoder.architecture
    classifier.encoder.architecture = architecture._replace(interpolation="nearest")
    classifier.encoder._known = None  # an architecture is never changed in place: it is part of the first hash
    found = is_hit()
    classifier.encoder.architecture = architecture
    classifier.encoder._known = None
    yield found
    for what, name, value in ((torch, "__version__", "9.9"), (torch, "get_num_threads", lambda: 77), (slide, "reader", "other"),
                              (torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(what, name, value)
            found = is_hit()
        yield found


def test_a_byte_that_samples_miss_is_seen_when_strict(tmp_path: Path) -> None:
    """Why `--strict` is there: a change between the sampled blocks of a large file."""
    path = tmp_path / "large.svs"
    path.write_bytes(os.urandom(2_000_000))
    found = {strict: EmbeddingCache(tmp_path, strict=strict).fingerprint(str(path)) for strict in (False, True)}
    with path.open("r+b") as f:
        f.seek(100_000)  # the samples are 64 KiB from 0 and from 215,163 on
        byte = f.read(1)
        f.seek(100_000)
        f.write(bytes([byte[0] ^ 1]))
    again = {strict: EmbeddingCache(tmp_path, strict=strict).fingerprint(str(path)) for strict in (False, True)}
    assert again[False] == found[False]
    assert again[True] != found[True]


@pytest.mark.parametrize("damage", ["last part", "first part", "no part", "index", "colour", "no index"])
def test_damage_is_a_miss_and_heals(
    slide: Slide, bundle: Bundle, cache: EmbeddingCache, small_parts: None, damage: str
) -> None:
    """A flipped bit or a lost file, wherever: encoded again, the same bytes, and whole the next time."""
    sound = _label(slide, bundle, cache)
    (entry,) = _entries(cache)
    parts, index = sorted(entry.glob("*.h5")), entry / "index.json"
    victim = {"last part": parts[-1], "first part": parts[0], "no part": parts[1]}.get(damage, index)
    if damage.startswith("no "):
        victim.unlink()
    elif damage == "colour":
        victim.write_text(victim.read_text().replace('"contrast": 0', '"contrast": 1'))
    else:
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    miss, hit = _label(slide, bundle, cache), _label(slide, bundle, cache)
    assert (miss.scan.n_encoded, hit.scan.n_encoded) == (sound.prediction.n_tiles, 0)
    assert ledger_bytes(miss.prediction) == ledger_bytes(hit.prediction) == ledger_bytes(sound.prediction)


def _fill(folder: str, barrier: Any) -> None:
    """Write one entry at the same moment as another process."""
    cache = EmbeddingCache(folder)
    writer = cache.writer({"slide": "same"}, 4)
    for start in range(0, 640, 64):
        rows = start + np.arange(64)
        writer.add(rows, np.repeat(rows[:, None], 8, 1).astype(np.float32), np.zeros(64, np.int64))
    barrier.wait(60)
    writer.finish(640, None)
    assert not cache.trouble


def test_two_processes_write_one_entry_at_once(tmp_path: Path) -> None:
    """Both end well, one copy stays, whole, and nothing is left of the other."""
    context = mp.get_context("fork")
    barrier = context.Barrier(4)
    children = [context.Process(target=_fill, args=(str(tmp_path), barrier)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    stored = EmbeddingCache(tmp_path).find({"slide": "same"})
    assert stored is not None
    assert np.array_equal(np.concatenate([p.embeddings[:, 0] for p in stored.parts()]), np.arange(640))
    assert [p.name for p in tmp_path.iterdir()] == [stored.folder.parent.name]


def _put(cache: EmbeddingCache, name: str) -> None:
    writer = cache.writer({"slide": name}, 4)
    writer.add(np.arange(100), np.ones((100, 50), np.float32), np.zeros(100, np.int64))
    writer.finish(100, None)


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    """Three entries of some 15 kB in 40 kB: the third pushes out the one not used since; other people's files stay."""
    cache = EmbeddingCache(tmp_path, max_gb=40e-6)
    foreign = [tmp_path / "notes" / "mine" / "index.json", tmp_path / ".git" / "config"]
    for path in foreign:
        path.parent.mkdir(parents=True)
        path.write_text("mine" * 10_000)
        os.utime(path.parent, (0, 0))
    for name in ("a", "b"):
        _put(cache, name)
        time.sleep(0.01)
    assert cache.find({"slide": "a"})  # used again
    time.sleep(0.01)
    _put(cache, "c")
    assert [bool(cache.find({"slide": name})) for name in "abc"] == [True, False, True]
    assert all(path.exists() for path in foreign)


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path) -> None:
    """Of two half-made entries the old one goes with the next count; the young one may be another process's work."""
    cache = EmbeddingCache(tmp_path)
    old, young = (tmp_path / f".new-{c * 32}-{'0' * 32}" for c in "ab")
    for folder in (old, young):
        folder.mkdir()
        (folder / "000000.h5").write_text("x")
    os.utime(old, (time.time() - 100_000, time.time() - 100_000))
    _put(cache, "a")
    assert (old.exists(), young.exists()) == (False, True)


def test_an_entry_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    """It would push out everything, and then itself."""
    cache = EmbeddingCache(tmp_path, max_gb=1e-6)
    _put(cache, "a")
    assert not cache.find({"slide": "a"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["a file stands there", "the disk is full", "it fills at the end"])
def test_a_cache_that_cannot_be_written_costs_a_sentence_and_no_slide(
    slide: Slide, bundle: Bundle, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label is made all the same; the sentence holds no path; nothing half-made stays."""
    place = tmp_path / "cache"
    if kind == "a file stands there":
        place.write_text("x")
    elif kind == "the disk is full":
        monkeypatch.setattr(entrywriter, "_KEEP_FREE", 1 << 60)
    else:
        real = Path.write_bytes

        def full(self: Path, data: bytes) -> int:
            if self.name == "index.json":
                raise OSError(28, "No space left on device")
            return real(self, data)

        monkeypatch.setattr(Path, "write_bytes", full)
    cache = EmbeddingCache(place)
    first, second = _label(slide, bundle, cache), _label(slide, bundle, cache)
    assert ledger_bytes(first.prediction) == ledger_bytes(second.prediction)
    assert second.scan.n_encoded == second.prediction.n_tiles
    assert "the embedding cache cannot be written (" in cache.trouble
    assert str(tmp_path) not in cache.trouble
    assert not place.is_dir() or not list(place.iterdir())


def test_a_slide_with_tiles_that_failed_is_not_kept(
    slide: Slide, bundle: Bundle, cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run may be able to read them."""
    from wsi_ips.errors import TileReadError
    from wsi_ips.slide.fileslide import FileSlide

    grid = _grid(slide, bundle)
    real, bad = FileSlide.read_into, tuple(int(v) for v in grid.coords[20])

    def torn(self: FileSlide, out: np.ndarray, x0: int, y0: int, level: int, shrink: int = 1) -> int:
        if (x0, y0) == bad:
            raise TileReadError("E_TILE", "torn")
        return real(self, out, x0, y0, level, shrink)

    monkeypatch.setattr(FileSlide, "read_into", torn)
    found = scan_slide(slide, grid, bundle.classifier, ReadSettings(max_bad_tiles=0.1), cache=cache)
    assert found.n_failed == 1
    assert not _entries(cache)
    assert not cache.folder.exists() or not list(cache.folder.iterdir())


def test_numbers_that_float16_cannot_hold_are_not_kept(tmp_path: Path) -> None:
    """What cannot be given back bit for bit (weights in float64, say) is encoded every time."""
    cache = EmbeddingCache(tmp_path)
    for value in (0.1, 1e6, np.nan):
        writer = cache.writer({"value": str(value)}, 4)
        writer.add(np.arange(4), np.full((4, 2), value, np.float32), np.zeros(4, np.int64))
        writer.finish(4, None)
        assert not cache.find({"value": str(value)})


def test_slide_embeddings_are_those_of_the_pass(slide: Slide, bundle: Bundle, cache: EmbeddingCache) -> None:
    """float16, one row a tile, the same from pixels and from the cache, and what the pass computes from them is the same."""
    grid = _grid(slide, bundle)
    made, found = (slide_embeddings(slide, grid, bundle.classifier, READ, cache) for _ in range(2))
    assert (made.n_encoded, found.n_encoded) == (len(grid.coords), 0)
    assert made.embeddings.dtype == found.embeddings.dtype == np.float16
    assert np.array_equal(made.embeddings, found.embeddings)
    assert made.colour == found.colour
    direct = scan_slide(slide, grid, bundle.classifier, READ)
    again = scan.scan_embeddings(found.embeddings, bundle.classifier)
    assert np.array_equal(again.logits, direct.logits)
    assert np.array_equal(again.selected, direct.selected)
    assert np.array_equal(again.features, direct.features)


def test_an_entry_holds_no_path_and_no_name(
    slide: Slide, slide_file: Path, bundle: Bundle, cache: EmbeddingCache
) -> None:
    """A cache may be shared: neither folder nor file name nor slide id is in it."""
    _label(slide, bundle, cache)
    for path in cache.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert str(slide_file.parent).encode() not in data
            assert slide_file.name.encode() not in data


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_settings: ModelSettings) -> None:
    """The option goes before WSI_IPS_CACHE, that before the user's cache folder; either may say off."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("WSI_IPS_CACHE", "/x")
    assert (cache_place(), cache_place("/y"), cache_place("off")) == (Path("/x"), Path("/y"), None)
    monkeypatch.setenv("WSI_IPS_CACHE", "off")
    assert (cache_place(), cache_place("/y")) == (None, Path("/y"))
    monkeypatch.delenv("WSI_IPS_CACHE")
    assert cache_place() == tmp_path / "wsi-ips" / "embeddings"
    opened = open_cache(strict=True)
    assert opened is not None
    assert (opened.max_bytes, opened.strict) == (50_000_000_000, True)
    assert not list(tmp_path.iterdir())  # nothing is made before it is needed
    monkeypatch.setenv("WSI_IPS_CACHE_GB", "much")
    with pytest.raises(ConfigError, match="WSI_IPS_CACHE_GB=much: expected gigabytes"):
        open_cache()


def test_an_entry_under_another_ones_name_is_a_miss(tmp_path: Path) -> None:
    """Whole and sealed, but of other ingredients: a folder that somebody moved serves nobody."""
    cache = EmbeddingCache(tmp_path)
    for slide in ("a", "b"):
        writer = cache.writer({"slide": slide}, 4)
        writer.add(np.arange(4), np.full((4, 2), float(ord(slide)), np.float32), np.zeros(4, np.int64))
        writer.finish(4, None)
    found = {slide: cache.find({"slide": slide}) for slide in ("a", "b")}
    assert found["a"] is not None
    assert found["b"] is not None
    shutil.rmtree(found["b"].folder)
    found["a"].folder.rename(found["b"].folder)
    assert cache.find({"slide": "b"}) is None
    assert not found["b"].folder.exists()  # and it is made anew


def test_a_fingerprint_that_was_told_serves_once(tmp_path: Path) -> None:
    """The next look-up takes it; the one behind looks at the file, which may have changed."""
    path = tmp_path / "s.svs"
    path.write_bytes(b"pixels")
    cache = EmbeddingCache(tmp_path / "cache")
    cache.tell_fingerprint(str(path), {"sha256": "told"})
    assert cache.fingerprint(str(path)) == {"sha256": "told"}
    own = cache.fingerprint(str(path))
    assert own is not None
    assert own["sha256"] != "told"

"""A pass that was interrupted goes on behind what it had encoded, and ends with the very bytes of one that was not."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_ips.config import ReadSettings
from wsi_ips.engine import entrywriter
from wsi_ips.engine.embeddings import EmbeddingCache
from wsi_ips.engine.predict import Labelled, PredictJob, label_slide
from wsi_ips.errors import TileReadError
from wsi_ips.locking import LEASE_SECONDS
from wsi_ips.model.bundle import Bundle, load_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.results import ledger_bytes
from wsi_ips.slide.fileslide import FileSlide
from wsi_ips.slide.reader import Slide

READ = ReadSettings(n_readers=1, max_bad_tiles=0.1)
CHUNK = 16


class Killed(BaseException):
    """Stands for a signal."""


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    found = load_bundle(tiny_bundle)
    assert found.settings.selection.chunk_size == CHUNK
    return found


def _label(slide: Slide, bundle: Bundle, cache: EmbeddingCache | None, *, with_bag: bool = False, until: int = 10**9) -> Labelled:
    def progress(stage: str, done: int, total: int) -> None:
        if done >= until:
            raise Killed

    return label_slide(slide, bundle, PredictJob("s", read=READ, with_bag=with_bag), progress, cache)


def _with(bundle: Bundle, **selection: Any) -> Bundle:
    settings = bundle.settings.replace(selection=bundle.settings.selection.replace(**selection).model_dump())
    classifier = IPSClassifier(bundle.classifier.encoder, settings)
    classifier.load_state_dict(bundle.classifier.state_dict())
    return replace(bundle, settings=settings, classifier=classifier.eval())


@pytest.mark.parametrize("variant", ["plain", "context", "ips", "bag"])
def test_fault_092_an_interrupted_pass_goes_on_with_the_same_bytes(slide: Slide, bundle: Bundle, cache: EmbeddingCache, variant: str) -> None:
    """Interrupted twice; nothing that was encoded is encoded again; colours, context, evidence and selection are the same."""
    model = {"context": _with(bundle, context=True), "ips": _with(bundle, mode="ips")}.get(variant, bundle)
    with_bag = variant == "bag"
    whole = _label(slide, model, None, with_bag=with_bag)
    n = whole.prediction.n_tiles
    assert n > 2 * CHUNK
    for until in (CHUNK, 2 * CHUNK):
        with pytest.raises(Killed):
            _label(slide, model, cache, with_bag=with_bag, until=until)
    last = _label(slide, model, cache, with_bag=with_bag)
    assert last.scan.n_encoded == n - 2 * CHUNK
    assert ledger_bytes(last.prediction) == ledger_bytes(whole.prediction)
    assert last.scan.colour == whole.scan.colour
    again = _label(slide, model, cache, with_bag=with_bag)  # the entry that two passes filled serves
    assert (again.scan.n_encoded, ledger_bytes(again.prediction)) == (0, ledger_bytes(whole.prediction))


def test_it_goes_on_behind_the_last_tile_too(slide: Slide, bundle: Bundle, cache: EmbeddingCache) -> None:
    """Interrupted when every tile was encoded, nothing is left but to select."""
    whole = _label(slide, bundle, None)
    with pytest.raises(Killed):
        _label(slide, bundle, cache, until=whole.prediction.n_tiles)
    last = _label(slide, bundle, cache)
    assert (last.scan.n_encoded, ledger_bytes(last.prediction)) == (0, ledger_bytes(whole.prediction))


def test_tiles_that_failed_are_remembered(
    slide: Slide, bundle: Bundle, cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted once, left out once; and such a pass leaves nothing for others, whom the tile may not fail."""
    real, count = FileSlide.read_into, iter(range(10**9))
    whole = _label(slide, bundle, None).prediction
    bad = tuple(int(v) for v in whole.coords[5])

    def torn(self: FileSlide, out: np.ndarray, x0: int, y0: int, level: int, shrink: int = 1) -> int:
        if (x0, y0) == bad:
            next(count)
            raise TileReadError("E_TILE", "torn")
        return real(self, out, x0, y0, level, shrink)

    monkeypatch.setattr(FileSlide, "read_into", torn)
    without = _label(slide, bundle, None)
    asked = next(count)
    with pytest.raises(Killed):
        _label(slide, bundle, cache, until=2 * CHUNK)
    last = _label(slide, bundle, cache)
    assert last.prediction.n_failed_reads == 1
    assert next(count) - asked == 1 + 2  # twice in the first pass, not at all in the second
    assert ledger_bytes(last.prediction) == ledger_bytes(without.prediction)
    assert list(cache.folder.iterdir()) == []


@pytest.mark.parametrize("damage", ["first part", "second part", "note", "no note", "owner", "chunks"])
def test_only_what_is_sound_is_taken_up(
    slide: Slide, bundle: Bundle, cache: EmbeddingCache, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged part ends what is taken up; a damaged note, or one of other chunks, leaves nothing of it; the result is the same."""
    monkeypatch.setattr(entrywriter, "_PART_TILES", CHUNK)
    whole = _label(slide, bundle, None)
    n = whole.prediction.n_tiles
    with pytest.raises(Killed):
        _label(slide, bundle, cache, until=2 * CHUNK)
    (left,) = cache.folder.iterdir()
    note = left / "unfinished.json"
    if "part" in damage:
        part = left / ("000000.h5" if damage == "first part" else "000001.h5")
        part.write_bytes(part.read_bytes()[:-1])
    elif damage == "note":
        note.write_text(note.read_text().replace('"n": 16', '"n": 17'))
    elif damage == "no note":
        note.unlink()
    else:
        said = json.loads(note.read_text())
        said |= {"chunk_size": 8} if damage == "chunks" else {"owner": "nobody"}
        said["sha256"] = entrywriter.seal({k: v for k, v in said.items() if k != "sha256"})
        note.write_bytes(entrywriter.json_bytes(said))
    last = _label(slide, bundle, cache)
    kept = {"second part": CHUNK, "owner": 2 * CHUNK}.get(damage, 0)
    assert last.scan.n_encoded == n - kept
    assert ledger_bytes(last.prediction) == ledger_bytes(whole.prediction)


@pytest.mark.parametrize(
    ("owner", "silent_seconds", "is_taken"),
    [({"host": os.uname().nodename, "pid": 999_999_999, "started": 1.0}, 0.0, True), ("me", 1e6, False),
     ({"host": "elsewhere", "pid": 1, "started": 1.0}, 0.0, False), ({"host": "elsewhere", "pid": 1, "started": 1.0}, 2 * LEASE_SECONDS, True)],
    ids=["dead", "alive", "alive elsewhere", "silent elsewhere"],
)  # fmt: skip
def test_what_another_process_fills_is_left_to_it(tmp_path: Path, owner: Any, silent_seconds: float, is_taken: bool) -> None:
    """Only the folder of a process that is gone is taken over."""
    cache, rows = EmbeddingCache(tmp_path), np.arange(4)
    first = cache.writer({"slide": "a"}, 4)
    first.add(rows, np.ones((4, 2), np.float32), np.zeros(4, np.int64))
    first.leave()
    (left,) = tmp_path.iterdir()
    note = left / "unfinished.json"
    said = json.loads(note.read_text())
    said["owner"] = entrywriter.this_process() if owner == "me" else owner
    said["sha256"] = entrywriter.seal({k: v for k, v in said.items() if k != "sha256"})
    note.write_bytes(entrywriter.json_bytes(said))
    then = time.time() - silent_seconds
    os.utime(note, (then, then))
    second = cache.writer({"slide": "a"}, 4)
    assert [part.rows.tolist() for part in second.earlier()] == ([[0, 1, 2, 3]] if is_taken else [])
    assert left.exists() != is_taken


def test_a_part_is_written_after_some_seconds_at_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow encoder loses seconds of work to a SIGKILL, not four thousand tiles."""
    clock = [0.0]
    monkeypatch.setattr(entrywriter.time, "monotonic", lambda: clock[0])
    writer = EmbeddingCache(tmp_path).writer({"slide": "a"}, 4)
    written: list[int] = []
    for i in range(6):
        clock[0] += 15.0
        writer.add(np.arange(4 * i, 4 * i + 4), np.ones((4, 2), np.float32), np.zeros(4, np.int64))
        written.append(len(list(tmp_path.glob("*/*.h5"))))
    assert written == [0, 1, 1, 2, 2, 3]


def test_a_transient_cache_keeps_a_long_pass_until_its_slide_is_done(
    slide: Slide, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without a cache that is killed while it draws need not encode again; afterwards nothing is left."""
    monkeypatch.setattr(entrywriter, "_PART_TILES", CHUNK)
    cache = EmbeddingCache(tmp_path / "parts", is_transient=True)
    assert _label(slide, bundle, cache).scan.n_encoded > 0
    assert _label(slide, bundle, cache).scan.n_encoded == 0
    cache.done()
    assert not list(cache.folder.glob("??/*"))
    monkeypatch.undo()
    assert _label(slide, bundle, cache).scan.n_encoded > 0  # and so short a pass that no part was written leaves none
    assert not list(cache.folder.glob("*/*"))



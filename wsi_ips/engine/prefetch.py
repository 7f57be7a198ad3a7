"""The next slide of a worker, made ready while it encodes the present one: opened, planned, its first tiles read.

A guess that costs nothing when it is wrong. It is used only when the slide that comes is the one that was expected and
its files are what they were; otherwise it is thrown away, and so is every error: the slide meets it again in its own
turn, where it is reported. Where the embedding cache has the slide no tile is read.

Held at most: one open slide, its tissue mask (a byte a px of the low-resolution view) and grid (some 20 bytes a tile),
and `read_ahead` chunks of pixels. No pixel beyond those is read, however long the present slide takes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.engine.embeddings import EmbeddingCache
from wsi_ips.engine.encoding import embedding_key
from wsi_ips.engine.gpudecode import Decoding, choose_decoding
from wsi_ips.engine.passtools import PassTools, start_stream, watch
from wsi_ips.engine.slideplan import SlidePlan, plan_slide
from wsi_ips.model.ensemble import Classifier
from wsi_ips.runfolder import RunFolder
from wsi_ips.slide.metadata import fingerprint
from wsi_ips.slide.reader import Slide, open_slide
from wsi_ips.slide.stamps import Stamps, stamps
from wsi_ips.stages import StageClock
from wsi_ips.tiles.stream import TileStream

__all__ = ["Look", "LookAhead", "Prepared", "SlidePreparer", "look_at"]

_ASKED = ("slide_id", "slide_path", "mpp", "mask_path")  # of a payload: what a preparation depends on


class Look(NamedTuple):
    """What a slide's files were at one moment."""

    file: dict[str, Any] | None  # sampled fingerprint; None where it cannot be read
    mask: dict[str, Any] | None
    stamps: Stamps  # see slide/stamps.py


def look_at(payload: Mapping[str, Any]) -> Look:
    """Look at a slide's files, without reading gigabytes."""
    return Look(_sampled(payload["slide_path"]), _sampled(payload["mask_path"]), stamps(payload["slide_path"]))


def _sampled(path: str | None) -> dict[str, Any] | None:
    try:
        return fingerprint(path) if path else None
    except OSError:
        return None


@dataclass
class Prepared:
    """A slide ready to be passed over; whoever takes it closes it."""

    slide: Slide
    plan: SlidePlan
    stream: TileStream | None  # None where the cache has the embeddings
    look: Look  # before it was opened
    clock: StageClock
    seconds: dict[str, float]  # by stage, of opening and planning
    decoding: Decoding

    def close(self) -> None:
        """End the threads and close the slide; again is nothing."""
        if self.stream is not None:
            self.stream.close()
        self.slide.close()


class SlidePreparer:
    """Opens and plans a slide as a pass over it would, and begins to read its tiles.

    Args:
        classifier: whose tiles are cut.
        settings: the model's, with the tiles of this run.
        read: readers, and how far ahead they read.
        cache: of embeddings; None does without.
        run: the folder with the records of slides that are done.
        style: how its tiles are read and encoded, see `PassTools`.
    """

    def __init__(
        self, classifier: Classifier, settings: ModelSettings, read: ReadSettings, cache: EmbeddingCache | None, run: RunFolder,
        style: PassTools | None = None,
    ) -> None:  # fmt: skip
        self._classifier, self._settings, self._read, self._cache, self._run = classifier, settings, read, cache, run
        self._style = style or PassTools()

    def __call__(self, payload: Mapping[str, Any], is_wanted: Callable[[], bool]) -> Prepared | None:
        """Prepare the slide of a job; None where there is nothing to prepare. Raises what opening and planning raise."""
        look = look_at(payload)
        if look.file is None or self._seems_done(payload, look):
            return None
        clock = StageClock()
        with clock.time("open"):
            slide = open_slide(payload["slide_path"], payload["mpp"], icc=self._settings.icc)
        try:
            with clock.time("mask"):
                plan = plan_slide(slide, self._settings, self._read, payload["mask_path"])
                decoding = choose_decoding(self._style.decoder, slide, plan.grid)
            stream, seconds = None, clock.seconds()
            if is_wanted() and not self._may_be_cached(slide, plan, look.file, decoding.reader):
                watch(slide, clock if self._style.is_detailed else None)
                read = self._style.tuned(self._read)
                chunk_size = self._settings.selection.chunk_size
                stream = start_stream(decoding, slide, plan.grid, chunk_size, read, clock, self._style.allocate)
            return Prepared(slide, plan, stream, look, clock, seconds, decoding)
        except BaseException:
            slide.close()
            raise

    def _seems_done(self, payload: Mapping[str, Any], look: Look) -> bool:
        """Tell whether the worker will probably keep what an earlier start finished."""
        record = self._run.read_record(payload["slide_id"]) or {"identity": {}, "status": ""}
        identity = record["identity"] or {}
        is_same = all(identity.get(k) == v for k, v in payload["identity"].items())
        same_size = (identity.get("file") or {}).get("size") == (look.file or {}).get("size")
        return is_same and same_size and not (record["status"] == "failed" and payload["retry_failed"])

    def _may_be_cached(self, slide: Slide, plan: SlidePlan, file: dict[str, Any], reader: str) -> bool:
        """Look into the cache; a strict one names slides by all their bytes, which are not read ahead: perhaps."""
        if self._cache is None or self._cache.strict:
            return self._cache is not None
        key = embedding_key(slide, plan.grid, self._classifier, file, self._style.batch, reader, same_once=self._read.same_once)
        return self._cache.find(key) is not None


class LookAhead:
    """At most one slide in preparation; used by the one thread that does the slides.

    Args:
        prepare: called in a thread of its own with a payload and a function that tells whether it is still wanted.
    """

    def __init__(self, prepare: Callable[[Mapping[str, Any], Callable[[], bool]], Prepared | None]) -> None:
        self._prepare = prepare
        self._expected: Mapping[str, Any] | None = None
        self._begun: Callable[[], None] = lambda: None
        self._work: _Preparation | None = None

    def expect(self, payload: Mapping[str, Any] | None, begun: Callable[[], None]) -> None:
        """Note which job will probably come after the present one, and what to call before preparing it."""
        self._expected, self._begun = payload, begun

    def begin(self) -> None:
        """Begin with the expected job, unless that was done before: the present one's stream runs."""
        payload, self._expected = self._expected, None
        if payload is not None:
            self.drop()
            self._begun()
            self._work = _Preparation(self._prepare, payload)
            self._work.start()

    def take(self, payload: Mapping[str, Any], look: Callable[[Mapping[str, Any]], Look] = look_at) -> Prepared | None:
        """Give what was prepared for this job, waiting for its end; None where that is nothing, or no longer true."""
        work, self._work = self._work, None
        if work is None:
            return None
        if any(work.payload[k] != payload[k] for k in _ASKED):
            work.drop()  # not waited for: what hangs there must not hold this slide up
            return None
        found = work.result()
        if found is not None and found.look != look(payload):
            found.close()
            return None
        return found

    def drop(self) -> bool:
        """Throw away what is being prepared; tell whether there was any."""
        work, self._work, self._expected = self._work, None, None
        if work is not None:
            work.drop()
        return work is not None


class _Preparation(threading.Thread):
    def __init__(
        self, prepare: Callable[[Mapping[str, Any], Callable[[], bool]], Prepared | None], payload: Mapping[str, Any]
    ) -> None:
        super().__init__(name="next-slide", daemon=True)  # one that hangs must not keep the process
        self.payload = payload
        self._prepare = prepare
        self._lock = threading.Lock()
        self._is_wanted = True
        self._found: Prepared | None = None

    def run(self) -> None:
        try:
            found = self._prepare(self.payload, lambda: self._is_wanted)
        except Exception:  # whatever it is, the slide meets it again in its own turn
            return
        with self._lock:
            if self._is_wanted:
                self._found = found
                return
        if found is not None:
            found.close()

    def result(self) -> Prepared | None:
        """Wait for the end."""
        self.join()
        return self._found

    def drop(self) -> None:
        """Close what was found, now or, in the thread, as soon as it is."""
        with self._lock:
            self._is_wanted = False
            found, self._found = self._found, None
        if found is not None:
            threading.Thread(target=found.close, name="next-slide", daemon=True).start()

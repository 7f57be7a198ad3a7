"""What a worker process does: open one slide, label it, draw it, write its files and, last, its record.

Runs in a child that may die. Everything that is wrong with a slide becomes a record with a reason; only a stopped
environment and defects of this package leave `work` as errors.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from wsi_ips.config import ReadSettings, TileSpec, result_hash
from wsi_ips.engine.determinism import make_deterministic
from wsi_ips.engine.draw import no_tissue_files, slide_files, undrawn_files
from wsi_ips.engine.drawoptions import DEFAULT_FORMATS, DrawOptions
from wsi_ips.engine.embeddings import EmbeddingCache, engine_place, open_cache
from wsi_ips.engine.environment import is_out_of_memory
from wsi_ips.engine.featurefiles import read_feature_file, slide_behind
from wsi_ips.engine.identity import Identity, identify
from wsi_ips.engine.pace import choose_style, pace_of
from wsi_ips.engine.passtools import PassTools
from wsi_ips.engine.predict import Labelled, PredictJob, label_features, label_slide, tile_settings
from wsi_ips.engine.prefetch import LookAhead, SlidePreparer
from wsi_ips.engine.progress import timed
from wsi_ips.engine.provenance import describe_run, made_with, worker_facts
from wsi_ips.engine.runpages import seen_facts
from wsi_ips.engine.runtables import measured_cells
from wsi_ips.engine.scan import Scan
from wsi_ips.engine.shortage import SizedEngine, explain_shortage, release_memory, smaller_batch
from wsi_ips.engine.verdicts import changed, peak_bytes, refused, verdict
from wsi_ips.engine.verdicts import record as record_of
from wsi_ips.errors import ConfigError, ModelError, NoTissueError, SlideError, UnreadableSlideError
from wsi_ips.model.bundle import load_bundle
from wsi_ips.report.finer import read_finer
from wsi_ips.results import SlideResult, ledger_bytes
from wsi_ips.runfolder import RunFolder
from wsi_ips.slide.reader import Slide, open_slide
from wsi_ips.slide.stamps import refuse_changed, stamps
from wsi_ips.slide.stated import check_stated
from wsi_ips.stages import StageClock

__all__ = ["SlideWorker", "make_deterministic"]

Progress = Callable[[str, int, int], None]


class SlideWorker:
    """Holds the model; does slides one after another.

    Args:
        model: folder of a bundle.
        out: run folder.
        read: ReadSettings as a mapping.
        tile: TileSpec as a mapping, or None for the model's own.
        allow_mismatch: whether other tiles than the model's may be cut.
        engine: {"name": which encodes, "or_torch": whether torch may stand in}, see `set_engine`.
        machine: {"threads": of torch, "device": cpu, cuda:0, ..., "look_ahead": whether the next slide is prepared,
            "profile": whether the slides' readers count their seconds, "workers": that share the device, "cores": of
            each, "memory_bytes": that each may use, if that was stated, "decode_device": where JPEG tiles are decoded
            instead of by slides' readers}.
        cache: {"place": folder of the embedding cache or "off", "strict": whether slides are known by all their bytes}.

    Raises:
        ModelError, ConfigError: the run is refused.
    """

    def __init__(
        self,
        model: str,
        out: str,
        read: dict[str, Any],
        tile: dict[str, Any] | None,
        allow_mismatch: bool,
        engine: dict[str, Any],
        machine: dict[str, Any],
        cache: dict[str, Any],
    ) -> None:
        device = machine["device"]
        make_deterministic(machine["threads"])
        self._run = RunFolder(out)
        self._read = ReadSettings(**read)
        self._tile = TileSpec(**tile) if tile else None
        self._allow_mismatch = allow_mismatch
        self._bundle = load_bundle(model)
        self._bundle.classifier.to(device).eval()
        if self._tile and not self._bundle.classifier.takes_tiles:
            raise ConfigError("this model takes features, so there are no tiles to cut: leave --tile-mpp out")
        self._strict = bool(cache["strict"])
        self._cache = open_cache(cache["place"], strict=self._strict) or EmbeddingCache(
            self._run.parts_folder, strict=self._strict, is_transient=True
        )
        settings, _ = tile_settings(self._bundle.settings, self._tile, allow_mismatch=allow_mismatch)
        self._settings_hash = result_hash(settings, self._read)
        self._style = choose_style(self._bundle.classifier, self._read, machine)
        self._engine = SizedEngine(self._bundle.classifier, engine, engine_place(cache["place"]), self._style.batch)
        self._ahead = LookAhead(SlidePreparer(self._bundle.classifier, settings, self._read, self._cache, self._run, self._style))
        self._looks_ahead = bool(machine.get("look_ahead", True)) and self._bundle.classifier.takes_tiles
        self.info = {
            "batch": self._style.batch, "model_hash": self._bundle.hash, "settings_hash": self._settings_hash, "device": device,
            "engine": self._engine.name, "engine_note": self._engine.note,
            "tasks": [t.model_dump(mode="json") for t in settings.tasks], "model_settings": settings.model_dump(mode="json"),
            "takes_tiles": self._bundle.classifier.takes_tiles, "learned_from": self._bundle.extra.get("learned_from", []),
            **worker_facts(device), "made_with": made_with(describe_run()) | {"engine": self._engine.name, "device": device.partition(":")[0]},
        }  # fmt: skip

    def expect(self, payload: dict[str, Any] | None, begun: Callable[[], None]) -> None:
        """Be told which slide will probably come after the one that `work` is called with now."""
        self._ahead.expect(payload if self._looks_ahead else None, begun)

    def work(self, payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Do one slide, or keep what an earlier start finished.

        Args:
            payload: slide_id, patient_id, slide_path, features_path, mpp, mask_path, identity (see `row_identity`),
                retry_failed, evidence ("selected" or "bag"), formats.

        Returns:
            The slide's record; `kept` is True when nothing had to be done.
        """

        def told(stage: str, done: int, total: int) -> None:
            progress(stage, done, total)
            if stage == "tiles":  # its stream runs
                self._ahead.begin()

        started, payload = time.monotonic(), payload | {"stamps": stamps(payload["slide_path"] or "")}
        found = self._identify(payload)
        waited = time.monotonic()
        ready = self._ahead.take(payload)  # after it: a file that changes in between is met as a changed one
        tools = self._tools(ready.clock if ready else StageClock())
        if ready:
            tools.slide, tools.plan, tools.stream, tools.decoding = ready.slide, ready.plan, ready.stream, ready.decoding
        tools.clock.add("open", time.monotonic() - waited)
        try:
            record = self._done_or_kept(payload | {"file": found.slide}, found.facts, told, tools, started)
            return record if "kept" in record or not ready else record | {"stages_ahead": ready.seconds}
        finally:
            if ready is not None:
                ready.close()

    def _done_or_kept(
        self, payload: dict[str, Any], identity: dict[str, Any], progress: Progress, tools: PassTools, started: float
    ) -> dict[str, Any]:
        slide_id = payload["slide_id"]
        if self._run.is_finished(slide_id, identity, retry_failed=payload["retry_failed"]):
            kept = self._run.read_record(slide_id)
            if kept is not None:
                return kept | {"kept": True}
        added = self._added(slide_id, identity)
        folder = self._run.slide_folder(slide_id)
        was_ahead = tools.plan is not None
        done = self._predict(payload | {"finer": read_finer(slide_id, added, folder)}, progress, tools)
        if change := changed(slide_id, payload["slide_path"], payload["stamps"]):
            done, identity = _Done(change, {}, done.seconds), identity | {"file": None}  # the next start does it again
        scan = done.scan
        record = record_of(done.result) | {
            "identity": identity, "batch": self._engine.batch, "seconds": done.seconds | {"total": time.monotonic() - started},
            "peak_bytes": peak_bytes(), "engine": self.info["engine"], "made_with": self.info["made_with"], "n_encoded": scan.n_encoded if scan else 0,
            "was_ahead": was_ahead, "stages": _rounded(tools.clock), "is_cached": bool(scan and scan.is_cached),
            "cache_trouble": self._cache.trouble, "n_retried_reads": tools.n_retried,
        }  # fmt: skip
        if scan and scan.n_encoded:
            record["pace"] = pace_of(self._bundle.classifier, self._read, replace(tools, batch=self._engine.batch), len(scan.grid.coords))
        if done.result.prediction is not None:
            record |= seen_facts(done.result.prediction, done.files)
        with tools.clock.time("write"):
            self._run.write_slide(slide_id, done.files, record, keep=added)
            self._cache.done()
        # what writing took cannot stand in what was written
        return record | {"stages": _rounded(tools.clock), "seconds": record["seconds"] | {"total": time.monotonic() - started}}

    def _added(self, slide_id: str, identity: dict[str, Any]) -> list[str]:
        """Files that later commands added to this very result; whether evidence of the bag is asked for changes none."""

        def of_label(one: dict[str, Any]) -> dict[str, Any]:
            return {k: v for k, v in one.items() if k != "evidence"}

        before = self._run.read_record(slide_id) or {}
        return list(before.get("added", ())) if of_label(before.get("identity", {})) == of_label(identity) else []

    def _identify(self, payload: dict[str, Any]) -> Identity:
        found = identify(payload, self._run.read_record(payload["slide_id"]), strict=self._strict,
                         takes_tiles=self._bundle.classifier.takes_tiles)  # fmt: skip
        if found.known_as:
            self._cache.tell_fingerprint(payload["slide_path"], found.known_as)
        return found

    def _predict(self, payload: dict[str, Any], progress: Progress, tools: PassTools) -> _Done:
        slide_id = payload["slide_id"]
        seconds: dict[str, float] = {}
        try:
            check_stated(payload["slide_path"], payload.get("stated") or {})
            self._engine.use(tools.batch)
            if not self._bundle.classifier.takes_tiles:
                return self._label_features(payload, progress, seconds, tools.clock)
            return self._label_slide(payload, progress, seconds, tools)
        except NoTissueError as error:
            result = SlideResult(slide_id, "no_tissue", error.code, error.message)
            return _Done(result, self._no_tissue_files(payload), seconds)
        except (SlideError, ModelError) as error:
            return _Done(refused(slide_id, error), {}, seconds)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_memory()
            if self._ahead.drop():  # perhaps it was the next slide's memory that was missing
                return self._predict(payload, progress, self._tools(tools.clock, tools.batch))
            if smaller := smaller_batch(error, self._bundle.classifier, tools.batch):
                return self._predict(payload, progress, self._tools(tools.clock, smaller))
            return _Done(SlideResult(slide_id, "failed", *explain_shortage(error, self.info["device"], tools.batch)), {}, seconds)

    def _label_slide(
        self, payload: dict[str, Any], progress: Progress, seconds: dict[str, float], tools: PassTools
    ) -> _Done:
        with timed(seconds, "open"), tools.clock.time("open"):
            slide = tools.slide or open_slide(payload["slide_path"], payload["mpp"], icc=self._bundle.settings.icc)
        with slide, tools:
            refuse_changed(slide.path, payload["stamps"])  # what was hashed is what was opened
            with timed(seconds, "predict"):
                labelled = label_slide(slide, self._bundle, self._job(payload), progress, self._cache, tools)
            with tools.clock.time("write"):
                return _drawn(payload, labelled, slide, progress, seconds)

    def _label_features(
        self, payload: dict[str, Any], progress: Progress, seconds: dict[str, float], clock: StageClock
    ) -> _Done:
        """Label by a file of features; the slide itself serves to draw on, where it can be opened."""
        slide_id, path = payload["slide_id"], payload["features_path"]
        if not path:
            cure = "this model takes features: fill the manifest's column features_path, or exclude the row"
            raise UnreadableSlideError("E_NO_FEATURES", f"{slide_id}: no file of features; {cure}")
        with timed(seconds, "open"), clock.time("open"):
            features = read_feature_file(path, self._read.max_tiles)
            slide, why = slide_behind(features, payload["slide_path"], payload["mpp"], self._bundle.settings.icc)
        with slide or contextlib.nullcontext():
            with timed(seconds, "predict"), clock.time("select"):
                labelled = label_features(features, self._bundle, self._job(payload), slide, progress)
            with clock.time("write"):
                return _drawn(payload, labelled, slide, progress, seconds, why)

    def _tools(self, clock: StageClock, batch: int | None = None) -> PassTools:
        return replace(self._style, clock=clock, batch=batch or self._style.batch)

    def _job(self, payload: dict[str, Any]) -> PredictJob:
        return PredictJob(payload["slide_id"], payload["mask_path"], self._read, self._tile, self._allow_mismatch,
                          with_bag=payload.get("evidence") == "bag", file=payload.get("file"))  # fmt: skip

    def _no_tissue_files(self, payload: dict[str, Any]) -> dict[str, bytes]:
        """A picture that says so; a slide that cannot even be shown goes without."""
        try:
            with open_slide(payload["slide_path"], payload["mpp"], icc=self._bundle.settings.icc) as slide:
                return no_tissue_files(slide, payload["slide_id"])
        except SlideError:
            return {}


class _Done(NamedTuple):
    """What became of a slide."""

    result: SlideResult
    files: dict[str, bytes]
    seconds: dict[str, float]
    scan: Scan | None = None


def _drawn(
    payload: dict[str, Any], labelled: Labelled, slide: Slide | None, progress: Progress, seconds: dict[str, float],
    why_not: str = "",
) -> _Done:  # fmt: skip
    prediction = labelled.prediction
    progress("draw", prediction.n_tiles, prediction.n_tiles)
    with timed(seconds, "draw"):
        result = SlideResult(prediction.slide_id, *verdict(prediction), prediction)
        row = {"slide_id": prediction.slide_id, "patient_id": payload["patient_id"], "status": result.status,
               "reason": result.reason, "message": result.message} | measured_cells(prediction)  # fmt: skip
        options = DrawOptions(tuple(payload.get("formats", DEFAULT_FORMATS)), is_lenient=True)
        drawn = slide_files(slide, prediction, row, options, payload.get("finer")) if slide else undrawn_files(prediction, row, why_not)
        files = {f"{prediction.slide_id}.ledger.h5": ledger_bytes(prediction)} | drawn
    return _Done(result, files, seconds, labelled.scan)


def _rounded(clock: StageClock) -> dict[str, float]:
    return {stage: round(seconds, 6) for stage, seconds in clock.seconds().items()}

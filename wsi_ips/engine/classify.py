"""`classify`: a manifest of slides in; labels, heatmaps and a report out.

The leader reads no pixel: it hands rows to workers, keeps their records and lays the tables out from them. One row of
the manifest is one row of predictions.csv, whatever became of the slide.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_ips.config import ReadSettings, TaskSettings, TileSpec
from wsi_ips.engine.drawoptions import DEFAULT_FORMATS
from wsi_ips.engine.embeddings import cache_place, open_cache
from wsi_ips.engine.environment import (
    allow_open_files,
    available_cores,
    choose_engine,
    default_devices,
    device_sentence,
)
from wsi_ips.engine.executors import Executor, Job, LocalExecutor, Progress, WorkerLimits
from wsi_ips.engine.poison import given_up, record_death
from wsi_ips.engine.profile import RunProfile
from wsi_ips.engine.progress import Reporter
from wsi_ips.engine.provenance import utc_now
from wsi_ips.engine.runfacts import check_mixture, run_facts
from wsi_ips.engine.runtables import RunTables, row_identity
from wsi_ips.engine.slideparts import longest_first, size_of_slide
from wsi_ips.engine.tuning import describe_pace
from wsi_ips.errors import ConfigError
from wsi_ips.manifest import Manifest, SlideRecord
from wsi_ips.model.bundle_config import read_bundle_config
from wsi_ips.runfolder import RunFolder

__all__ = ["ClassifyOptions", "RunSummary", "classify"]


@dataclass(frozen=True)
class ClassifyOptions:
    """How a run is done; none of it changes what a model computes, but for `tile` and, a little, `decode`."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    workers: int = 0  # worker processes; 0 chooses by the machine
    read: ReadSettings = ReadSettings()  # noqa: RUF009 (frozen)
    tile: TileSpec | None = None  # other squares than the model's: refused without allow_mismatch
    allow_mismatch: bool = False
    allow_mixed: bool = False  # go on with a run whose finished slides other versions have made
    retry_failed: bool = False
    formats: tuple[str, ...] = DEFAULT_FORMATS  # of the maps, see engine/formats.py; () draws nothing
    evidence: str = "selected"  # "bag": also of every tile in the whole bag, apart from the label's own
    only: tuple[str, ...] = ()  # slide ids
    limit: int | None = None  # first so many slides
    shard: tuple[int, int] = (1, 1)  # part i of n, by a hash of the slide id
    stall_seconds: float = 600.0
    memory_gb: float | None = None  # resident memory of one worker; None: its part of four fifths of the machine's
    engine: str = "auto"  # what encodes tiles: torch, openvino, module (the model as it learned), or auto
    decode: str = "cpu"  # where JPEG tiles are decoded: gpu changes px by a few grey values, see gpudecode.py
    cache: str | None = None  # folder of the embedding cache, "off", or None for the usual place
    strict: bool = False  # know slides by all their bytes instead of samples
    shows_patients: bool = False  # in pages; tables name them in any case
    profile: bool = False  # the readers' stages, too, and a table at the end
    look_ahead: bool = True  # prepare a worker's next slide while it encodes one
    quiet: bool = False


@dataclass(frozen=True)
class RunSummary:
    """What a run ended with."""

    folder: Path
    counts: dict[str, int]  # by status
    seconds: float
    peak_bytes: int  # largest resident memory of any one worker
    n_tiles: int  # of the slides done by this start
    n_encoded: int = 0  # tiles through the encoder; less than n_tiles where the cache had them
    profile: str = ""  # where the time went, if that was asked for

    @property
    def has_failures(self) -> bool:
        """Tell whether any row failed."""
        return self.counts.get("failed", 0) > 0

    def text(self) -> str:
        """Say in two lines how it went; the profile, if there is one, follows."""
        counts = ", ".join(f"{n} {status}" for status, n in sorted(self.counts.items()))
        return (f"{counts}; {self.n_tiles} tiles ({self.n_encoded} encoded) in {self.seconds:.0f} s; largest worker {self.peak_bytes / 2**30:.2f} GiB\n"
                f"see {self.folder / 'index.html'}" + (f"\n\n{self.profile}" if self.profile else ""))  # fmt: skip


def classify(manifest: Manifest, model: str, out: str | Path, options: ClassifyOptions | None = None) -> RunSummary:
    """Label every slide of a manifest and draw its heatmap; finished slides of an earlier start are kept.

    Args:
        manifest: the slides.
        model: folder of a bundle.
        out: run folder; made when missing.
        options: how.

    Raises:
        ConfigError, ModelError: refused before the first slide.
        StoppedError: the environment gave out; start again to go on.
    """
    options = options or ClassifyOptions()
    started = time.monotonic()
    if options.evidence not in ("selected", "bag"):
        raise ConfigError(f"--evidence {options.evidence}: expected selected or bag")
    if options.decode not in ("cpu", "gpu"):
        raise ConfigError(f"--decode {options.decode}: expected cpu or gpu")
    todo = _chosen(manifest, options)
    allow_open_files()
    read_bundle_config(model)  # a model that is none is refused before a worker loads torch
    open_cache(options.cache)  # so is a size that is none
    with RunFolder(out).start() as run:
        executor = _local_executor(model, run, options)
        try:
            info = executor.ready() | {"shows_patients": options.shows_patients}
            tables = RunTables(run, manifest, tuple(TaskSettings(**t) for t in info["tasks"]), info)
            warnings = check_mixture(run, todo, info, is_allowed=options.allow_mixed)
            facts = run_facts(manifest, model, options, info | {"worker_memory_bytes": executor.memory_bytes}, run.facts())
            run.write_json("run.json", facts)
            run.log("start", manifest=str(manifest.path), model=str(model), slides=len(todo))
            try:
                profile = RunProfile(str(info["device"]))
                done = _work(run, executor, todo, options, info, profile, warnings)
                shutil.rmtree(run.parts_folder, ignore_errors=True)
            finally:
                tables.write()
        finally:
            executor.close()
        seconds = time.monotonic() - started
        counts = Counter(row["status"] for row in tables.rows())
        summary = RunSummary(run.path, dict(counts), seconds, executor.peak_bytes, *done,
                             profile.text() if options.profile else "")  # fmt: skip
        run.log("end", counts=summary.counts, seconds=round(seconds, 1), peak_bytes=executor.peak_bytes)
        end = {"ended": utc_now(), "counts": summary.counts, "warnings": [*facts["warnings"], *warnings]}
        run.write_json("run.json", facts | end)
        return summary


def _chosen(manifest: Manifest, options: ClassifyOptions) -> list[SlideRecord]:
    known = {r.slide_id for r in manifest.records}
    unknown = [name for name in options.only if name not in known]
    if unknown:
        raise ConfigError(f"--only: no slide {', '.join(unknown)} in {Path(manifest.path).name}")
    part, of = options.shard
    if not 1 <= part <= of:
        raise ConfigError(f"--shard {part}/{of}: expected i/n with 1 <= i <= n")
    chosen = [
        r
        for r in manifest.records
        if not r.is_excluded
        and (not options.only or r.slide_id in options.only)
        and int(hashlib.sha256(r.slide_id.encode()).hexdigest(), 16) % of == part - 1
    ]
    return chosen[: options.limit]


def _local_executor(model: str, run: RunFolder, options: ClassifyOptions) -> LocalExecutor:
    devices = default_devices(options.device, options.workers)
    if options.decode == "gpu" and not all(d.startswith("cuda") for d in devices):
        raise ConfigError(f"--decode gpu needs --device cuda; this run is on {devices[0]}")
    engine = choose_engine(options.engine, devices[0], run.facts().get("engine", ""))
    threads = max(1, available_cores() // len(devices))
    setup = {
        "model": str(model), "out": str(run.path), "read": options.read.model_dump(),
        "tile": options.tile.model_dump() if options.tile else None, "allow_mismatch": options.allow_mismatch,
        "engine": {"name": engine, "or_torch": options.engine == "auto"},
        "cache": {"place": str(cache_place(options.cache) or "off"), "strict": options.strict},
    }  # fmt: skip
    memory_bytes = int(options.memory_gb * 2**30) if options.memory_gb else None
    machine = {"threads": threads, "look_ahead": options.look_ahead, "profile": options.profile, "cores": threads,
               "memory_bytes": memory_bytes}  # fmt: skip
    setups = [
        setup | {"machine": machine | {"device": d, "workers": devices.count(d), "decode_device": d if options.decode == "gpu" else None}}
        for d in devices
    ]
    limits = WorkerLimits(options.stall_seconds, memory_bytes)
    return LocalExecutor("wsi_ips.engine.worker:SlideWorker", setups, limits)


def _work(
    run: RunFolder, executor: Executor, todo: Sequence[SlideRecord], options: ClassifyOptions, info: Mapping[str, Any],
    profile: RunProfile, warnings: list[str],
) -> tuple[int, int]:  # fmt: skip
    """Do the slides; return how many tiles they have, and how many went through the encoder. Adds to the warnings."""
    more = {} if options.evidence == "selected" else {"evidence": options.evidence}
    more |= {} if options.decode == "cpu" else {"decode": options.decode}
    identities = {r.slide_id: row_identity(r, info) | more for r in todo}
    paths = {r.slide_id: r.slide_path if info["takes_tiles"] else r.features_path for r in todo}
    sizes = [size_of_slide(path) for path in paths.values()]
    left = {} if options.retry_failed else {i: found for i, p in paths.items() if (found := given_up(run, i, identities[i], p))}
    jobs = [Job(r.slide_id, _payload(r, identities[r.slide_id], options)) for r in longest_first(todo, sizes) if r.slide_id not in left]
    n_tiles = n_encoded = 0
    early, warnings[:] = [info["engine_note"], *warnings], []
    paces: set[tuple[Any, ...]] = set()
    with Reporter("slides", len(todo), quiet=options.quiet) as reporter:
        if chosen := device_sentence(options.device, [str(info["device"])]):
            run.log("device", message=chosen)
            reporter.line(chosen)
        for slide_id, record in left.items():
            reporter.slide(slide_id, _say(record))
        for text in early:
            _warn_once(run, reporter, text, warnings)

        def on_progress(p: Progress) -> None:
            reporter.tiles(p.id, p.done, p.total)

        for outcome in executor.run(jobs, on_progress):
            record = outcome.result or record_death(run, outcome, identities[outcome.id], paths[outcome.id])
            profile.add(record)
            if not record.get("kept"):
                n_tiles += int(record["cells"].get("n_tiles") or 0)
                n_encoded += int(record.get("n_encoded", 0))
                _tell_pace(run, reporter, record.get("pace"), paces)
                _warn_once(run, reporter, record.get("cache_trouble", ""), warnings)
            run.log("slide", slide_id=outcome.id, status=record["status"], reason=record["reason"], attempts=outcome.attempts,
                    seconds=record.get("seconds", {}), n_encoded=record.get("n_encoded", 0),
                    is_cached=record.get("is_cached", False), stages=record.get("stages", {}))  # fmt: skip
            if outcome.noise:
                run.log("stderr", slide_id=outcome.id, text=outcome.noise)
            reporter.slide(outcome.id, _say(record))
    return n_tiles, n_encoded


def _tell_pace(run: RunFolder, reporter: Reporter, pace: dict[str, Any] | None, said: set[tuple[Any, ...]]) -> None:
    """Say how slides are read and encoded, once, and again when that changes."""
    if pace and (key := (pace["readers"], pace["batch"], pace.get("decoder"))) not in said:
        said.add(key)
        run.log("pace", **pace)
        reporter.line(describe_pace(pace))


def _warn_once(run: RunFolder, reporter: Reporter, text: str, said: list[str]) -> None:
    if text and text not in said:
        said.append(text)
        run.log("warning", message=text)
        reporter.line(text)


def _payload(record: SlideRecord, identity: Mapping[str, str], options: ClassifyOptions) -> dict[str, Any]:
    return {
        "slide_id": record.slide_id,
        "slide_path": record.slide_path,
        "features_path": record.features_path,
        "mpp": record.mpp,
        "mask_path": record.mask_path,
        "patient_id": record.patient_id if options.shows_patients else "",
        "stated": record.stated,
        "identity": dict(identity),
        "retry_failed": options.retry_failed,
        "formats": list(options.formats),
        "evidence": options.evidence,
    }


def _say(record: Mapping[str, Any]) -> str:
    cells = record["cells"]
    if record["status"] in ("ok", "ok_with_warnings"):
        probs = ", ".join(f"{k.removeprefix('prob_')} {float(v):.3f}" for k, v in cells.items() if "prob_" in k)
        kept = " (kept)" if record.get("kept") else ""
        return f"{record['status']}{kept}  {probs}  {cells['n_tiles']} tiles" + (
            f"  {record['reason']}" if record["reason"] else ""
        )
    return f"{record['status']}  {record['reason']}: {record['message']}"

"""Look before the run: what a slide says of itself, and what a manifest would cost.

`plan` opens every slide in supervised workers like `classify` does, finds tissue and tiles and times a few reads; it
encodes nothing. No torch is loaded unless a model is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsi_ips.config import ModelSettings, ReadSettings, load_settings
from wsi_ips.engine.environment import available_cores
from wsi_ips.engine.executors import Job, LocalExecutor, WorkerLimits
from wsi_ips.engine.progress import Reporter
from wsi_ips.errors import NoTissueError, SlideError
from wsi_ips.manifest import Manifest
from wsi_ips.minimums import refuse_too_old
from wsi_ips.slide.reader import open_slide
from wsi_ips.slide.stated import check_stated
from wsi_ips.tiles.grid import TileGrid, plan_tiles
from wsi_ips.tiles.regions import restrict_tissue
from wsi_ips.tiles.stream import stream_tiles
from wsi_ips.tiles.tissue import find_tissue

__all__ = ["PlanWorker", "SlidePlanRow", "inspect_slide", "plan_manifest", "total_line"]

_PROBE_TILES = 32


class SlidePlanRow(NamedTuple):
    """What is to be expected of one slide."""

    slide_id: str
    status: str  # ok, ok_with_warnings, no_tissue, failed
    reason: str
    message: str
    cells: dict[str, str]  # reader, size, mpp, mpp_source, tissue_mm2, n_tiles
    read_seconds: float  # all tiles, one reader


class PlanWorker:
    """Plans slides in a child process.

    Args:
        settings: ModelSettings as a mapping.
        read: ReadSettings as a mapping.
    """

    def __init__(self, settings: dict[str, Any], read: dict[str, Any]) -> None:
        self._settings = load_settings(ModelSettings, settings)
        self._read = ReadSettings(**read)
        self.info: dict[str, Any] = {}

    def work(self, payload: dict[str, Any], progress: Callable[[str, int, int], None]) -> dict[str, Any]:
        """Plan one slide; what is wrong with it becomes status and reason."""
        s, cells, notes = self._settings, {}, []
        try:
            check_stated(payload["slide_path"], payload["stated"], read_all=False)
            with open_slide(payload["slide_path"], payload["mpp"], icc=s.icc) as slide:
                width0, height0, _ = slide.levels[0]
                cells = {"reader": slide.reader, "size": f"{width0} x {height0}", "levels": str(len(slide.levels)),
                         "mpp": f"{slide.mpp.x:.4g}", "mpp_source": slide.mpp.source}  # fmt: skip
                tissue = find_tissue(slide, s.tissue)
                if payload["mask_path"]:
                    tissue = restrict_tissue(tissue, slide, payload["mask_path"])
                cells["tissue_mm2"] = f"{tissue.tissue_mm2:.3f}"
                grid = plan_tiles(slide, tissue, s.tile, min_fraction=s.tissue.min_tile_fraction,
                                  min_focus=s.tissue.min_focus, max_tiles=self._read.max_tiles)  # fmt: skip
                cells["n_tiles"] = str(len(grid.coords))
                notes = [*slide.notes, *tissue.notes, *grid.notes]
                seconds = _probe_reading(slide, grid)
        except SlideError as error:
            status = "no_tissue" if isinstance(error, NoTissueError) else "failed"
            return _row(status, error.code, error.message, cells)
        return _row("ok_with_warnings" if notes else "ok", ";".join(dict.fromkeys(n.code for n in notes)),
                    " ".join(n.message for n in notes), cells, seconds)  # fmt: skip


def _row(
    status: str, reason: str, message: str, cells: dict[str, str] | None = None, read_seconds: float = 0.0
) -> dict[str, Any]:
    return {"status": status, "reason": reason, "message": message, "cells": cells or {}, "read_seconds": read_seconds}


def plan_manifest(
    manifest: Manifest, settings: ModelSettings, read: ReadSettings, *, quiet: bool = False
) -> list[SlidePlanRow]:
    """Plan every slide of a manifest.

    Returns:
        One row a record, in the manifest's order; excluded rows are left out.
    """
    records = [r for r in manifest.records if not r.is_excluded]
    jobs = [Job(r.slide_id, {"slide_path": r.slide_path, "mpp": r.mpp, "mask_path": r.mask_path, "stated": r.stated}) for r in records]
    setup = {"settings": settings.model_dump(mode="json"), "read": read.model_dump()}
    n_workers = max(1, min(available_cores(), len(jobs)))
    executor = LocalExecutor("wsi_ips.engine.plan:PlanWorker", [setup] * n_workers, WorkerLimits(stall_seconds=300.0))
    found: dict[str, SlidePlanRow] = {}
    try:
        executor.ready()
        with Reporter("slides", len(jobs), quiet=quiet) as reporter:
            for outcome in executor.run(jobs, lambda _: None):
                r = outcome.result or _row("failed", outcome.code, outcome.message)
                found[outcome.id] = SlidePlanRow(outcome.id, **r)
                if outcome.result is None and outcome.noise:  # there is no log that could keep it
                    reporter.line(outcome.noise)
                reporter.slide(outcome.id, r["status"] + (f"  {r['reason']}: {r['message']}" if r["reason"] else ""))
    finally:
        executor.close()
    return [found[r.slide_id] for r in records]


def inspect_slide(path: str | Path, mpp: float | None, settings: ModelSettings) -> list[tuple[str, str]]:
    """Say what a slide's file holds, as (name, value) lines; what cannot be used is a line, too.

    Raises:
        UnreadableSlideError, MppError: the file cannot be opened as a slide.
        ConfigError: libraries with known faults.
    """
    refuse_too_old()
    with open_slide(str(path), mpp, icc=settings.icc) as slide:
        b = slide.bounds
        lines = [("slide", slide.name), ("reader", slide.reader),
                 ("mpp", f"{slide.mpp.x:.5g} x {slide.mpp.y:.5g} µm per level-0 px, from {slide.mpp.source}"),
                 ("scanned", f"{b.width0} x {b.height0} px at ({b.x0}, {b.y0})")]  # fmt: skip
        lines += [(f"level {i}", f"{v.width} x {v.height} px, downsample {v.downsample:.5g}, {slide.mpp.x * v.downsample:.4g} µm/px")
                  for i, v in enumerate(slide.levels)]  # fmt: skip
        lines += sorted(slide.properties.items())
        lines += [(note.code, note.message) for note in slide.notes]
        try:
            tissue = find_tissue(slide, settings.tissue)
            lines.append(
                ("tissue", f"{tissue.tissue_mm2:.3f} mm², {100 * tissue.mask.mean():.1f} % of the scanned area")
            )
            lines += [(note.code, note.message) for note in tissue.notes]
            grid = plan_tiles(slide, tissue, settings.tile, min_fraction=settings.tissue.min_tile_fraction,
                              min_focus=settings.tissue.min_focus, max_tiles=ReadSettings().max_tiles)  # fmt: skip
            t = settings.tile
            lines.append(
                ("tiles", f"{len(grid.coords)} of {t.size_px} px at {t.mpp} µm/px, read from level {grid.level}"
                          + (f", decoded at 1/{grid.shrink}" if grid.shrink > 1 else ""))
            )
            lines += [(note.code, note.message) for note in grid.notes]
        except SlideError as error:
            lines.append((error.code, error.message))
    return lines


def total_line(rows: Sequence[SlidePlanRow]) -> str:
    """Sum a plan up in one line."""
    n_tiles = sum(int(r.cells.get("n_tiles") or 0) for r in rows)
    n_bad = sum(r.status == "failed" for r in rows)
    minutes = sum(r.read_seconds for r in rows) / 60.0
    ledger_gb = sum(int(r.cells.get("n_tiles") or 0) for r in rows) * 56 / 1e9  # 8 heads, one task: 4 T H + 24 bytes
    gigabytes = ledger_gb + 0.004 * sum(
        r.status.startswith("ok") for r in rows
    )  # pictures and page: about 4 MB a slide
    return (f"{len(rows)} slides, {n_bad} cannot be used, {n_tiles} tiles; reading about {minutes:.1f} min with one reader, "
            f"results about {gigabytes:.2f} GB")  # fmt: skip


def _probe_reading(slide: Any, grid: TileGrid) -> float:
    """Estimate the seconds for all tiles from a few, spread over the slide."""
    n = len(grid.coords)
    rows = np.unique(np.linspace(0, n - 1, min(n, _PROBE_TILES)).astype(np.int64))
    started = time.monotonic()
    for _ in stream_tiles(slide, grid, rows=rows, chunk_size=len(rows), n_readers=1):
        pass
    return (time.monotonic() - started) * n / len(rows)

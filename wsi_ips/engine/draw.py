"""Draws a slide's pictures and page from its prediction: at the end of its pass, or later from its ledger.

No model and no torch are needed, so `wsi-ips heatmap RUN` works on any machine that has the run and the slides.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, cast

import wsi_ips
from wsi_ips.engine.executors import Job, LocalExecutor, WorkerLimits
from wsi_ips.engine.progress import Reporter
from wsi_ips.errors import ConfigError, SlideError
from wsi_ips.report.heatmap import Scale
from wsi_ips.report.overlay import evidence_png, no_tissue_png, overlay_png, thumbnail_jpeg
from wsi_ips.report.slide_page import report_html
from wsi_ips.report.tiles_strip import top_tiles, top_tiles_strip_png
from wsi_ips.results import SlidePrediction, read_ledger
from wsi_ips.runfolder import RunFolder
from wsi_ips.slide.metadata import STRICT_METHOD, fingerprint
from wsi_ips.slide.reader import Slide, open_slide
from wsi_ips.slidefiles import safe_id

__all__ = ["DrawWorker", "Redrawn", "no_tissue_files", "redraw_run", "slide_files", "undrawn_files"]

_N_TOP_TILES = 16


class Redrawn(NamedTuple):
    """What `redraw_run` did."""

    drawn: int
    failed: int


def slide_files(
    slide: Slide,
    prediction: SlidePrediction,
    row: dict[str, str],
    *,
    scale: Scale = "uniform",
    with_evidence: bool = False,
) -> dict[str, bytes]:
    """Draw everything people see of one slide.

    Args:
        slide: open.
        prediction: what the pass found.
        row: the slide's cells of predictions.csv.
        scale: of the attention map.
        with_evidence: draw the evidence map, too.

    Returns:
        Content by file name, relative to the slide's folder.
    """
    name = prediction.slide_id
    tiles = top_tiles(slide, prediction, _N_TOP_TILES)
    overlay = overlay_png(slide, prediction, scale=scale)
    files = {
        f"{name}.overlay.png": overlay,
        f"{name}.thumbnail.jpg": thumbnail_jpeg(overlay),
        f"{name}.top_tiles.png": top_tiles_strip_png(prediction, tiles),
    }
    for task in range(1, len(prediction.tasks)):
        files[f"{name}.overlay.{safe_id(prediction.tasks[task].name)[:40]}.png"] = overlay_png(
            slide, prediction, task, scale=scale
        )
    if with_evidence:
        files[f"{name}.evidence.png"] = evidence_png(slide, prediction)
    paths = {t.rank: f"{name}.top_tiles/{t.rank:02d}_row{t.row}.png" for t in tiles if t.png}
    files |= {paths[t.rank]: t.png for t in tiles if t.png}
    page = report_html(
        row,
        prediction.tasks,
        prediction=prediction,
        tiles=tiles,
        tile_paths=[paths.get(t.rank, "") for t in tiles],
        overlay=f"{name}.overlay.png",
        facts=[("wsi-ips", wsi_ips.__version__)],
    )
    return files | {f"{name}.report.html": page}


def undrawn_files(prediction: SlidePrediction, row: dict[str, str], why: str) -> dict[str, bytes]:
    """Make the page of a slide that was labelled from features and cannot be drawn, and say why there is no picture."""
    facts = [("labelled from", f"{prediction.n_tiles} features"), ("no picture", why), ("wsi-ips", wsi_ips.__version__)]
    return {f"{prediction.slide_id}.report.html": report_html(row, prediction.tasks, facts=facts)}


def no_tissue_files(slide: Slide, slide_id: str) -> dict[str, bytes]:
    """Draw a slide without tissue, and say so on the picture."""
    overlay = no_tissue_png(slide, slide_id)
    return {f"{slide_id}.overlay.png": overlay, f"{slide_id}.thumbnail.jpg": thumbnail_jpeg(overlay)}


def redraw_run(
    run: str | Path,
    *,
    scale: str = "uniform",
    with_evidence: bool = False,
    only: tuple[str, ...] = (),
    slide_root: Path | None = None,
) -> Redrawn:
    """Draw the overlays of a finished run again.

    Args:
        run: run folder.
        scale: uniform or percentile.
        with_evidence: draw `<slide_id>.evidence.png`, too.
        only: slide ids; empty means all.
        slide_root: folder that holds the slides now; by default they lie where they lay.

    Raises:
        ConfigError: no run folder, an unknown scale or slide.
    """
    if scale not in ("uniform", "percentile"):
        raise ConfigError(f"--scale {scale}: expected uniform or percentile")
    folder = RunFolder(run)
    facts = folder.read_json("run.json")
    unknown = [name for name in only if name not in facts["slides"]]
    if unknown:
        raise ConfigError(f"--only: no slide {', '.join(unknown)} in this run")
    jobs = []
    for slide_id, source in facts["slides"].items():
        record = folder.read_record(slide_id)
        if record and record["status"] in ("ok", "ok_with_warnings") and (not only or slide_id in only):
            path = str(slide_root / Path(source["path"]).name) if slide_root and source["path"] else source["path"]
            payload = {"slide_id": slide_id, "slide_path": path} | {k: source[k] for k in ("mpp", "patient_id")}
            jobs.append(Job(slide_id, payload))
    icc = facts["model"]["model_settings"]["icc"]
    setup = {"run": str(folder.path), "scale": scale, "with_evidence": with_evidence, "icc": icc}
    executor = LocalExecutor("wsi_ips.engine.draw:DrawWorker", [setup], WorkerLimits())
    failed = 0
    with folder.start():
        try:
            executor.ready()
            with Reporter("drawing", len(jobs)) as reporter:
                for outcome in executor.run(jobs, lambda _: None):
                    text = outcome.result["message"] if outcome.result else f"{outcome.code}: {outcome.message}"
                    failed += bool(text)
                    reporter.slide(outcome.id, text or "drawn")
        finally:
            executor.close()
    return Redrawn(len(jobs) - failed, failed)


class DrawWorker:
    """Redraws slides in a child process: decoders may crash here, too."""

    def __init__(self, run: str, scale: str, with_evidence: bool, icc: str) -> None:
        self._run, self._scale, self._icc, self._with_evidence = RunFolder(run), cast(Scale, scale), icc, with_evidence
        self.info: dict[str, object] = {}

    def work(self, payload: dict[str, object], progress: object) -> dict[str, str]:
        """Draw one slide from its ledger; `message` is empty when that went well."""
        slide_id = str(payload["slide_id"])
        folder = self._run.slide_folder(slide_id)
        record = self._run.read_record(slide_id)
        ledger = folder / f"{slide_id}.ledger.h5"
        identity = (record or {}).get("identity", {})
        known = identity.get("slide", identity.get("file")) or {}  # "slide": labelled from a file of features
        try:
            prediction = read_ledger(ledger)
            if "slide" in identity and prediction.size0 == (0, 0):
                return {
                    "message": f"{slide_id} was labelled from features, without places on a slide: nothing to draw on"
                }
            path, mpp = str(payload["slide_path"]), cast("float | None", payload["mpp"])
            with open_slide(path, mpp, icc=self._icc) as slide:  # type: ignore[arg-type]
                if fingerprint(path, strict=known.get("method") == STRICT_METHOD) != known:
                    return {"message": f"{slide.name} is not the file that was classified; classify it again"}
                cells = {k: str((record or {}).get(k, "")) for k in ("status", "reason", "message")}
                row = {"slide_id": slide_id, "patient_id": str(payload["patient_id"]), **cells,
                       **(record or {}).get("cells", {})}  # fmt: skip
                files = slide_files(slide, prediction, row, scale=self._scale, with_evidence=self._with_evidence)
        except (SlideError, ConfigError, OSError) as error:
            return {"message": str(error)}
        kept = {k: v for k, v in (record or {}).items() if k not in ("outputs", "schema_version", "slide_id")}
        self._run.write_slide(slide_id, {ledger.name: ledger.read_bytes(), **files}, kept)
        return {"message": ""}

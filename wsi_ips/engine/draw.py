"""Draws a slide's pictures and page from its prediction: at the end of its pass, or later from its ledger.

No model and no torch are needed, so `wsi-ips heatmap RUN` works on any machine that has the run and the slides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import wsi_ips
from wsi_ips.engine.drawoptions import DrawOptions
from wsi_ips.engine.executors import Job, LocalExecutor, WorkerLimits
from wsi_ips.engine.formats import format_files, main_maps, still_said
from wsi_ips.engine.progress import Reporter
from wsi_ips.engine.runpages import rewrite_pages, seen_facts
from wsi_ips.errors import ConfigError, SlideError
from wsi_ips.report.finer import Finer, read_finer
from wsi_ips.report.map_switch import draw_layers
from wsi_ips.report.maps import tile_map
from wsi_ips.report.overlay import map_sheet, no_tissue_sheet, read_ground, thumbnail_jpeg
from wsi_ips.report.picture import png_bytes
from wsi_ips.report.provenance import provenance_text
from wsi_ips.report.slide_page import SlideView, report_html
from wsi_ips.report.tiles_strip import tiles_against, top_tiles, top_tiles_strip_png
from wsi_ips.results import SlidePrediction, ledger_bytes, read_ledger
from wsi_ips.runfolder import RunFolder
from wsi_ips.slide.metadata import STRICT_METHOD, fingerprint
from wsi_ips.slide.reader import Slide, open_slide

__all__ = ["DrawWorker", "Redrawn", "classified_slide", "no_tissue_files", "redraw_run", "redraw_slide", "slide_files", "slide_jobs",
           "undrawn_files"]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")
_N_TOP_TILES = 16
_MANY_TILES = 50_000  # whose maps are drawn one after another: memory must not grow with the slide


class _InTurn(Executor):
    """Does at once, here, what it is given."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        done: Future[R] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Redrawn(NamedTuple):
    """What `redraw_run` did."""

    drawn: int
    failed: int


def slide_files(
    slide: Slide,
    prediction: SlidePrediction,
    row: dict[str, str],
    options: DrawOptions | None = None,
    finer: Finer | None = None,
) -> dict[str, bytes]:
    """Draw everything people see of one slide, and write its maps for other tools.

    Args:
        slide: open.
        prediction: what the pass found.
        row: the slide's cells of predictions.csv.
        options: formats, scale and the like.
        finer: what `heatmap --refine` and `--stability` have found, for the page.

    Returns:
        Content by file name, relative to the slide's folder.

    Raises:
        ConfigError: evidence of the whole bag was asked for and is not in the ledger; a format this slide cannot have.
    """
    options = options or DrawOptions()
    if options.needs_bag and prediction.bag_evidence is None:
        raise ConfigError(
            f"{prediction.slide_id}: its ledger holds no evidence of the whole bag; classify again with --evidence bag"
        )
    is_large = prediction.n_tiles > _MANY_TILES
    with _InTurn() if is_large else ThreadPoolExecutor(1, "draw") as beside:  # text (matplotlib) stays in this thread
        formats = beside.submit(format_files, slide, prediction, options)
        files = _pictures(slide, prediction, row, options, finer or Finer(), beside) if "png" in options.formats else {}
        return files | formats.result()


def _pictures(
    slide: Slide, p: SlidePrediction, row: dict[str, str], options: DrawOptions, finer: Finer, beside: Executor
) -> dict[str, bytes]:
    """Draw overlays, tile strip, tiles and page; what holds no text in the other thread."""
    name, ground = p.slide_id, read_ground(slide, p.bounds)
    drawn = beside.submit(draw_layers, ground, p, options.scale)
    files = {}
    for info, stem in main_maps(p):
        file = f"{name}.{'overlay' + stem.removeprefix('attention') if info.kind == 'attention' else stem}.png"
        sheet = map_sheet(ground, p, tile_map(p, info, options.scale), smooth=options.smooth)
        files[file] = png_bytes(sheet, about=provenance_text(p))
        if file == f"{name}.overlay.png":
            files[f"{name}.thumbnail.jpg"] = thumbnail_jpeg(sheet)
    tiles = top_tiles(slide, p, _N_TOP_TILES)
    against = [tiles_against(slide, p, t) for t in range(len(p.tasks))]
    files[f"{name}.top_tiles.png"] = top_tiles_strip_png(p, tiles)
    paths = {}
    for tile in (*tiles, *(one for some in against for one in some)):
        if tile.png:
            paths[tile.row] = f"{name}.top_tiles/{tile.rank:02d}_row{tile.row}.png"
            files[paths[tile.row]] = tile.png
    layers = drawn.result()
    view = SlideView(p, tiles, against, paths, f"{name}.overlay.png", layers, finer)
    facts = [("wsi-ips", wsi_ips.__version__)]
    return files | layers.files | {f"{name}.report.html": report_html(row, p.tasks, view=view, facts=facts)}


def undrawn_files(prediction: SlidePrediction, row: dict[str, str], why: str) -> dict[str, bytes]:
    """Make the page of a slide that was labelled from features and cannot be drawn, and say why there is no picture."""
    facts = [("labelled from", f"{prediction.n_tiles} features"), ("no picture", why), ("wsi-ips", wsi_ips.__version__)]
    return {f"{prediction.slide_id}.report.html": report_html(row, prediction.tasks, facts=facts)}


def no_tissue_files(slide: Slide, slide_id: str) -> dict[str, bytes]:
    """Draw a slide without tissue, and say so on the picture."""
    sheet = no_tissue_sheet(slide, slide_id)
    return {f"{slide_id}.overlay.png": png_bytes(sheet), f"{slide_id}.thumbnail.jpg": thumbnail_jpeg(sheet)}


def redraw_run(
    run: str | Path,
    *,
    options: DrawOptions | None = None,
    only: tuple[str, ...] = (),
    slide_root: Path | None = None,
    model: str | Path | None = None,
) -> Redrawn:
    """Draw the slides of a finished run again, and write their maps in further formats; other files stay.

    Args:
        run: run folder.
        options: formats, scale and the like.
        only: slide ids; empty means all.
        slide_root: folder that holds the slides now; by default they lie where they lay.
        model: the run's bundle, to measure faithfulness in a run of a version that did not; else it is not needed.

    Raises:
        ConfigError: no run folder, an unknown slide, another model than the run's.
    """
    options, folder = options or DrawOptions(), RunFolder(run)
    facts = folder.read_json("run.json")
    jobs = slide_jobs(folder, facts, only, slide_root)
    setup = {"run": str(folder.path), "options": options, "icc": facts["model"]["model_settings"]["icc"],
             "model": str(model) if model else None}  # fmt: skip
    executor = LocalExecutor("wsi_ips.engine.draw:DrawWorker", [setup], WorkerLimits())
    failed = 0
    with folder.start():
        try:
            executor.ready()
            with Reporter("drawing", len(jobs)) as reporter:
                for outcome in executor.run(jobs, lambda _: None):
                    text = outcome.result["message"] if outcome.result else f"{outcome.code}: {outcome.message}"
                    failed += bool(text)
                    if outcome.noise:
                        folder.log("stderr", slide_id=outcome.id, text=outcome.noise)
                    reporter.slide(outcome.id, text or "drawn")
        finally:
            executor.close()
        rewrite_pages(folder, facts)
    return Redrawn(len(jobs) - failed, failed)


def slide_jobs(
    folder: RunFolder, facts: dict[str, Any], only: tuple[str, ...], slide_root: Path | None = None
) -> list[Job]:
    """Make a job of every slide of a run that has a label.

    Raises:
        ConfigError: `only` names a slide that is not in the run, or has no label.
    """
    if not isinstance(facts.get("slides"), dict):
        raise ConfigError(f"{folder.path}: its run.json names no slides; give the run folder of classify")
    unknown = [name for name in only if name not in facts["slides"]]
    if unknown:
        raise ConfigError(f"--only: no slide {', '.join(unknown)} in this run")
    records = {name: folder.read_record(name) for name in facts["slides"] if not only or name in only}
    labelled = {name for name, record in records.items() if record and record["status"] in ("ok", "ok_with_warnings")}
    if bare := [name for name in only if name not in labelled]:
        raise ConfigError(f"--only: no label of {', '.join(bare)} in this run, so there is nothing to draw; see predictions.csv")
    jobs = []
    for slide_id, source in facts["slides"].items():
        if slide_id in labelled:
            path = str(slide_root / Path(source["path"]).name) if slide_root and source["path"] else source["path"]
            payload = {"slide_id": slide_id, "slide_path": path} | {"mpp": source["mpp"]}
            payload["patient_id"] = source["patient_id"] if facts["model"].get("shows_patients") else ""
            jobs.append(Job(slide_id, payload))
    return jobs


class DrawWorker:
    """Redraws slides in a child process: decoders may crash here, too."""

    def __init__(self, run: str, options: DrawOptions, icc: str, model: str | None) -> None:
        self._run, self._options, self._icc = RunFolder(run), options, icc
        self._measure = None
        if model:
            from wsi_ips.engine.measuring import FaithfulnessMeter  # loads torch

            self._measure = FaithfulnessMeter(model)
        self.info: dict[str, object] = {}

    def work(self, payload: dict[str, object], progress: object) -> dict[str, str]:
        """Draw one slide from its ledger; `message` is empty when that went well."""
        slide_id = str(payload["slide_id"])
        ledger = self._run.slide_folder(slide_id) / f"{slide_id}.ledger.h5"
        record = self._run.read_record(slide_id) or {}
        files: dict[str, bytes] = {}
        try:
            prediction = read_ledger(ledger)
            if self._measure and prediction.faithfulness is None:
                prediction = self._measure(prediction)
                files[ledger.name] = ledger_bytes(prediction)
            with classified_slide(payload, record, prediction, self._icc) as slide:
                if files:
                    self._run.add_files(slide_id, files)
                for options in self._options.one_by_one():  # what one format cannot do costs no other
                    redraw_slide(self._run, slide, prediction, str(payload["patient_id"]), options)
        except (SlideError, ConfigError, OSError) as error:
            return {"message": str(error)}
        return {"message": ""}


def redraw_slide(
    run: RunFolder, slide: Slide, prediction: SlidePrediction, patient_id: str, options: DrawOptions
) -> None:
    """Draw a slide of a run again, with all that is known of it by now, and add the files to the others."""
    slide_id = prediction.slide_id
    record = run.read_record(slide_id) or {}
    cells = {k: str(record.get(k, "")) for k in ("status", "reason", "message")}
    row = {"slide_id": slide_id, "patient_id": patient_id, **cells, **record.get("cells", {})}
    outputs, folder = record.get("outputs", {}), run.slide_folder(slide_id)
    files = slide_files(slide, prediction, row, options, read_finer(slide_id, outputs, folder))
    about = f"{slide_id}.maps.json"
    if about in files:
        files[about] = still_said(folder / about, files[about], options.formats)
    run.add_files(slide_id, files, facts=seen_facts(prediction, files) if "png" in options.formats else None)


def classified_slide(
    payload: Mapping[str, object], record: Mapping[str, Any], prediction: SlidePrediction, icc: str
) -> Slide:
    """Open the slide that a prediction was made from.

    Raises:
        ConfigError: there is none (features without places), or the file is another one now.
        SlideError: it cannot be opened.
    """
    identity = record.get("identity", {})
    known = identity.get("slide", identity.get("file")) or {}  # "slide": labelled from a file of features
    if "slide" in identity and prediction.size0 == (0, 0):
        raise ConfigError(
            f"{prediction.slide_id} was labelled from features, without places on a slide: nothing to draw on"
        )
    path = str(payload["slide_path"])
    slide = open_slide(path, cast("float | None", payload["mpp"]), icc=icc)  # type: ignore[arg-type]
    if fingerprint(path, strict=known.get("method") == STRICT_METHOD) != known:
        slide.close()
        raise ConfigError(f"{slide.name} is not the file that was classified; classify it again")
    return slide

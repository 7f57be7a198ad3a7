"""`heatmap --refine` and `--stability`: finer maps and stability of a finished run's slides, added to their files.

The model and the slides are needed again; labels and ledgers stay untouched. As everywhere, slides are opened in child
processes, and what is wrong with one is its own line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wsi_ips.engine.draw import classified_slide, redraw_slide, slide_jobs
from wsi_ips.engine.drawoptions import DrawOptions
from wsi_ips.engine.embeddings import engine_place
from wsi_ips.engine.environment import available_cores, choose_engine, default_devices
from wsi_ips.engine.executors import LocalExecutor, Progress, WorkerLimits
from wsi_ips.engine.progress import Reporter
from wsi_ips.errors import ConfigError, ModelError, SlideError
from wsi_ips.refined import fine_bytes, stability_bytes
from wsi_ips.report.fine import is_refined_file, refined_files
from wsi_ips.report.stability import stability_sentences
from wsi_ips.results import SlidePrediction, read_ledger
from wsi_ips.runfolder import RunFolder
from wsi_ips.slide.reader import Slide

__all__ = ["RefineRunOptions", "RefineWorker", "RefinedRun", "refine_run"]


@dataclass(frozen=True)
class RefineRunOptions:
    """What is made, and of which slides."""

    refine: bool = True  # fine attention and maps within top tiles
    stride: float = 0.5  # of the fine grid, in tile widths
    stability: str = ""  # "shift", "stain" (shift and stain), or "" for none
    only: tuple[str, ...] = ()  # slide ids; empty means all
    slide_root: Path | None = None  # folder that holds the slides now; by default they lie where they lay
    device: str = "auto"
    draw: DrawOptions = DrawOptions(("png",))  # noqa: RUF009 (frozen); what is drawn again, with what was found
    quiet: bool = False


class RefinedRun(NamedTuple):
    """What `refine_run` did."""

    done: int
    failed: int


def refine_run(run: str | Path, bundle: str | Path, options: RefineRunOptions | None = None) -> RefinedRun:
    """Make finer maps, or measure the stability, of a finished run's slides.

    Args:
        run: run folder.
        bundle: the run's own model (folder).
        options: what, and of which slides.

    Raises:
        ConfigError: no run folder, an unknown slide or word, a stride out of range.
        ModelError: no bundle, or another than the run's.
    """
    options = options or RefineRunOptions()
    if options.stability not in ("", "shift", "stain"):
        raise ConfigError(f"--stability {options.stability}: expected shift or stain")
    if not 0.125 <= options.stride <= 1.0:
        raise ConfigError(f"--stride {options.stride:g}: expected 0.125 to 1, in tile widths")
    folder = RunFolder(run)
    facts = folder.read_json("run.json")
    devices = default_devices(options.device, 0)
    engine = {"name": choose_engine("auto", devices[0], facts.get("engine", "")), "threads": max(1, available_cores() // len(devices)),
              "or_torch": True}  # fmt: skip
    setup = {"run": str(folder.path), "model": str(bundle), "refine": options.refine, "stride": options.stride,
             "stability_of": options.stability, "draw": options.draw, "engine": engine}  # fmt: skip
    executor = LocalExecutor("wsi_ips.engine.refining:RefineWorker", [setup | {"device": d} for d in devices], WorkerLimits())
    jobs, failed = slide_jobs(folder, facts, options.only, options.slide_root), 0
    with folder.start():
        try:
            wanted, found = facts["model"]["model_hash"], executor.ready()["model_hash"]
            if wanted != found:
                raise ModelError(f"the run was made by model {wanted[:12]}, --model is {found[:12]}; give the run's own bundle")
            with Reporter("refining", len(jobs), quiet=options.quiet) as reporter:

                def on_progress(p: Progress) -> None:
                    reporter.tiles(p.id, p.done, p.total)

                for outcome in executor.run(jobs, on_progress):
                    result = outcome.result or {"message": f"{outcome.code}: {outcome.message}", "said": ""}
                    failed += bool(result["message"])
                    if outcome.noise:
                        folder.log("stderr", slide_id=outcome.id, text=outcome.noise)
                    reporter.slide(outcome.id, result["message"] or result["said"])
        finally:
            executor.close()
    return RefinedRun(len(jobs) - failed, failed)


class RefineWorker:
    """Holds the model in a child process; adds to slides one after another.

    Args:
        run: run folder.
        model: folder of its bundle.
        refine: make finer maps.
        stride: of the fine grid, in tile widths.
        stability_of: "shift", "stain" or "".
        draw: what is drawn again.
        engine: the run's, see `set_engine`.
        device: cpu, cuda:0, ...
    """

    def __init__(
        self, run: str, model: str, refine: bool, stride: float, stability_of: str, draw: DrawOptions, engine: dict[str, Any],
        device: str,
    ) -> None:  # fmt: skip
        from wsi_ips.engine.worker import make_deterministic  # here, with torch: the leader loads neither
        from wsi_ips.model.bundle import load_bundle
        from wsi_ips.model.engines import set_engine

        make_deterministic(engine["threads"])
        self._run = RunFolder(run)
        self._bundle = load_bundle(model)
        self._bundle.classifier.to(device).eval()
        set_engine(self._bundle.classifier, engine, engine_place())
        self._refine, self._stride, self._stability, self._draw = refine, stride, stability_of, draw
        self.info = {"model_hash": self._bundle.hash}

    def work(self, payload: dict[str, Any], progress: Callable[[str, int, int], None]) -> dict[str, str]:
        """Do one slide; `message` is empty when that went well, and `said` is what was found."""
        slide_id, record = payload["slide_id"], self._run.read_record(payload["slide_id"]) or {}
        try:
            p = read_ledger(self._run.slide_folder(slide_id) / f"{slide_id}.ledger.h5")
            if not payload["slide_path"]:
                return {"message": f"{slide_id} was labelled from features: there are no pixels to look at again", "said": ""}
            with classified_slide(payload, record, p, self._bundle.settings.icc) as slide:
                files, said = self._files(slide, p, progress)
                drop = [name for name in record.get("outputs", {}) if self._refine and is_refined_file(slide_id, name)]
                self._run.add_files(slide_id, files, drop=drop)
                for draw in self._draw.one_by_one():
                    redraw_slide(self._run, slide, p, payload["patient_id"], draw)
        except (SlideError, ConfigError, ModelError, OSError) as error:
            return {"message": str(error), "said": ""}
        return {"message": "", "said": said}

    def _files(
        self, slide: Slide, p: SlidePrediction, progress: Callable[[str, int, int], None]
    ) -> tuple[dict[str, bytes], str]:
        from wsi_ips.engine.refine import RefineOptions, refine_slide
        from wsi_ips.engine.stability import stability

        files: dict[str, bytes] = {}
        said = []
        if self._refine:
            found = refine_slide(slide, self._bundle, p, RefineOptions(stride=self._stride), progress)
            files |= {f"{p.slide_id}.fine.h5": fine_bytes(found), **refined_files(slide, p, found)}
            said += [f"{found.n_encoded} tiles encoded.", *(note.message for note in found.notes)]
        if self._stability:
            stable = stability(slide, self._bundle, p, stain=self._stability == "stain", progress=progress)
            files[f"{p.slide_id}.stability.json"] = stability_bytes(stable)
            said += stability_sentences(stable)
        return files, " ".join(said)

"""A small run with real slide files: one labelled slide with a hot tile, one that was replaced, one missing, two without a label."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from wsi_ips.config import TaskSettings
from wsi_ips.report.viewer.start import StartOptions, make_app
from wsi_ips.results import SlidePrediction, ledger_bytes
from wsi_ips.runfolder import RunFolder
from wsi_ips.slide.metadata import fingerprint
from wsi_ips.slide.reader import open_slide
from wsi_ips.synthetic.pyramid import PyramidPlan, array_source, write_pyramid

WIDTH, HEIGHT, TILE = 1537, 1011, 61
TASK = TaskSettings(classes=("normal", "<script>alert(1)</script>\"'"))
EVIL = '=cmd|"/c calc"!A1 <img src=x onerror=alert(1)>'


class MadeRun(NamedTuple):
    """A run folder and what is known about it."""

    path: Path
    slides: Path  # folder of the slide files
    pixels: np.ndarray  # (HEIGHT, WIDTH, 3) uint8, level 0 of "good"
    prediction: SlidePrediction  # of "good"; the hot tile is the first selected one
    positive: str  # name of the called class, which tries to be a script
    evil: str  # part of the message of "broken", which tries to be a formula and a script


def _write(path: Path, pixels: np.ndarray) -> None:
    write_pyramid(path, array_source(pixels), PyramidPlan(pixels.shape[1], pixels.shape[0], 256, 2, 3, quality=None))


@pytest.fixture(scope="session")
def template(
    tmp_path_factory: pytest.TempPathFactory, make_slide: Callable[..., Any], make_prediction: Callable[..., SlidePrediction]
) -> MadeRun:
    """Write the run: slides good, other, gone (ok), empty (no_tissue), broken (failed)."""
    tmp_path = tmp_path_factory.mktemp("template")
    drawn = make_slide(WIDTH, HEIGHT)
    pixels = drawn.read_region(0, 0, 0, WIDTH, HEIGHT).pixels
    slides = tmp_path / "secret_folder"
    slides.mkdir()
    run = RunFolder(tmp_path / "run")
    rows, sources = [], {}
    prediction = None
    for slide_id in ("good", "other", "gone", "empty", "broken"):
        path = slides / f"patient_doe_{slide_id}.tif"
        if slide_id == "good":
            _write(path, pixels)
        else:
            shutil.copy(slides / "patient_doe_good.tif", path)
        known = fingerprint(path)
        with open_slide(path) as slide:
            hot = make_prediction(slide, tile_px=TILE, hot=137, tasks=(TASK,), slide_id=slide_id)
        if slide_id == "other":
            _write(path, 255 - pixels)
        if slide_id == "gone":
            path.unlink()
        status = {"empty": "no_tissue", "broken": "failed"}.get(slide_id, "ok")
        cells = {"model_hash": hot.model_hash, "n_tiles": str(hot.n_tiles)}
        if status == "ok":
            cells |= {"pred": TASK.classes[1], f"prob_{TASK.classes[1]}": "0.875000", "prob_normal": "0.125000", "threshold": "0.5"}
        record = {"status": status, "reason": "", "message": "", "cells": cells, "identity": {"file": known}}
        message = f"{path}: {path.name} holds {EVIL}" if status == "failed" else ""
        run.write_slide(slide_id, {f"{slide_id}.ledger.h5": ledger_bytes(hot)} if status == "ok" else {}, record)
        rows.append({"slide_id": slide_id, "patient_id": "Doe, John", "status": status, "message": message, **cells})
        sources[slide_id] = {"path": str(path), "mpp": None, "patient_id": "Doe, John"}
        prediction = prediction or hot
    columns = list(dict.fromkeys(key for row in rows for key in row))
    run.write_table("predictions.csv", columns, rows)
    settings = {"icc": "none", "tasks": [TASK.model_dump(mode="json")]}
    model = {"model_hash": rows[0]["model_hash"], "model_settings": settings}
    run.write_json("run.json", {"schema_version": 1, "slides": sources, "model": model})
    assert prediction is not None
    return MadeRun(run.path, slides, pixels, prediction, TASK.classes[1], EVIL)


@pytest.fixture
def made_run(template: MadeRun, tmp_path: Path) -> MadeRun:
    """Copy the run, so that a test may write into it."""
    before, after = template.path.parent, tmp_path / "made"
    shutil.copytree(before, after)
    for name in ("run.json", "predictions.csv"):
        text = (after / "run" / name).read_text(encoding="utf-8")
        (after / "run" / name).write_text(text.replace(str(before), str(after)), encoding="utf-8")
    return template._replace(path=after / "run", slides=after / "secret_folder")


@pytest.fixture
def make_client() -> Callable[..., Any]:
    """Start the application without a port: `make_client(run, options, address)`; the client has not the token yet."""
    testclient = pytest.importorskip("starlette.testclient")

    def make(run: Path, options: StartOptions = StartOptions(), address: str = "http://127.0.0.1:8123") -> Any:  # noqa: B008
        served = make_app(run, options, 8123)
        made = testclient.TestClient(served.app, base_url=address, raise_server_exceptions=False)
        made.printed = served.address
        return made

    return make


@pytest.fixture
def open_client(make_client: Callable[..., Any]) -> Callable[..., Any]:
    """As `make_client`, of a browser that has opened the printed address and keeps the cookie."""

    def open_(*arguments: Any) -> Any:
        made = make_client(*arguments)
        assert made.get("/" + made.printed.rpartition("/")[2]).status_code == 200
        return made

    return open_


@pytest.fixture
def client(made_run: MadeRun, open_client: Callable[..., Any]) -> Any:
    """A browser's view of the run, on loopback."""
    return open_client(made_run.path)

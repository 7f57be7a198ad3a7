"""A run that is drawn again: what was refused, what was stopped, and text that a spreadsheet would take for a formula."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_ips.engine.draw import slide_jobs
from wsi_ips.engine.runpages import rewrite_pages
from wsi_ips.errors import ConfigError
from wsi_ips.runfolder import RunFolder
from wsi_ips.tasks import TaskSettings


def _run(path: Path) -> tuple[RunFolder, dict[str, object]]:
    """A run of one labelled slide and one without tissue."""
    run = RunFolder(path)
    for slide_id, status in (("one", "ok"), ("blank", "no_tissue")):
        run.write_slide(slide_id, {}, {"status": status, "reason": "", "message": "", "cells": {}})
    task = TaskSettings(classes=("-", "+"))
    settings = {"tasks": [task.model_dump(mode="json")], "tile": {"size_px": 32, "mpp": 4.0}, "encoder": {"name": "resnet18"}}
    source = {"path": "one.tif", "mpp": None, "patient_id": "=P1"}
    model = {"model_hash": "m", "settings_hash": "s", "model_settings": settings}
    return run, {"model": model, "slides": {"one": source, "blank": source}}


def test_drawing_a_slide_without_a_label_is_refused_by_name(tmp_path: Path) -> None:
    """`--only` of a slide without tissue is no silent success."""
    run, facts = _run(tmp_path / "run")
    with pytest.raises(ConfigError, match="no label of blank"):
        slide_jobs(run, facts, ("blank",))
    assert [job.id for job in slide_jobs(run, facts, ("one",))] == ["one"]


def test_pages_of_a_run_that_was_stopped_before_its_table_wait_for_it(tmp_path: Path) -> None:
    """Drawing such a run again is no error."""
    run, facts = _run(tmp_path / "run")
    rewrite_pages(run, facts)
    assert not (run.path / "index.html").exists()


def test_pages_laid_out_again_read_as_before(tmp_path: Path) -> None:
    """The apostrophe that keeps a cell from being a formula stays in the table."""
    run, facts = _run(tmp_path / "run")
    row = {"slide_id": "one", "patient_id": "'=P1", "status": "ok", "pred": "'+", "prob_-": "0.25", "prob_+": "0.75"}
    run.write_table("predictions.csv", list(row), [row])
    rewrite_pages(run, facts)
    assert "P1" not in (run.path / "index.html").read_text(encoding="utf-8")  # patients are named when asked for
    facts["model"]["shows_patients"] = True
    rewrite_pages(run, facts)
    page = (run.path / "index.html").read_text(encoding="utf-8")
    assert "=P1" in page
    assert "&#x27;=P1" not in page
    assert "&#x27;+" not in page

"""Slides that several take at once, and slides that end whoever takes them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from standins import worker_info

from wsi_ips.engine import classify as classify_module
from wsi_ips.engine.classify import ClassifyOptions, RunSummary, classify
from wsi_ips.engine.executors import Job, Outcome, Progress
from wsi_ips.manifest import load_manifest
from wsi_ips.runfolder import RunFolder

RECORD = {"status": "ok", "reason": "", "message": "", "cells": {}, "identity": {"row": "r"}}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fault_114_a_slide_that_two_write_at_once_is_one_of_the_two(tmp_path: Path) -> None:
    """Two processes write equal results of one slide again and again; at every moment each file is whole, at the end it is finished."""
    run = RunFolder(tmp_path)
    files = {f"a.{i}.png": bytes([i]) * 5000 for i in range(4)}
    run.write_slide("a", files, RECORD)
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for _ in range(25):
                    run.write_slide("a", files, RECORD)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    left = set(children)
    while left:
        for name, data in files.items():
            assert (tmp_path / "slides" / "a" / name).read_bytes() == data
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            assert status == 0
            left.discard(done)
    assert run.is_finished("a", {"row": "r"})
    assert sorted(os.listdir(tmp_path / "slides" / "a")) == sorted([*files, "state.json"])


class _Dying:
    """Stands for the executor: every slide ends its workers; counts how often it is asked."""

    peak_bytes, memory_bytes = 0, 1 << 30
    asked: list[str] = []  # noqa: RUF012 (of all, on purpose)

    def ready(self) -> dict[str, Any]:
        return worker_info()

    def run(self, jobs: Sequence[Job], on_progress: Callable[[Progress], None]) -> Iterator[Outcome]:
        for job in jobs:
            self.asked.append(job.id)
            yield Outcome(job.id, None, "E_WORKER_DIED", "killed; tried 2 times", 2)

    def close(self) -> None:
        pass


@pytest.fixture
def start(tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunSummary]:
    """Run two slides that end their workers: `start(retry_failed)`."""
    for name in "ab":
        (tmp_path / f"{name}.svs").write_bytes(b"x" * 20)
    (tmp_path / "m.csv").write_text("slide_path\na.svs\nb.svs\n")
    monkeypatch.setattr(classify_module, "_local_executor", lambda *_: _Dying())
    monkeypatch.setattr(_Dying, "asked", [])

    def started(retry_failed: bool = False) -> RunSummary:
        options = ClassifyOptions(device="cpu", quiet=True, retry_failed=retry_failed)
        return classify(load_manifest(tmp_path / "m.csv"), str(tiny_bundle), tmp_path / "run", options)

    return started


def test_fault_119_a_slide_that_ends_its_workers_is_tried_twice_over_all_runs(start: Callable[..., RunSummary], tmp_path: Path) -> None:
    """A second start leaves it alone and keeps its row; `--retry-failed` tries it again and counts on; a new file is a new slide."""
    assert start().counts == {"failed": 2}
    assert _Dying.asked == ["a", "b"]
    assert start().counts == {"failed": 2}
    assert _Dying.asked == ["a", "b"]
    record = RunFolder(tmp_path / "run").read_record("a") or {}
    assert (record["reason"], record["attempts"]) == ("E_WORKER_DIED", 2)
    assert "--retry-failed" in record["message"]
    start(retry_failed=True)
    assert _Dying.asked == ["a", "b", "a", "b"]
    assert (RunFolder(tmp_path / "run").read_record("a") or {})["attempts"] == 4
    shutil.copy(tmp_path / "m.csv", tmp_path / "a.svs")
    start()
    assert _Dying.asked == ["a", "b", "a", "b", "a"]
    assert (RunFolder(tmp_path / "run").read_record("a") or {})["attempts"] == 2
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["attempts"] for line in log if line["event"] == "slide"] == [2] * 5

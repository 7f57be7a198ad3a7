"""A batch that is killed, torn, cut off from power or starved of disk at each of its file operations in turn, then resumed.

Random kills prove little: most fall between operations. So the store of `classify` (the leader's books and the workers'
slide files, without pixels and without a model, whose results are made up) runs in a forked child on a disk that fails at
operation k, for every k. Then the same command goes on, and the folder must be what an undisturbed run leaves, byte by
byte; the log and the table of timings, which hold times, aside.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faultydisk import KILLED, FaultyDisk, How, run_in_child
from standins import worker_info

from wsi_ips.engine import classify as classify_module
from wsi_ips.engine.classify import ClassifyOptions, classify
from wsi_ips.engine.executors import Job, Outcome, Progress
from wsi_ips.manifest import Manifest, load_manifest
from wsi_ips.runfolder import RunFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

N_SLIDES = 12
TIMED = ("log.jsonl", "timings.csv")
TIMES = ("started", "first_started", "ended")
MODES: tuple[How, ...] = ("kill", "torn", "power", "full")


class StoreExecutor:
    """Writes what workers would write, in this process; results are made of the slide's id."""

    peak_bytes, memory_bytes = 0, 1 << 30

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def ready(self) -> dict[str, Any]:
        return worker_info()

    def run(self, jobs: Sequence[Job], on_progress: Callable[[Progress], None]) -> Iterator[Outcome]:
        for job in jobs:
            identity = dict(job.payload["identity"])
            if self._run.is_finished(job.id, identity):
                yield Outcome(job.id, (self._run.read_record(job.id) or {}) | {"kept": True})
                continue
            on_progress(Progress(job.id, "tiles", 1, 1))
            digest = hashlib.sha256(job.id.encode()).digest()
            record = {
                "status": "ok", "reason": "", "message": "", "identity": identity, "outputs_logits": [digest[0] / 255.0],
                "cells": {"n_tiles": "7", "prob_tumor": f"{digest[0] / 255.0:.6f}"},
            }  # fmt: skip
            files = {f"{job.id}.ledger.h5": digest * 100, f"{job.id}.top_tiles/01.png": digest, f"{job.id}.overlay.png": digest * 50}
            self._run.write_slide(job.id, files, record)
            yield Outcome(job.id, self._run.read_record(job.id))

    def close(self) -> None:
        pass


class Batch(NamedTuple):
    """What is run again and again."""

    manifest: Manifest
    model: Path

    def start(self, out: Path, disk: FaultyDisk) -> int:
        """Classify in a forked child on a disk; give its exit status, as the command line would."""
        return run_in_child(disk, lambda: self.classify(out))

    def classify(self, out: Path) -> None:
        """Do it here."""
        classify(self.manifest, str(self.model), out, ClassifyOptions(device="cpu", quiet=True))


@pytest.fixture
def batch(tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """Twelve slides that are never opened."""
    rows = ["slide_id,slide_path,patient_id"]
    for i in range(N_SLIDES):
        (tmp_path / f"s{i}.svs").write_bytes(b"x" * (20 + i))
        rows.append(f"s{i},s{i}.svs,p{i // 2}")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(classify_module, "_local_executor", lambda model, run, options: StoreExecutor(run))
    return Batch(load_manifest(tmp_path / "m.csv"), tiny_bundle)


def left_in(out: Path) -> dict[str, bytes]:
    """Every file below a run folder, but for the timed ones, and of run.json all but the times."""
    found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.name not in TIMED}
    facts = json.loads(found["run.json"])
    return found | {"run.json": json.dumps({k: v for k, v in facts.items() if k not in TIMES}).encode()}


def operations(batch: Batch, out: Path) -> list[str]:
    """Run undisturbed, and tell which operations that takes."""
    disk = FaultyDisk(out)
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        try:
            with disk.installed():
                batch.classify(out)
            os.write(write_end, ",".join(disk.done).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as f:
        found = f.read()
    os.wait()
    return found.split(",")


def points(steps: list[str], how: How) -> list[int]:
    """Choose the operations at which a fault differs from those before: only writes can be torn."""
    return [at for at, kind in enumerate(steps) if how != "torn" or kind == "write"]


def check(batch: Batch, out: Path, wanted: dict[str, bytes], at: int, how: How) -> None:
    """Fail once, go on, compare."""
    first = batch.start(out, FaultyDisk(out, at, how))
    assert first in ((0, 2, 3) if how == "full" else (KILLED,)), (at, how, first)  # full: refused, stopped, or nothing to write
    assert batch.start(out, FaultyDisk(out)) == 0, (at, how)
    found = left_in(out)
    assert sorted(found) == sorted(wanted), (at, how, sorted(set(found) ^ set(wanted)))
    assert found == wanted, (at, how, [name for name in wanted if found[name] != wanted[name]])


@pytest.mark.parametrize("how", MODES)
def test_fault_074_and_079_and_091_and_092_some_crash_points_change_nothing(batch: Batch, tmp_path: Path, how: How) -> None:
    """Every 47th operation, every sixteenth write; all of them: the test below."""
    steps = operations(batch, tmp_path / "whole")
    wanted = left_in(tmp_path / "whole")
    assert len([name for name in wanted if name.endswith("state.json")]) == N_SLIDES
    for at in points(steps, how)[MODES.index(how) :: 16 if how == "torn" else 47]:
        check(batch, tmp_path / f"{how}{at}", wanted, at, how)


@pytest.mark.torture
@pytest.mark.parametrize("how", MODES)
def test_no_crash_point_changes_anything(batch: Batch, tmp_path: Path, how: How) -> None:
    """Every operation; more than 300 points in all."""
    steps = operations(batch, tmp_path / "whole")
    wanted = left_in(tmp_path / "whole")
    assert len(steps) > 150
    for at in points(steps, how):
        check(batch, tmp_path / f"{how}{at}", wanted, at, how)

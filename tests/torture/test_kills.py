"""20 real SIGKILLs at random moments of a batch of 12 slides: the same command goes on, and ends as if nothing had been.

Every second kill hits the leader alone, whose workers must then end by themselves; the others hit all processes at once.
Every second moment is drawn over the time a run takes to start; the others lie up to a second after some more slides are done.
`test_crash_points` tries every file operation of the store; here everything is real, and moments are a matter of luck.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from mutants import sound_slides
from watching import WatchedCommand

from wsi_ips.synthetic import SlideRecipe, paint_slide

pytestmark = [pytest.mark.torture, pytest.mark.timeout(1200)]

N_SLIDES, N_KILLS, SEED = 12, 20, 7
A_FOLDER = 4  # kills of one run, at most, before it may end
TIMED = ("run.json", "log.jsonl", "timings.csv", "state.json")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small pieces of painted slides."""
    root, rows = tmp_path_factory.mktemp("slides"), ["slide_id,slide_path,patient_id"]
    painted = paint_slide(SlideRecipe(5)).pixels
    for i in range(N_SLIDES):
        x, y = 500 + 150 * (i % 4), 400 + 200 * (i // 4)
        sound = sound_slides(np.ascontiguousarray(painted[y : y + 460, x : x + 700]), root)["tif"]
        (root / f"s{i}.tif").write_bytes(sound.data)
        rows.append(f"s{i},s{i}.tif,p{i // 2}")
    (root / "m.csv").write_text("\n".join(rows) + "\n")
    return root / "m.csv"


def _start(manifest: Path, model: Path, out: Path) -> WatchedCommand:
    words = ["classify", manifest, "--model", model, "--out", out, "--cache", "off", "--device", "cpu", "--workers", "2", "--engine", "torch"]
    return WatchedCommand(words, manifest.parent, out.with_suffix(".log"))


def _left_in(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.name not in TIMED}


def _n_starts(out: Path) -> int:
    """How often a run has come so far that slides are handed out; a line may be cut."""
    log = out / "log.jsonl"
    return log.read_text(errors="replace").count('"event": "start"') if log.exists() else 0


def _n_finished(out: Path) -> int:
    """Slides whose record is whole; a torn one would not be JSON."""
    return sum(json.loads(state.read_text())["status"] == "ok" for state in out.glob("slides/*/state.json"))


def _assert_same(out: Path, wanted: dict[str, bytes]) -> None:
    found = _left_in(out)
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []


def test_kills_leave_no_trace(manifest: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """P8: after each kill nothing lives on and the command goes on; whatever is killed, the files are the undisturbed run's."""
    rng, began, whole = np.random.default_rng(SEED), time.monotonic(), tmp_path / "whole"
    with _start(manifest, tiny_bundle, whole) as command:
        assert command.wait(300, lambda: _n_starts(whole) == 1) is None
        starting = time.monotonic() - began
        assert command.wait(300) == 0, command.said
    wanted = _left_in(whole)
    assert sum(name.endswith(".ledger.h5") for name in wanted) == N_SLIDES

    told: list[list[int]] = []  # slides done at each kill, by run folder
    while sum(map(len, told)) < N_KILLS:
        out = tmp_path / f"run{len(told)}"
        told.append([])
        while True:
            n_kills, before = sum(map(len, told)), _n_starts(out)
            is_at_work, is_group = n_kills % 2 == 0, n_kills % 4 < 2
            with _start(manifest, tiny_bundle, out) as command:
                if len(told[-1]) < A_FOLDER and n_kills < N_KILLS:
                    if is_at_work:
                        n_done = _n_finished(out) + int(rng.integers(0, 3))
                        command.wait(300, lambda out=out, before=before, n=n_done: _n_starts(out) > before and _n_finished(out) >= n)
                    end = time.monotonic() + rng.uniform(0.0, 1.0 if is_at_work else starting)
                    if command.wait(300, lambda end=end: time.monotonic() >= end) is None:
                        command.kill(group=is_group)
                        assert command.left_after(1.0 if is_group else 5.0) == []
                        told[-1].append(_n_finished(out))
                        continue
                assert command.wait(300) == 0, command.said
                assert command.left_after(5.0) == []
            break
        _assert_same(out, wanted)
    print(f"\n{N_KILLS} kills in {len(told)} run folders, {time.monotonic() - began:.0f} s; slides done at each kill: {told}")

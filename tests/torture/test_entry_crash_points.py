"""A pass that is killed, torn, cut off from power or starved of disk at each file operation of what it puts by, then gone on with.

Whatever the next pass is given back must be what the first encoded, from the first row on; and the entry it ends with whole.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from faultydisk import KILLED, FaultyDisk, How, run_in_child

from wsi_ips.engine import entrywriter
from wsi_ips.engine.embeddings import EmbeddingCache

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

N, CHUNK = 22, 4
MODES: tuple[How, ...] = ("kill", "torn", "power", "full")
NAME = {"slide": "s"}


def _embeddings(rows: np.ndarray) -> np.ndarray:
    return np.column_stack([rows, rows % 7, 1000 - rows]).astype(np.float32)


def _pass(folder: Path) -> int:
    """Go over the tiles as a pass does; tell how many needed no encoder."""
    writer = EmbeddingCache(folder).writer(NAME, CHUNK)
    first = 0
    try:
        for part in writer.earlier():
            assert part.rows.tolist() == list(range(first, first + len(part.rows)))
            assert np.array_equal(part.embeddings, _embeddings(part.rows))
            assert (part.n_missing == part.rows).all()
            first += len(part.rows)
            assert writer.colour == {"sum": [float(first)], "n": first}
        for at in range(first, N, CHUNK):
            rows = np.arange(at, min(at + CHUNK, N))
            end = int(rows[-1]) + 1
            writer.add(rows, _embeddings(rows), rows, None, {"sum": [float(end)], "n": end})
        writer.finish(N, {"red": 1.0})
    finally:
        writer.leave()
    return first


def _check(folder: Path, at: int, how: How) -> int:
    """Fail once, go on, compare; tell how many tiles need no encoder the second time."""
    folder.mkdir()
    assert run_in_child(FaultyDisk(folder, at, how), lambda: _pass(folder)) == (0 if how == "full" else KILLED), (at, how)
    entry = EmbeddingCache(folder).find(NAME)
    again = N if entry is not None else _pass(folder)
    stored = EmbeddingCache(folder).find(NAME)
    assert stored is not None
    assert stored.colour == {"red": 1.0}
    assert np.array_equal(np.concatenate([p.embeddings for p in stored.parts()]), _embeddings(np.arange(N)))
    return again


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Operations of an undisturbed pass, each chunk a part."""
    monkeypatch.setattr(entrywriter, "_PART_TILES", CHUNK)
    (tmp_path / "whole").mkdir()
    disk = FaultyDisk(tmp_path / "whole")
    with disk.installed():
        _pass(tmp_path / "whole")
    return disk.done


@pytest.mark.parametrize("how", MODES)
def test_fault_075_and_076_some_crash_points_of_a_pass(steps: list[str], tmp_path: Path, how: How) -> None:
    """Every fifth operation; all of them: the test below. Late deaths cost less than early ones."""
    at_these = [at for at in range(MODES.index(how), len(steps), 5) if how != "torn" or steps[at] == "write"]
    kept = [_check(tmp_path / f"{at}", at, how) for at in at_these]
    if how == "kill":
        assert kept == sorted(kept)
        assert kept[0] < N // 2 < kept[-1]


@pytest.mark.torture
@pytest.mark.parametrize("how", MODES)
def test_no_crash_point_of_a_pass(steps: list[str], tmp_path: Path, how: How) -> None:
    """Every operation."""
    assert len(steps) > 20
    for at, kind in enumerate(steps):
        if how != "torn" or kind == "write":
            _check(tmp_path / f"{at}", at, how)

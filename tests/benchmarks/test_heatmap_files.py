"""Seconds and memory of a slide's heatmap files; the promise is less than 20 s for 250,000 tiles."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from bench_heatmaps import Case, make_heatmap_slide, make_prediction
from table import machine, spread

from wsi_ips.engine.draw import slide_files
from wsi_ips.engine.drawoptions import DEFAULT_FORMATS, DrawOptions
from wsi_ips.results import ledger_bytes

PARTS = ("ledger", *DEFAULT_FORMATS)
CELLS = {"status": "ok", "reason": "", "message": "", "pred": "tumor", "prob_normal": "0.2", "prob_tumor": "0.8"}


def draw(n_tiles: int, case: Case) -> dict[str, float]:
    """Draw one slide in this process: seconds and CPU seconds of each part, bytes of all files, MiB above the start."""
    cv2.setNumThreads(1)  # as in a worker
    p = make_prediction(n_tiles, case)
    slide = make_heatmap_slide(p)
    row = {"slide_id": p.slide_id, "patient_id": "1", **CELLS}
    before, n_bytes, found = _peak_mib(), 0, {}
    for part in PARTS:
        wall, cpu = time.perf_counter(), time.process_time()
        files = {"h5": ledger_bytes(p)} if part == "ledger" else slide_files(slide, p, row, DrawOptions((part,)))
        found[part], found[f"{part} cpu"] = time.perf_counter() - wall, time.process_time() - cpu
        n_bytes += sum(map(len, files.values()))
    return {**found, "MB": n_bytes / 1e6, "MiB": _peak_mib() - before}


def _peak_mib() -> float:
    # not ru_maxrss, which begins at what the process that started this one had
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


@pytest.mark.benchmark
@pytest.mark.parametrize("case", ["realistic", "worst"])
def test_seconds_of_heatmap_files(case: str) -> None:
    """Print a table: each size in a process of its own, sizes in turn, median and range."""
    sizes, rounds = (2_000, 250_000), 5
    found: dict[int, list[dict[str, float]]] = {n: [] for n in sizes}
    for _ in range(rounds):
        for n in sizes:
            words = [sys.executable, Path(__file__), str(n), case]
            found[n].append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    print(f"\n{machine()}\nattention and tissue: {case}; 8 heads; seconds (CPU seconds) in a new process, median [least-largest]")
    print(f"| tiles | {' | '.join(PARTS)} | in all | MB of files | MiB of memory |\n|{'---|' * (len(PARTS) + 4)}")
    for n, runs in found.items():
        cells = [f"{spread([r[part] for r in runs])} ({spread([r[f'{part} cpu'] for r in runs])})" for part in PARTS]
        whole = (spread([sum(r[f"{part}{of}"] for part in PARTS) for r in runs]) for of in ("", " cpu"))
        print(f"| {n:,} | {' | '.join(cells)} | {' ('.join(whole)}) | {spread([r['MB'] for r in runs])} | {spread([r['MiB'] for r in runs])} |")


if __name__ == "__main__":
    print(json.dumps(draw(int(sys.argv[1]), sys.argv[2])))  # type: ignore[arg-type]

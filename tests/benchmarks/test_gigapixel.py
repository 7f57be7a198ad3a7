"""A slide of 16 gigapixels, 251,000 tiles of 256 px all with tissue, from end to end: time, memory, where the time went.

Writes about 4 GB. The encoder is tiny, so that reading, selecting and drawing show. WSI_IPS_BENCH_GPX=slide.tif keeps the
slide under that name for the next time.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench_slides import write_gigapixel_slide
from table import machine

from wsi_ips.config import ModelSettings, load_settings
from wsi_ips.model.bundle import save_bundle
from wsi_ips.training.start import build_classifier

TINY = {
    "encoder": {"name": "resnet10t", "weights": "none", "kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8}},
    "attention": {"dim": 64, "n_heads": 8},
    "selection": {"memory_size": 256, "chunk_size": 64},
    "tile": {"size_px": 256, "mpp": 0.5},
}


@pytest.mark.benchmark
def test_sixteen_gigapixels(tmp_path: Path) -> None:
    """Prints seconds by stage, and peak memory less the ledger's own."""
    slide = Path(os.environ.get("WSI_IPS_BENCH_GPX", tmp_path / "gpx.tif"))
    if not slide.is_file():
        started = time.perf_counter()
        write_gigapixel_slide(slide)
        print(f"\nwritten in {time.perf_counter() - started:.0f} s, {slide.stat().st_size / 1e9:.1f} GB")
    settings = load_settings(ModelSettings, TINY)
    save_bundle(tmp_path / "model", build_classifier(settings), settings, card="# tiny")
    words = ["classify", slide, "--model", tmp_path / "model", "--out", tmp_path / "run", "--cache", "off", "--profile"]
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "wsi_ips.cli", *map(str, words)], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    folder = tmp_path / "run" / "slides" / slide.stem
    record = json.loads((folder / "state.json").read_text())
    n = int(record["cells"]["n_tiles"])
    ledger = n * (4 * 1 * 8 + 24)
    leader = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    peak = max(record["peak_bytes"], leader)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"\n{machine()}\n\n{done.stdout}\n{n} tiles in {seconds:.0f} s by the clock; {json.dumps(record['seconds'])}")
    print(f"peak {peak / 2**20:.0f} MiB, {(peak - ledger) / 2**20:.0f} without the ledger; {size / 1e6:.0f} MB of results")

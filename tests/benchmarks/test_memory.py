"""Memory against the number of tiles: classify must not grow with the slide.

Figure: peak RSS of the worker, the largest process of the tree, minus the ledger's own N x (4 T H + 24) bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench_slides import tissue_palette, write_tiled_slide

from wsi_ips.config import ModelSettings, load_settings
from wsi_ips.model.bundle import save_bundle
from wsi_ips.training.start import build_classifier

TINY = {
    "encoder": {"name": "resnet18", "weights": "none", "kwargs": {"channels": [8, 8, 8, 8], "norm_layer": "groupnorm"}},
    "attention": {"dim": 32, "n_heads": 4},
    "selection": {"memory_size": 64, "chunk_size": 64},
    "tile": {"size_px": 64, "mpp": 0.5},
}


@pytest.mark.benchmark
@pytest.mark.parametrize("repeats", [1])
def test_memory_does_not_grow_with_the_slide(tmp_path: Path, repeats: int) -> None:
    """Prints a table; the promise is a spread within 5 %."""
    settings = load_settings(ModelSettings, TINY)
    save_bundle(tmp_path / "model", build_classifier(settings), settings, card="# tiny")
    palette, rows = tissue_palette(), []
    for wanted in (1_000, 10_000, 250_000):
        write_tiled_slide(tmp_path / f"n{wanted}.tif", wanted, 64, palette)
        for i in range(repeats):
            out = tmp_path / f"run{wanted}_{i}"
            words = ["classify", tmp_path / f"n{wanted}.tif", "--model", tmp_path / "model", "--out", out,
                     "--cache", "off"]  # fmt: skip
            subprocess.run([sys.executable, "-m", "wsi_ips.cli", *map(str, words)], check=True, capture_output=True)
            record = json.loads((out / "slides" / f"n{wanted}" / "state.json").read_text())
            n = int(record["cells"]["n_tiles"])
            ledger = n * (4 * 1 * 4 + 24)
            peak = record["peak_bytes"]  # the leader, which loads no torch, takes a tenth of it
            rows.append((n, peak, peak - ledger, record["seconds"]["predict"]))
    print("\n   tiles   peak MiB   without ledger MiB   seconds")
    for n, peak, rest, seconds in rows:
        print(f"{n:8d}   {peak / 2**20:8.1f}   {rest / 2**20:18.1f}   {seconds:7.1f}")
    spread = max(r[2] for r in rows) / min(r[2] for r in rows) - 1.0
    print(f"spread {100 * spread:.1f} %")

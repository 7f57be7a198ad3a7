"""What the embedding cache saves: a slide classified cold, then again into a new folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench_slides import write_kind
from table import machine, spread

from wsi_ips.config import ModelSettings, load_settings
from wsi_ips.model.bundle import save_bundle
from wsi_ips.training.start import build_classifier

N_TILES, ROUNDS = 1_000, 5
SETTINGS = {
    "encoder": {"name": "resnet18", "weights": "none"},
    "attention": {"dim": 512, "n_heads": 8},
    "selection": {"memory_size": 256, "chunk_size": 64},
    "tile": {"size_px": 224, "mpp": 0.5},
}


@pytest.mark.benchmark
def test_a_second_run_from_the_cache(tmp_path: Path) -> None:
    """Print a table: seconds of the pass, of the whole slide with its pictures, of the command; cold and warm in turn."""
    settings = load_settings(ModelSettings, SETTINGS)
    save_bundle(tmp_path / "model", build_classifier(settings), settings, card="# for speed")
    write_kind(tmp_path / "a.tif", "420", N_TILES)
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    n_tiles, n_bytes = 0, 0
    for _ in range(ROUNDS + 1):  # the first warms up
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        for name, runs in found.items():
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            words = ["classify", tmp_path / "a.tif", "--model", tmp_path / "model", "--out", tmp_path / name, "--cache",
                     tmp_path / "cache"]  # fmt: skip
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "wsi_ips.cli", *map(str, words)], check=True, capture_output=True)
            command = time.perf_counter() - started
            record = json.loads((tmp_path / name / "slides" / "a" / "state.json").read_text())
            n_tiles = int(record["cells"]["n_tiles"])
            assert record["n_encoded"] == (n_tiles if name == "cold" else 0)
            runs.append({**{part: record["seconds"][part] for part in ("predict", "draw", "total")}, "command": command})
        n_bytes = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    runs = {name: some[1:] for name, some in found.items()}
    print(f"\n{machine()}\n{n_tiles} tiles of 224 px, ResNet-18, {n_bytes / 1e6:.2f} MB of embeddings; median [least-largest] of {ROUNDS}\n")
    print("| seconds of | cold | warm | times faster |\n|---|---|---|---|")
    for part in ("predict", "draw", "total", "command"):
        cold, warm = ([run[part] for run in runs[name]] for name in ("cold", "warm"))
        print(f"| {part} | {spread(cold)} | {spread(warm)} | {spread([a / b for a, b in zip(cold, warm, strict=True)])} |")
    rates = [n_bytes / 1e6 / run["predict"] for run in runs["warm"]]
    print(f"\nthe warm pass reads {spread(rates)} MB/s of embeddings, and finds tissue and grid again")

"""Slides classified end to end against the field's pattern: the same tiles, read and encoded, 224 px at 0.5 µm/px.

The pattern reads and encodes a sample of the tiles (its cost a tile does not change); classify does all of a slide in a
process of its own, from opening it to the last file, and says how long that took; encoding alone works on tiles that are
in memory already, in batches as classify makes them. Interleaved; times of loading torch and model are in neither.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from baseline import encode_pattern, pattern_encoder, pattern_loader
from bench_slides import write_kind
from table import machine, spread

from wsi_ips.config import ModelSettings, load_settings
from wsi_ips.model.bundle import save_bundle
from wsi_ips.results import read_ledger
from wsi_ips.training.start import build_classifier

SIDE = 224
ROUNDS = int(os.environ.get("WSI_IPS_BENCH_ROUNDS", "5"))
N_TILES = int(os.environ.get("WSI_IPS_BENCH_TILES", "5000"))
SAMPLE = {"resnet18": 512, "resnet50": 128}  # tiles of the pattern
ALONE = {"resnet18": 2560, "resnet50": 512}  # of encoding alone: long enough that a burst of a shared core is not all of it
ENGINES = ["torch", "openvino"] if importlib.util.find_spec("openvino") else ["torch"]


def settings_of(name: str) -> ModelSettings:
    """A model with an encoder of stock size and random weights."""
    return load_settings(ModelSettings, {
        "encoder": {"name": name, "weights": "none"}, "attention": {"dim": 512, "n_heads": 8},
        "selection": {"memory_size": 256, "chunk_size": 64}, "tile": {"size_px": SIDE, "mpp": 0.5},
    })  # fmt: skip


def classified(folder: Path, slide: Path, engine: str, number: int) -> tuple[Path, int, float]:
    """Classify in a process of its own: ledger, tiles, seconds from opening the slide to its last file."""
    out = folder / f"run_{engine}_{number}"
    words = ["classify", slide, "--model", folder / "model", "--out", out, "--cache", "off", "--engine", engine]
    subprocess.run([sys.executable, "-m", "wsi_ips.cli", *map(str, words)], check=True, capture_output=True)
    record = json.loads((out / "slides" / slide.stem / "state.json").read_text())
    return out / "slides" / slide.stem / f"{slide.stem}.ledger.h5", int(record["cells"]["n_tiles"]), record["seconds"]["total"]


def encoded_from_memory(folder: Path, engine: str, n: int) -> float:
    """Encode n tiles that lie in memory, in a process of its own: seconds a tile."""
    code = (
        "import sys, time, numpy as np, torch\n"
        "from wsi_ips.engine.worker import make_deterministic\n"
        "from wsi_ips.model.bundle import load_bundle\n"
        "from wsi_ips.model.engines import use_engine\n"
        f"make_deterministic({len(os.sched_getaffinity(0))})\n"
        f"classifier = load_bundle({str(folder / 'model')!r}).classifier.eval()\n"
        f"use_engine(classifier, {engine!r})\n"
        f"tiles = np.random.default_rng(0).integers(0, 256, (64, {SIDE}, {SIDE}, 3), np.uint8)\n"
        "classifier.embed_tiles(tiles, 64)\n"
        "start = time.perf_counter()\n"
        f"for _ in range({n} // 64): classifier.embed_tiles(tiles, 64)\n"
        f"print((time.perf_counter() - start) / ({n} // 64 * 64))\n"
    )
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


@pytest.mark.benchmark
@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
def test_classify_against_the_pattern(tmp_path: Path, encoder: str) -> None:
    """Ratios of seconds a tile; how much the engines agree on top M and label."""
    slide = tmp_path / "slide.tif"
    write_kind(slide, "420", round(N_TILES * (SIDE / 256) ** 2 * 1.05))
    settings = settings_of(encoder)
    save_bundle(tmp_path / "model", build_classifier(settings), settings, card="# random weights")
    sample = SAMPLE[encoder]
    ledger, n_tiles, _ = classified(tmp_path, slide, "torch", 0)
    coords = read_ledger(ledger).coords[:sample]
    net = pattern_encoder(encoder)
    seconds: dict[str, list[float]] = {"pattern": []}
    ledgers = {}
    for number in range(1, ROUNDS + 1):
        start = time.perf_counter()
        encode_pattern(net, pattern_loader(slide, coords, 0, SIDE, SIDE, batch=64, n_workers=2))
        seconds["pattern"].append((time.perf_counter() - start) / sample)
        for engine in ENGINES:
            ledgers[engine], n, total = classified(tmp_path, slide, engine, number)
            seconds.setdefault(engine, []).append(total / n)
            seconds.setdefault(f"{engine}, from memory", []).append(encoded_from_memory(tmp_path, engine, ALONE[encoder]))
    print(f"\n{machine()}\n\n{encoder}, {n_tiles} tiles a slide, the pattern on {sample} of them; {ROUNDS} rounds in turn\n")
    print("| way | tiles/s | times the pattern | wall over encoding from memory |\n|---|---|---|---|")
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(seconds["pattern"], values, strict=True)]
        over = [a / b for a, b in zip(values, seconds.get(f"{name}, from memory", values), strict=True)]
        last = spread(over) if f"{name}, from memory" in seconds else ""
        print(f"| {name} | {spread([1 / v for v in values])} | {spread(ratios)} | {last} |")
    if len(ledgers) > 1:
        _print_agreement(*ledgers.values())


def _print_agreement(one: Path, other: Path) -> None:
    a, b = read_ledger(one), read_ledger(other)
    overlap = len(np.intersect1d(a.selected, b.selected)) / len(a.selected)
    p, q = (1.0 / (1.0 + np.exp(-x.outputs.astype(np.float64))) for x in (a, b))
    print(f"\ntop M in common {overlap:.4f}; probabilities differ by {np.abs(p - q).max():.5f}; median {median(p.ravel()):.3f}")

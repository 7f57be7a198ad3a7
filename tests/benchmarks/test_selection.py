"""What selection and ledger cost beside the encoder: the promise is less than 2 % of a pass with ResNet-18."""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest
import torch
from bench_heatmaps import make_prediction
from table import compare, machine, spread

from wsi_ips.config import ModelSettings, load_settings
from wsi_ips.model.ledger import attention_from_logits
from wsi_ips.model.selector import Selection, StreamingSelector
from wsi_ips.results import ledger_bytes
from wsi_ips.training.start import build_classifier

N, M, DIM, HEADS, CHUNK = 250_000, 256, 512, 8, 64
N_ENCODED = 256
SETTINGS = {
    "encoder": {"name": "resnet18", "weights": "none"},
    "attention": {"dim": DIM, "n_heads": HEADS},
    "selection": {"memory_size": M, "chunk_size": CHUNK},
    "tile": {"size_px": 224, "mpp": 0.5},
}


def _select(features: np.ndarray, logits: np.ndarray) -> Selection:
    """Stream all tiles through the selector; features repeat."""
    selector, n_features = StreamingSelector(len(logits), M, chunk_size=CHUNK), len(features) - CHUNK
    for start in range(0, len(logits), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(logits)))
        first = start % n_features
        selector.add(rows, features[first : first + len(rows)], logits[rows])
    return selector.finish()


@pytest.mark.benchmark
@pytest.mark.parametrize("order", ["random", "rising"])
def test_selection_and_ledger_against_the_encoder(order: str) -> None:
    """Print microseconds of a tile of each part; `rising`: every tile is better than all before it, the worst order."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    classifier = build_classifier(load_settings(ModelSettings, SETTINGS)).eval()
    tiles = rng.integers(0, 255, (N_ENCODED, 224, 224, 3), dtype=np.uint8)
    features = rng.normal(size=(64 * CHUNK + CHUNK, DIM)).astype(np.float32)
    logits = rng.normal(0.0, 2.0, (N, 1, HEADS)).astype(np.float32)
    if order == "rising":
        logits = np.sort(logits, axis=0)
    prediction = make_prediction(N, "worst", HEADS)
    parts = {
        "encoder": (N_ENCODED, lambda: classifier.embed_tiles(tiles, CHUNK)),
        "attention logits of the head": (len(features), lambda: classifier.scan(features, CHUNK)),
        "selection: ledger, buffer, softmax, top M": (N, lambda: _select(features, logits)),
        "attention of the whole bag": (N, lambda: attention_from_logits(logits)),
        "ledger as HDF5": (N, lambda: ledger_bytes(prediction)),
    }
    found = compare({name: work for name, (_, work) in parts.items()}, 1)
    wall, cpu = ({name: [1e6 * s / parts[name][0] for s in some] for name, some in by.items()} for by in (found.wall, found.cpu))
    print(f"\n{machine()}\ntorch threads {torch.get_num_threads()}, encoder in {classifier.encoder.compute}, order {order}\n")
    print("| part | µs/tile | CPU µs/tile |\n|---|---|---|")
    for name in parts:
        print(f"| {name} | {spread(wall[name])} | {spread(cpu[name])} |")
    ours = list(parts)[2:]
    shares = [100 * sum(wall[name][i] for name in ours) / sum(wall[name][i] for name in parts) for i in range(len(wall["encoder"]))]
    print(f"\nselection and ledger: {spread(shares)} % of the pass, N = {N:,}, D = {DIM}, M = {M}, T = 1, H = {HEADS}, chunk {CHUNK}")
    print(f"an encoder of {median(sum(wall[n][i] for n in ours) for i in range(5)) / 0.02:.0f} µs a tile would make it 2 %")

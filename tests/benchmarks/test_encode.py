"""Tiles a second through an encoder on the CPU: plain torch, the module, and the inference engines, interleaved.

    OMP_NUM_THREADS=2 python -m pytest -m benchmark -s tests/benchmarks/test_encode.py

Baseline: what a plain script does, float32, NCHW, eager. Ratios are of one round each; median and range of 7.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from wsi_ips.config import EncoderSettings
from wsi_ips.engine.environment import cpu_flags
from wsi_ips.model.arithmetic import in_fixed_batches
from wsi_ips.model.encoder import Encoder, build_encoder
from wsi_ips.model.engines import make_engine

ROUNDS = 7
ENGINES = ["torch", *["openvino"][: importlib.util.find_spec("openvino") is not None]]


def _ways(encoder: Encoder, batch: int) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    plain = copy.deepcopy(encoder.net).to(memory_format=torch.contiguous_format)

    def baseline(tiles: torch.Tensor) -> torch.Tensor:
        x = (tiles.permute(0, 3, 1, 2).contiguous().float() / 255.0 - encoder.mean) / encoder.std
        return plain(x)

    ways = {"float32 NCHW eager": baseline, "module": lambda tiles: in_fixed_batches(encoder, tiles, batch)}
    return ways | {f"engine {name}": make_engine(encoder, name, batch).embed for name in ENGINES}


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("batch", [32, 64])
def test_engines_against_plain_torch(name: str, batch: int) -> None:
    """Prints a table."""
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(name=name, weights="none"), 224)
    tiles = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8)
    ways = _ways(encoder, batch)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with torch.inference_mode():
        for i in range(ROUNDS + 1):
            for way, run in ways.items():
                start = time.perf_counter()
                run(tiles)
                if i:  # the first round warms up
                    seconds[way].append(time.perf_counter() - start)
    base = np.array(seconds["float32 NCHW eager"])
    print(f"\n{name}, 224 px, batch {batch}, {torch.get_num_threads()} threads, {', '.join(cpu_flags())}, {ROUNDS} rounds\n")
    print("| way | tiles/s, median (min-max) | ratio, median (min-max) |\n|---|---|---|")
    for way, found in seconds.items():
        rate, ratio = batch / np.array(found), base / np.array(found)
        print(f"| {way} | {np.median(rate):.0f} ({rate.min():.0f}-{rate.max():.0f}) | {np.median(ratio):.1f} ({ratio.min():.1f}-{ratio.max():.1f}) |")

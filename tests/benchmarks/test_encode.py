"""Tiles a second through an encoder on the CPU: plain torch, the module, and the inference engines, interleaved.

    OMP_NUM_THREADS=2 python -m pytest -m benchmark -s tests/benchmarks/test_encode.py

Baseline: what a plain script does, float32, NCHW, eager. Ratios are of one round each; median and range of 7.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_slides import rows_of_tiles, write_kind
from table import machine, spread

from wsi_ips.config import EncoderSettings
from wsi_ips.engine.environment import cpu_flags
from wsi_ips.model.arithmetic import in_fixed_batches
from wsi_ips.model.encoder import Encoder, build_encoder
from wsi_ips.model.engines import make_engine
from wsi_ips.slide.reader import Slide, open_slide
from wsi_ips.tiles.stream import stream_tiles
from wsi_ips.tiles.tilegrid import TileGrid

ROUNDS = 7
N_STREAMED = {"resnet18": 640, "resnet50": 320}
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


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_pass_over_a_slide_against_the_same_tiles_in_memory(name: str, tmp_path: Path) -> None:
    """What reading beside the encoder costs it: streaming a slide into an engine against feeding it the same batches."""
    n_tiles, size_px = N_STREAMED[name], 224
    write_kind(tmp_path / "slide.tif", "420", n_tiles)
    sys.setswitchinterval(5e-5)  # as in a worker
    encoder = build_encoder(EncoderSettings(name=name, weights="none"), size_px)
    print(f"\n{machine()}\n\n{name}, up to {n_tiles} tiles of {size_px} px in chunks of 64, {ROUNDS} rounds in turn\n")
    print("| engine | ms/tile from memory | ms/tile with reading | wall over from memory |\n|---|---|---|---|")
    with open_slide(tmp_path / "slide.tif", 0.5) as slide:
        grid = rows_of_tiles(slide, 256, size_px, size_px, n_tiles)  # most straddle file tiles
        batches = [chunk.pixels.copy() for chunk in stream_tiles(slide, grid, chunk_size=64)]
        for engine in ENGINES:
            embed = make_engine(encoder, engine, 64).embed
            seconds: tuple[list[float], list[float]] = ([], [])
            for i in range(ROUNDS + 1):
                for place, source in enumerate((iter(batches), _pixels(slide, grid))):
                    start = time.perf_counter()
                    for pixels in source:
                        embed(torch.from_numpy(pixels))
                    if i:
                        seconds[place].append(time.perf_counter() - start)
            memory, reading = np.array(seconds)
            ms = (spread([1e3 * s / len(grid.coords) for s in one]) for one in (memory, reading))
            print(f"| {engine} | {' | '.join(ms)} | {spread(list(reading / memory))} |")


def _pixels(slide: Slide, grid: TileGrid) -> Iterator[np.ndarray]:
    return (chunk.pixels for chunk in stream_tiles(slide, grid, chunk_size=64, n_readers=1))

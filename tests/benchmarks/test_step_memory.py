"""Memory of a training step against M: the tiles of a step wait in a file, activations in micro-batches.

Figures: peak RSS of a process that does a step with M tiles of one slide, ResNet-18 at 224 px, on the CPU; on a GPU the
peak of what torch has allocated there in steps of 16 slides with M = 512.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_slides import tissue_palette, write_tiled_slide

_STEP = """
import resource, sys, torch
from wsi_ips.config import ReadSettings, load_settings
from wsi_ips.engine.progress import Reporter
from wsi_ips.engine.worker import make_deterministic
from wsi_ips.manifest import SlideRecord
from wsi_ips.recipe import FinetuneSettings
from wsi_ips.training.bags import PixelBags
from wsi_ips.training.loop import Loop, Setup
from wsi_ips.training.start import build_classifier
from wsi_ips.training.targets import Member
from wsi_ips.training.team import Team
make_deterministic(2)
slide, m, encoder, n_slides, device = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
s = load_settings(FinetuneSettings, {
    "model": {"encoder": {"name": encoder, "weights": "none"}, "selection": {"memory_size": m, "chunk_size": 16},
              "tile": {"mpp": 0.5}, "tasks": [{"classes": ["no", "yes"]}]},
    "train": {"epochs": 1, "batch_slides": n_slides, "micro_batch": 8},
})
bags = PixelBags(s.model, ReadSettings())
learn, notes = bags.plan([Member(SlideRecord(f"s{i}", slide, f"p{i}"), (float(i % 2),)) for i in range(n_slides)])
assert len(learn) == n_slides and learn[0].n_tiles >= 512, notes
classifier = build_classifier(s.model).to(device)
Loop(classifier, Setup(s.model, s.train, bags, Team(device)), Reporter("", 0, quiet=True)).run(learn, [])
on_gpu = device != "cpu"
print(torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def _peak_mib(slide: Path, m: int, encoder: str = "resnet18", n_slides: int = 1, device: str = "cpu") -> float:
    words = [sys.executable, "-c", _STEP, slide, m, encoder, n_slides, device]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 2**20


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """A slide of 560 tiles of 224 px."""
    path = tmp_path / "slide.tif"
    write_tiled_slide(path, 560, 224, tissue_palette())
    return path


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_m(slide: Path) -> None:
    """Prints a table of three runs in turn; M = 512 needs at most a tenth more than M = 16."""
    runs = [(_peak_mib(slide, 16), _peak_mib(slide, 512)) for _ in range(3)]
    print("\n    M   peak MiB, three runs")
    for m, peaks in zip((16, 512), zip(*runs, strict=True), strict=True):
        print(f"{m:5d}   {'  '.join(f'{p:8.1f}' for p in peaks)}")
    ratios = sorted(large / small for small, large in runs)
    print(f"ratio: median {ratios[1]:.3f} ({ratios[0]:.3f} to {ratios[2]:.3f})")
    assert ratios[1] <= 1.1


@pytest.mark.gpu
@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_sixteen_slides_of_512_tiles_fit_a_small_gpu(slide: Path) -> None:
    """Prints a table; under 3 GB with either encoder."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    peaks = {name: _peak_mib(slide, 512, name, 16, "cuda") for name in ("resnet18", "resnet50")}
    print("\nencoder    peak MiB on the GPU")
    for name, peak in peaks.items():
        print(f"{name:10s} {peak:8.1f}")
    assert max(peaks.values()) * 2**20 < 3e9

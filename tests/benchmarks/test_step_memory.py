"""Memory of a training step against M: the tiles of a step wait in a file, activations in micro-batches.

Figure: peak RSS of a process that does a step with M tiles of one slide, ResNet-18 at 224 px, on the CPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bench_slides import tissue_palette, write_tiled_slide

_STEP = """
import resource, sys
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
m = int(sys.argv[2])
s = load_settings(FinetuneSettings, {
    "model": {"encoder": {"weights": "none"}, "selection": {"memory_size": m, "chunk_size": 16}, "tile": {"mpp": 0.5},
              "tasks": [{"classes": ["no", "yes"]}]},
    "train": {"epochs": 1, "batch_slides": 1, "micro_batch": 8},
})
bags = PixelBags(s.model, ReadSettings())
learn, notes = bags.plan([Member(SlideRecord("a", sys.argv[1], "p"), (1.0,))])
assert learn and learn[0].n_tiles >= 512, notes
Loop(build_classifier(s.model), Setup(s.model, s.train, bags, Team()), Reporter("", 0, quiet=True)).run(learn, [])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_m(tmp_path: Path) -> None:
    """Prints a table; the promise is a spread within 10 %."""
    slide = tmp_path / "slide.tif"
    write_tiled_slide(slide, 560, 224, tissue_palette())
    rows = []
    for m in (16, 512):
        done = subprocess.run([sys.executable, "-c", _STEP, str(slide), str(m)], capture_output=True, text=True, check=True)
        rows.append((m, int(done.stdout.split()[-1])))
    print("\n    M   peak MiB")
    for m, peak in rows:
        print(f"{m:5d}   {peak / 2**20:8.1f}")
    print(f"spread {100 * (max(p for _, p in rows) / min(p for _, p in rows) - 1):.1f} %")

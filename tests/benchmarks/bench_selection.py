"""One training step on one image against its number of tiles: time, encoder forwards, memory; exact ledger and paper's loop.

    python tests/benchmarks/bench_selection.py                      a table: 900 to 10,000 tiles with the paper's encoder,
                                                                    50,176 and 250,000 with the small one; ten minutes
    python tests/benchmarks/bench_selection.py --sizes 900 3600     only these
    python tests/benchmarks/bench_selection.py --one 900 exact paper    one row as JSON, in this process

Every row is a process of its own, for its peak memory. An image is a black square with a few hundred marks, tiles of 50 px are
read lazily, M = I = 100, T = 4 tasks, H = 8 heads; no tile is encoded once for all. Selection is everything between the
encoder's embeddings and the chosen rows: projector, logits, ledger, softmax, top M.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (900, 3600, 10_000, 50_176, 250_000)
ENCODERS: dict[str, dict[str, Any]] = {
    "paper": {"name": "resnet18", "stages": 2},
    "small": {"name": "resnet10t", "stages": 3, "kwargs": {"channels": [8, 24, 56, 112], "stem_width": 4}},
}
TILE_PX, M, N_MARKS, N_STEPS = 50, 100, 300, 3
_ALL_PAPER = 10_000  # tiles up to which the paper's encoder takes part


def measure(n_tiles: int, mode: str, encoder: str, *, same_once: bool = False, n_steps: int | None = None) -> dict[str, Any]:
    """Do some steps on one image; medians of all but the first, which warms up."""
    import torch

    from wsi_ips.config import ReadSettings
    from wsi_ips.training.optimise import make_optimiser
    from wsi_ips.training.selecting import Moment, Picker
    from wsi_ips.training.start import build_classifier
    from wsi_ips.training.step import Batch, Learner
    from wsi_ips.training.team import Team

    settings, train, member, bags = _parts(n_tiles, mode, encoder, ReadSettings(same_once=same_once))
    classifier = build_classifier(settings).eval()
    (planned,), _ = bags.plan([member])
    picker, learner = Picker(bags, settings, train, None), Learner(bags, settings.tasks, train, Team(), None, 100)
    optimiser, clock = make_optimiser(classifier, train), _Clock()
    classifier.embed_tiles = clock.watch("encode", classifier.embed_tiles)  # type: ignore[method-assign]
    classifier.scan = clock.watch("select", classifier.scan)  # type: ignore[method-assign]
    picker._best = clock.watch("select", picker._best)  # type: ignore[method-assign]
    rows = []
    for step in range(1 + (n_steps or (N_STEPS if n_tiles <= _ALL_PAPER else 1))):
        before, clock.seconds = bags.n_encoded, {"encode": 0.0, "select": 0.0}
        start, moment = time.perf_counter(), Moment(1, 0, M, step)
        pick = picker.pick(planned, classifier.eval(), moment)
        learner.step(classifier, optimiser, Batch([planned], [pick], [moment], np.array([member.targets])))
        seconds = time.perf_counter() - start
        rows.append((1e3 * seconds, 100 * clock.seconds["select"] / seconds, bags.n_encoded - before + 2 * len(pick.rows)))
    ms, share, forwards = np.median(rows[1:], axis=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"n_tiles": n_tiles, "mode": mode, "encoder": encoder, "ms": ms, "share": share, "forwards": int(forwards),
            "peak_mib": peak, "ledger_mib": n_tiles * (4 * 4 * 8 + 24) / 2**20, "threads": torch.get_num_threads()}  # fmt: skip


class _Clock:
    """Seconds spent in functions; `select` leaves out what `encode` took inside of it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return watched


def _parts(n_tiles: int, mode: str, encoder: str, read: Any) -> tuple[Any, Any, Any, Any]:
    """Settings of model and training, the image's row, and where its tiles come from."""
    from wsi_ips.config import ModelSettings, load_settings
    from wsi_ips.manifest import SlideRecord
    from wsi_ips.recipe import TrainSettings
    from wsi_ips.slide.sparseslide import SparseSlide
    from wsi_ips.training.bags import PixelBags
    from wsi_ips.training.held import HeldSlides
    from wsi_ips.training.targets import Member

    across = round(n_tiles**0.5)
    if across * across != n_tiles:
        raise SystemExit(f"{n_tiles} tiles make no square; take a square number")
    ten = [str(k) for k in range(10)]
    settings = load_settings(ModelSettings, {
        "encoder": {"weights": "none", "in_channels": 1} | ENCODERS[encoder], "attention": {"dim": 128, "n_heads": 8},
        "selection": {"mode": mode, "memory_size": M, "chunk_size": M}, "tile": {"size_px": TILE_PX, "mpp": 1.0},
        "tissue": {"method": "whole"},
        "tasks": [{"name": f"t{t}", "kind": "multiclass", "classes": ten} for t in range(4)],
    })  # fmt: skip
    train = TrainSettings(precision="float32", augment={"flips": False, "turns": False})
    side, rng = across * TILE_PX, np.random.default_rng(0)
    marks = [(int(x), int(y), rng.integers(1, 256, (28, 28, 1), dtype=np.uint8)) for x, y in rng.integers(0, side - 28, (N_MARKS, 2))]
    bags = PixelBags(settings, read, slides=HeldSlides(0.0, lambda _: SparseSlide((side, side), marks)))
    return settings, train, Member(SlideRecord("image", "image", "p"), (1.0, 2.0, 3.0, 4.0)), bags


def in_a_process(*words: str) -> dict[str, Any]:
    """Measure one row in a new process."""
    done = subprocess.run([sys.executable, __file__, "--one", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Write rows as a table."""
    lines = ["| tiles | encoder | selection | ms a step | encoder forwards | selection, % of the step | peak MiB | of it ledger |", f"|{'---|' * 8}"]
    lines += [f"| {r['n_tiles']:,} | {r['encoder']} | {r['mode']} | {r['ms']:,.0f} | {r['forwards']:,} | {r['share']:.2f} | {r['peak_mib']:,.0f} | "
              f"{r['ledger_mib']:.1f} |" for r in rows]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Print the table, or one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of tiles, each a square")
    parser.add_argument("--one", nargs="+", metavar="WORD", help="tiles, mode (exact or ips), encoder, and `once` to encode equal tiles once")
    arguments = parser.parse_args()
    if arguments.one:
        n_tiles, mode, encoder, *more = arguments.one
        print(json.dumps(measure(int(n_tiles), mode, encoder, same_once="once" in more)))
        return
    sys.path.insert(0, str(Path(__file__).parent))
    from table import machine

    rows = []
    for n in arguments.sizes:
        for mode in ("exact", "ips"):
            rows.append(in_a_process(str(n), mode, "paper" if n <= _ALL_PAPER else "small"))
            print(f"{n} {mode}: {rows[-1]['ms']:.0f} ms", file=sys.stderr)
    print(f"{machine()}\ntorch threads {rows[0]['threads']}; one image a step, median of up to {N_STEPS} steps\n\n{table(rows)}")


if __name__ == "__main__":
    main()

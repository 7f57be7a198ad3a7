"""What breast mosaics allow at best: the encoder of `pipelines/idc_mosaics.py`, learned from the tiles' own labels.

    python tests/benchmarks/bench_known_tiles.py --draws 0 1

The training patients of a draw, their tiles labelled one by one: an answer that slide labels can hardly beat. Printed a
draw: AUROC of the test patients' tiles within each patient, and of the mosaics when a slide's score is the mean of its five
highest tiles. Where this is low, the tiles of unseen patients are hard, not the learning from slide labels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.modules.batchnorm import _BatchNorm

from wsi_ips.config import load_settings
from wsi_ips.model.encoder import build_input
from wsi_ips.recipe import FinetuneSettings
from wsi_ips.stats.metrics import auroc_interval
from wsi_ips.training.augment import augment_tiles

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
sys.path.insert(0, str(PIPELINES))

import idc_mosaics as mosaics  # noqa: E402
from benchmarking import auroc, data_folder, deal_folds  # noqa: E402

EPOCHS, BATCH, RATE, N_TOP = 30, 64, 3e-3, 5


def learn(tiles: np.ndarray, is_tumour: np.ndarray, seed: int) -> torch.nn.Sequential:
    """Train encoder and one linear layer on labelled tiles (n, S, S, 3) uint8."""
    settings = load_settings(FinetuneSettings, PIPELINES / "configs" / "idc_mosaics.yaml")
    torch.manual_seed(seed)
    encoder = build_input(settings.model.encoder, mosaics.TILE_PX)
    net = torch.nn.Sequential(encoder, torch.nn.Linear(encoder.width, 1))
    net.requires_grad_(True)
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.05)
    steps = EPOCHS * (len(tiles) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    draws, y = torch.Generator().manual_seed(seed), torch.from_numpy(is_tumour).float()
    rarity = (1.0 - y).sum() / y.sum()
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        net.train()
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.train()  # the package keeps them frozen; here the tiles are an even sample
        if len(order) < BATCH:
            order = torch.randperm(len(tiles), generator=draws)
        rows, order = order[:BATCH], order[BATCH:]
        x = augment_tiles(torch.from_numpy(tiles[rows.numpy()]), settings.train.augment, draws)
        loss = binary_cross_entropy_with_logits(net(x)[:, 0].float(), y[rows], pos_weight=rarity)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


@torch.inference_mode()
def scored(net: torch.nn.Sequential, tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Logits (n,) of tiles."""
    if not len(tiles):
        return np.empty(0)
    parts = torch.from_numpy(np.stack(tiles)).split(256)
    return torch.cat([net(p)[:, 0].float() for p in parts]).numpy()


def draw(pools: dict[str, mosaics.Pool], seed: int) -> str:
    """One line for a draw of patients, slides and training."""
    part = deal_folds({p: bool(pool[True]) for p, pool in pools.items()}, 10, seed)
    side = {p: mosaics.SIDES.get(part[p], "train") for p in pools}
    known = [(tile, is_tumour) for p, pool in pools.items() if side[p] == "train" for is_tumour in pool for tile in pool[is_tumour]]
    net = learn(np.stack([tile for tile, _ in known]), np.array([t for _, t in known]), seed)
    within, truth, score, patients = [], [], [], []
    for number, (patient, pool) in enumerate(sorted(pools.items())):
        if side[patient] != "test":
            continue
        if pool[True]:
            z = {t: scored(net, pool[t]) for t in pool}
            within.append(auroc(np.repeat([False, True], [len(z[False]), len(z[True])]), np.concatenate([z[False], z[True]])))
        rng = np.random.default_rng([seed, number])
        for is_positive in [True, False] * mosaics.PAIRS if pool[True] else [False] * mosaics.PAIRS:
            tiles, _ = mosaics.deal_slide(pool, rng, is_positive=is_positive)
            truth.append(is_positive)
            score.append(float(np.sort(scored(net, tiles))[-N_TOP:].mean()))
            patients.append(patient)
    slides = auroc_interval(np.array(truth), np.array(score), patients)
    return (f"draw {seed}: {len(known)} labelled tiles; within {len(within)} test patients, mean tile AUROC {np.mean(within):.3f}; "
            f"{slides.n} slides, AUROC {slides.value:.3f} ({slides.low:.3f} to {slides.high:.3f})")  # fmt: skip


def main() -> None:
    """Print a line a draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of data sets; default WSI_IPS_DATA or ../shared/data")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    pools = mosaics.read_pools(data_folder(arguments.data, "idc_tiles"))
    for seed in arguments.draws:
        print(draw(pools, seed), flush=True)


if __name__ == "__main__":
    main()

"""What the field does, written out: the alternative that every ratio of this project is measured against.

A tile is one `read_region` of OpenSlide, turned to RGB by PIL, to a float tensor by torchvision, normalised by itself; a
`Dataset` in a `DataLoader` collates tiles to float batches; the encoder is a float32 torch model in NCHW, in eval and
inference mode. So do CLAM, TRIDENT and the examples of torch. Nothing here is slower than it has to be: coordinates are
at hand (no HDF5 is opened for each tile), handles are opened once a process, threads are as torch sets them.

n: tiles of a batch, S: `size_px`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import openslide
import timm
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

__all__ = ["PatternDataset", "encode_pattern", "pattern_encoder", "pattern_loader", "pattern_transform", "read_tiles_pattern"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pattern_transform(read_px: int, size_px: int) -> transforms.Compose:
    """PIL picture to normalised (3, S, S) float32, resized by PIL (bilinear, antialiased) where the read size differs."""
    steps = [] if read_px == size_px else [transforms.Resize((size_px, size_px))]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)])


def read_tiles_pattern(
    path: str | Path, coords: np.ndarray, level: int, read_px: int, size_px: int
) -> Iterator[torch.Tensor]:
    """Read tiles one by one in this process: (3, S, S) float32 each.

    Args:
        path: slide.
        coords: (N, 2) top-left corners, level-0 px.
        level: of the file.
        read_px: side of what is read, px of that level.
        size_px: S.
    """
    dataset = PatternDataset(path, coords, level, read_px, size_px)
    return (dataset[i] for i in range(len(dataset)))


class PatternDataset(Dataset[torch.Tensor]):
    """Tiles of a slide; the handle is opened where it is used. For arguments see `read_tiles_pattern`."""

    def __init__(self, path: str | Path, coords: np.ndarray, level: int, read_px: int, size_px: int) -> None:
        self._path, self._coords, self._level, self._read_px = str(path), coords, level, read_px
        self._transform = pattern_transform(read_px, size_px)
        self._slide: openslide.OpenSlide | None = None  # opened in the worker: a handle cannot travel

    def __len__(self) -> int:
        return len(self._coords)

    def __getitem__(self, i: int) -> torch.Tensor:
        if self._slide is None:
            self._slide = openslide.OpenSlide(self._path)
        x0, y0 = (int(v) for v in self._coords[i])
        tile = self._slide.read_region((x0, y0), self._level, (self._read_px, self._read_px)).convert("RGB")
        found: torch.Tensor = self._transform(tile)
        return found


def pattern_loader(
    path: str | Path, coords: np.ndarray, level: int, read_px: int, size_px: int, *, batch: int = 32, n_workers: int = 0
) -> DataLoader[torch.Tensor]:
    """Collate tiles to batches (n, 3, S, S) float32, in this process or in `n_workers` others; see `read_tiles_pattern`."""
    return DataLoader(PatternDataset(path, coords, level, read_px, size_px), batch_size=batch, num_workers=n_workers)


def pattern_encoder(name: str) -> torch.nn.Module:
    """Make an encoder of timm with random weights, pooled, float32, NCHW, in eval mode."""
    return timm.create_model(name, pretrained=False, num_classes=0).eval()


@torch.inference_mode()
def encode_pattern(encoder: torch.nn.Module, batches: Iterable[torch.Tensor]) -> np.ndarray:
    """Encode batches (n, 3, S, S) float32: (N, D) float32."""
    return torch.cat([encoder(batch) for batch in batches]).numpy()

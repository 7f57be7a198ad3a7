"""How one worker reads and encodes: chosen when it starts, watched while it works, told afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from wsi_ips.config import ReadSettings
from wsi_ips.engine.gpudecode import TileDecoder
from wsi_ips.engine.microbatch import bytes_a_tile, choose_batch
from wsi_ips.engine.passtools import PassTools
from wsi_ips.engine.tuning import ReaderTuner, chunks_ahead, reader_range
from wsi_ips.model.ensemble import Classifier

__all__ = ["choose_style", "pace_of"]


def choose_style(classifier: Classifier, read: ReadSettings, machine: Mapping[str, Any]) -> PassTools:
    """Choose what all passes of a worker have in common; see `SlideWorker` for `machine`."""
    device, is_detailed = str(machine["device"]), bool(machine.get("profile"))
    if not classifier.takes_tiles:
        return PassTools(is_detailed=is_detailed)
    tuner = None if read.n_readers else ReaderTuner(*reader_range(machine.get("cores", 2), device))
    tile_bytes = bytes_a_tile(classifier)
    batch = choose_batch(classifier, tile_bytes, machine.get("memory_bytes"), machine.get("workers", 1))
    decoder = TileDecoder(str(machine["decode_device"])) if machine.get("decode_device") else None
    return PassTools(is_detailed=is_detailed, tuner=tuner, batch=batch, tile_bytes=tile_bytes, decoder=decoder,
                     ahead=chunks_ahead(read, _chunk_bytes(classifier), device),
                     allocate=_pinned if classifier.device.type == "cuda" else None)  # fmt: skip


def pace_of(classifier: Classifier, read: ReadSettings, tools: PassTools, n_tiles: int) -> dict[str, Any]:
    """Tell how a slide was read and encoded; see `describe_pace`.

    Args:
        classifier: that encoded it.
        read: as stated.
        tools: of its pass.
        n_tiles: that were read and encoded.
    """
    used, seconds = tools.tuned(read), tools.clock.seconds()
    chunk = classifier.settings.selection.chunk_size
    batch = tools.batch or chunk
    held = (used.chunks_ahead + 2) * _chunk_bytes(classifier) + batch * tools.tile_bytes
    decoder = {"decoder": tools.decoding.note} if tools.decoding and tools.decoding.note else {}
    in_pass = seconds["idle"] + seconds["encode"] + seconds["select"]
    return {
        "readers": used.readers, "chunks_ahead": used.chunks_ahead, "chunk": chunk, "batch": batch,
        "decode_ms": round(1000 * tools.decode_seconds / n_tiles, 3), "encode_ms": round(1000 * seconds["encode"] / n_tiles, 3),
        "waited": round(seconds["idle"] / max(1e-9, in_pass), 3), "batches_gib": round(held / 2**30, 3),
    } | decoder  # fmt: skip


def _pinned(shape: tuple[int, ...]) -> np.ndarray:
    """Make zeros in memory that a GPU reads by itself, beside its computing."""
    return torch.zeros(shape, dtype=torch.uint8, pin_memory=True).numpy()


def _chunk_bytes(classifier: Classifier) -> int:
    s = classifier.settings
    return s.selection.chunk_size * s.tile.size_px**2 * s.encoder.in_channels

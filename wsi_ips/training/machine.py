"""What a training runs on and with, and how it meets the machine's limits; none of it decides the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from wsi_ips.config import ReadSettings
from wsi_ips.engine.embeddings import EmbeddingCache
from wsi_ips.engine.environment import is_out_of_memory
from wsi_ips.engine.progress import Reporter
from wsi_ips.errors import ModelError
from wsi_ips.training.held import HeldSlides
from wsi_ips.training.team import Team

__all__ = ["Machine", "computing_with", "memory_told"]


class Machine(NamedTuple):
    """Readers, cache, processes, voice."""

    read: ReadSettings
    cache: EmbeddingCache | None
    team: Team
    reporter: Reporter
    slides: HeldSlides


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Compute with so many threads.

    A head's tensors are small: two threads are no faster alone, and ten times slower beside any other job.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def memory_told(name: str, chunk_size: int) -> Iterator[None]:
    """Say what to change when tiles that are only scored do not fit: a chunk has no smaller size to fall back to.

    Args:
        name: of the training.
        chunk_size: tiles scored at a time.

    Raises:
        ModelError: `E_MEMORY`, instead of torch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(f"{name}: memory gives out while {chunk_size} tiles are scored at a time; use a smaller "
                         "selection.chunk_size or encoder, or another device", "E_MEMORY") from error  # fmt: skip

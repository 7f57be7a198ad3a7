"""How a worker reads and encodes, chosen for the machine: what changes bits by memory alone, what does not by time.

* Micro-batch (tiles through the encoder at once): the model's chunk, halved until its activations fit into the memory a
  worker may use. Two batch sizes can differ in last bits, so it follows from limits, model and number of workers, never
  from a clock or from what happens to be free. It is part of an embedding's name in the cache.
* Reader threads: few at first, doubled while the encoder is found waiting for pixels. Watching the pass itself was
  preferred to a trial before it: nothing is read in vain, a slide that turns slow on its way is noticed too, and a
  wrong guess mends itself.
* Chunks (tiles handed over at a time) are the model's: the paper's selection depends on them, and so does how many
  selected tiles are encoded twice, which the ledger tells.

What the user states goes before all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from wsi_ips.config import ReadSettings

__all__ = ["ReaderTuner", "chunks_ahead", "describe_pace", "fitting_batch", "host_budget", "machine_memory", "reader_range",
           "worker_memory"]  # fmt: skip

_WAITS = 0.15  # share of a window that the encoder may wait before more threads read
_WINDOW_SECONDS, _WINDOW_CHUNKS = 0.25, 4
_MOST_READERS = 8  # beyond that decoding threads get into each other's way
_OF_STATED, _OF_MACHINE = 0.5, 0.25  # share of a worker's memory for what the encoder holds; the rest reads, draws, keeps the ledger
_OF_WORKERS = 0.8  # share of the memory for all worker processes; the rest is the leader's, the system's, and room for a leap
_LEAST_FOR_WORKER = 4 << 30  # however many there are: an ordinary slide takes one or two
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int:
    """Bytes that this machine, or the control group, has in all, used or not."""
    total = int(psutil.virtual_memory().total)
    for path in (*_CGROUP_LIMITS, *_own_limits()):
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue  # no such group, or "max"
    return total


def _own_limits(listed: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[str]:
    """Name the limits of this process's own control group and those above it: job schedulers set them there."""
    try:
        own = next(line.partition("::")[2] for line in listed.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    group = root / own.strip("/")
    return [str(g / "memory.max") for g in (group, *group.parents) if g.is_relative_to(root)]


def worker_memory(n_workers: int) -> int:
    """Bytes that a worker process may grow to where nothing was stated: its part of four fifths of all there is.

    Many workers on little memory may have 4 GiB each, for they will not all need it at a time.
    """
    whole = int(_OF_WORKERS * machine_memory())
    return max(whole // max(1, n_workers), min(whole, _LEAST_FOR_WORKER))


def host_budget(memory_bytes: int | None, n_workers: int) -> int:
    """Bytes that one worker's encoder may hold: half of what a worker is allowed, else its part of a quarter of all."""
    return int(_OF_STATED * memory_bytes) if memory_bytes else int(_OF_MACHINE * machine_memory() / n_workers)


def fitting_batch(chunk_size: int, bytes_a_tile: int, budget_bytes: int) -> int:
    """Halve the chunk until a batch fits, down to one tile.

    >>> fitting_batch(64, 10, 639), fitting_batch(33, 10, 200), fitting_batch(8, 10, 0)
    (32, 16, 1)
    """
    batch = chunk_size
    while batch > 1 and batch * bytes_a_tile > budget_bytes:
        batch //= 2
    return batch


def reader_range(cores: int, device: str) -> tuple[int, int]:
    """Reader threads to begin with, and at most: on a CPU the encoder needs the cores, a GPU needs the pixels."""
    most = max(1, min(_MOST_READERS, cores))
    return (1 if device == "cpu" else min(4, most)), most


def chunks_ahead(read: ReadSettings, chunk_bytes: int, device: str) -> int:
    """Chunks read ahead: what was stated, else 2, for a GPU 4; fewer where they would take more than an eighth of free memory."""
    if read.read_ahead:
        return read.read_ahead
    wanted, free = (2 if device == "cpu" else 4), int(psutil.virtual_memory().available)
    while wanted > 1 and 8 * (wanted + 2) * chunk_bytes > free:
        wanted -= 1
    return wanted


@dataclass
class ReaderTuner:
    """Watches a worker's passes and says how many threads should read; mutable, from slide to slide."""

    n_readers: int
    most: int
    _idle: float = field(default=0.0, init=False)
    _seconds: float = field(default=0.0, init=False)
    _chunks: int = field(default=0, init=False)

    def note(self, idle: float, seconds: float) -> int:
        """Take in a chunk: seconds it was waited for, and seconds from the one before it; give the number of threads."""
        self._idle, self._seconds, self._chunks = self._idle + idle, self._seconds + seconds, self._chunks + 1
        if self._chunks >= _WINDOW_CHUNKS and self._seconds >= _WINDOW_SECONDS:
            if self._idle > _WAITS * self._seconds:
                self.n_readers = min(self.most, 2 * self.n_readers)
            self.begin()
        return self.n_readers

    def begin(self) -> None:
        """Forget the window: another pass, whose first chunk is always waited for."""
        self._idle, self._seconds, self._chunks = 0.0, 0.0, 0


def describe_pace(pace: dict[str, Any]) -> str:
    """Say how a slide was read and encoded, in one line."""
    limits = "decoding" if pace["waited"] > _WAITS else "encoding"
    threads = "1 thread" if pace["readers"] == 1 else f"{pace['readers']} threads"
    batch = f", {pace['batch']} at a time through the encoder" if pace["batch"] != pace["chunk"] else ""
    decoder = f"; {pace['decoder']}" if "decoder" in pace else ""
    return (f"reading with {threads}, chunks of {pace['chunk']}{batch}, {pace['decode_ms']:.1f} ms to decode and {pace['encode_ms']:.1f} ms "
            f"to encode a tile: {limits} limits; about {pace['batches_gib']:.2f} GiB of batches{decoder}")  # fmt: skip

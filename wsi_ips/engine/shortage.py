"""A GPU whose memory gives out: smaller batches until they fit, and words for who holds the memory when none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wsi_ips.model.engines import set_engine
from wsi_ips.model.ensemble import Classifier

__all__ = ["SizedEngine", "explain_shortage", "release_memory", "smaller_batch"]


class SizedEngine:
    """The engine of a worker, which can be made anew for fewer tiles at once.

    Args:
        classifier, engine, place: see `set_engine`.
        batch: tiles at once, to begin with.
    """

    def __init__(self, classifier: Classifier, engine: dict[str, Any], place: Path | None, batch: int | None) -> None:
        self._classifier, self._place, self.batch = classifier, place, batch
        self.name, self.note = set_engine(classifier, engine, place, batch)

    def use(self, batch: int | None) -> None:
        """Take another number of tiles at once."""
        if batch != self.batch:
            self.batch = None  # should memory give out here, there is no engine until the next try
            set_engine(self._classifier, {"name": self.name, "or_torch": False}, self._place, batch)
            self.batch = batch


def smaller_batch(error: BaseException, classifier: Classifier, batch: int | None) -> int | None:
    """Halve the tiles that go through the encoder at once; None where that does not help or would change the method.

    Args:
        error: that ended the pass; only a GPU's memory is worth another pass, what reads and draws takes none of it.
        classifier: whose paper's loop, if it is asked for, scores whole chunks.
        batch: what was too much.
    """
    is_fixed = not classifier.takes_tiles or classifier.settings.selection.mode == "ips"
    return None if is_fixed or not _is_of_gpu(error) or not batch or batch < 2 else batch // 2


def release_memory() -> None:
    """Give back what torch keeps of a GPU for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def explain_shortage(error: BaseException, device: str, batch: int | None) -> tuple[str, str]:
    """Give the code and the sentence for a slide that does not fit into memory.

    Args:
        error: torch's or numpy's.
        device: of the worker.
        batch: tiles at once in the last try.
    """
    said = (str(error) or "all of it").splitlines()[0]
    if not _is_of_gpu(error):
        return "E_MEMORY", f"memory is used up: {said}; make selection.chunk_size smaller"
    tries = f" with {batch} {'tile' if batch == 1 else 'tiles'} at a time" if batch else ""
    return "E_GPU_MEMORY", f"the GPU's memory is used up{tries}: {said}{_who_holds(device)}; free it, or use --device cpu, then --retry-failed"


def _who_holds(device: str) -> str:
    """Say how the GPU's memory is shared out."""
    if not device.startswith("cuda"):
        return ""
    try:
        free, total = torch.cuda.mem_get_info(device)
        own = int(torch.cuda.memory_reserved(device))
    except (RuntimeError, AssertionError):  # the driver answers no more
        return ""
    gib = [f"{n / 2**30:.1f}" for n in (total, own, max(0, total - free - own), free)]
    return f"; of {gib[0]} GiB this worker holds {gib[1]}, other programs {gib[2]}, and {gib[3]} are free"


def _is_of_gpu(error: Any) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "CUDA error: out of memory" in str(error)

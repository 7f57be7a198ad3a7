"""Last time's embeddings of every training slide, on disk: one file a slide and step, so that a checkpoint can name
the state it belongs to and a restart finds exactly that.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from wsi_ips.files import write_whole

__all__ = ["StaleStore"]


class StaleStore:
    """Embeddings (N, W) float16 by slide id; mutable.

    Args:
        folder: of the training; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tags: dict[str, int] = {}  # slide id -> step of the file that counts

    def get(self, slide_id: str) -> np.ndarray | None:
        """Last embeddings; None where there are none yet."""
        if slide_id not in self._tags:
            return None
        return np.load(self._path(slide_id, self._tags[slide_id]), allow_pickle=False)

    def put(self, slide_id: str, embeddings: np.ndarray, tag: int) -> None:
        """Keep embeddings of a step; the older file stays until `prune`, for the last checkpoint names it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, embeddings, allow_pickle=False)
        write_whole(self._path(slide_id, tag), buffer.getvalue())
        self._tags[slide_id] = tag

    def state(self) -> dict[str, int]:
        """What a checkpoint must remember."""
        return dict(self._tags)

    def restore(self, state: dict[str, int]) -> None:
        """Go back to a checkpoint."""
        self._tags = dict(state)

    def prune(self) -> None:
        """Delete files that the present state does not name; call it after the checkpoint is written."""
        keep = {self._path(slide_id, tag).name for slide_id, tag in self._tags.items()}
        for path in self._folder.glob("*.npy") if self._folder.is_dir() else ():
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def _path(self, slide_id: str, tag: int) -> Path:
        # slide ids may be long or differ in case alone; a hash is a safe file name everywhere
        return self._folder / f"{hashlib.sha256(slide_id.encode()).hexdigest()[:24]}.{tag:012d}.npy"

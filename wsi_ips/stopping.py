"""Disks and folders that give out: the run stops with a sentence and the cure, and what is finished stays."""

from __future__ import annotations

import errno
from pathlib import Path

from wsi_ips import files
from wsi_ips.errors import StoppedError

__all__ = ["stopped", "write_whole"]

_WHY = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EROFS: "it is read-only",
        errno.ESTALE: "the network mount went stale", errno.ENOENT: "the folder is gone",
        errno.EACCES: "permission was denied", errno.EIO: "the disk reports an input/output error"}  # fmt: skip


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        StoppedError: the environment gave out; nothing half-made stays behind.
    """
    try:
        files.write_whole(path, data)
    except OSError as error:
        raise stopped(path, error) from error


def stopped(path: Path, error: OSError) -> StoppedError:
    """Say what gave out at a path, and what to do."""
    why = _WHY.get(error.errno or 0, error.strerror or str(error))
    return StoppedError(
        f"{path}: cannot be written: {why}. Finished slides are kept; cure it and run the same command again"
    )

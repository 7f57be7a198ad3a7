"""The state of a training between two steps, whole or not there: tensors and plain values, nothing executable.

A restart with the same settings and slides goes on from it to the very same weights (on a CPU): every draw depends on
seed, epoch and slide alone, so no state of a generator has to be kept.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsi_ips.errors import ModelError, StoppedError
from wsi_ips.files import write_whole

__all__ = ["read_checkpoint", "write_checkpoint"]

_VERSION = 1


def write_checkpoint(path: Path, identity: str, state: dict[str, Any]) -> None:
    """Replace the checkpoint.

    Args:
        path: file to write.
        identity: hash of what the training is; another training does not go on from it.
        state: tensors, numbers, text, lists and dicts of them.

    Raises:
        StoppedError: it cannot be written (disk full, quota); the older checkpoint stays.
    """
    buffer = io.BytesIO()
    torch.save({"version": _VERSION, "identity": identity, "state": _plain(state)}, buffer)
    try:
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise StoppedError(f"{path}: the checkpoint cannot be written ({error.strerror}); make room and start the same "
                           "command again") from error  # fmt: skip


def read_checkpoint(path: Path, identity: str) -> dict[str, Any] | None:
    """Read a checkpoint back; None when there is none.

    Raises:
        ModelError: damaged, of a newer version, or of another training.
    """
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        version, whose, state = int(found["version"]), str(found["identity"]), dict(found["state"])
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: is damaged, or no checkpoint; delete it to start this training from the beginning") from error
    if version > _VERSION:
        raise ModelError(f"{path}: version {version} needs a newer wsi-ips (this one reads {_VERSION})")
    if whose != identity:
        raise ModelError(f"{path}: belongs to another training (other slides, labels, settings, seed or start); choose "
                         "another --out, or delete the folder to begin anew")  # fmt: skip
    return state


def _plain(value: Any) -> Any:
    """Turn numpy's numbers into Python's: a file that runs no code can hold nothing else."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value

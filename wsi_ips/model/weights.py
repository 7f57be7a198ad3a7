"""Weights out of files: no code is run, nothing is dropped in silence, every number is finite.

Weights are safetensors, and what a file is, is decided by its content. A torch file is a pickle, whatever its name: it
is refused with the command that makes safetensors of it (`pickles.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wsi_ips.errors import ModelError
from wsi_ips.results import sha256_file

__all__ = ["check_finite", "is_pickle", "load_strict", "read_state", "some"]

_SHOWN = 8  # names listed in a message
_PICKLES = (b"PK\x03\x04", b"PK\x05\x06", b"\x80")  # torch's archive, or a bare pickle of protocol 2 and above


def is_pickle(path: Path) -> bool:
    """Tell by its content whether a file is, or may hold, a pickle.

    Raises:
        ModelError: no such file, or one that cannot be read.
    """
    head = _head(path)
    return head.startswith(_PICKLES) and not _is_framed(path, head)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a safetensors file.

    A file of its SHA-256 beside it (`NAME.sha256`, as `model import` writes) must agree.

    Raises:
        ModelError: missing, truncated, changed, or another kind of file.
    """
    head = _head(path)
    if is_pickle(path):
        raise ModelError(
            f"{path}: is a torch file (a pickle) by its content, and opening one could run code. Where you know its source, "
            f"`wsi-ips model import --trust {path} --out {path.parent}` makes safetensors of it; then name that file"
        )
    if not _is_framed(path, head):
        raise ModelError(f"{path}: is not a complete safetensors file; copy it again")
    _check_stated_hash(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: is not a complete safetensors file ({error}); copy it again") from error


def load_strict(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Copy tensors into a module: every name and shape must agree, every number be finite.

    Raises:
        ModelError: lists missing, unexpected and misshapen names; the cure for a `module.` prefix.
    """
    want = {key: tuple(t.shape) for key, t in module.state_dict().items()}
    # files older than torch 0.4.1 lack this counter, which no forward pass reads
    missing = [key for key in want if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in want]
    shapes = [
        f"{key} {tuple(t.shape)} in the file, {want[key]} in the model"
        for key, t in state.items() if key in want and tuple(t.shape) != want[key]
    ]  # fmt: skip
    if extra and all(key.startswith("module.") for key in state):
        raise ModelError(
            f"{name}: all names start with 'module.' (saved from a DataParallel wrapper); "
            f"`wsi-ips model import {name} --out FOLDER` takes that off"
        )
    parts = [("missing", missing), ("unexpected", extra), ("of another shape", shapes)]
    if any(names for _, names in parts):
        text = "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in parts if names)
        raise ModelError(f"{name}: the weights do not belong to this model. {text}")
    check_finite(state, name)
    module.load_state_dict(dict(state), strict=not any(key not in state for key in want))


def check_finite(state: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        ModelError: names the first such tensor.
    """
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(f"{name}: tensor {key!r} holds {bad} numbers that are not finite", "E_NOT_FINITE")


def some(names: list[str]) -> str:
    """List the first names of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _head(path: Path) -> bytes:
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights")
    try:
        with path.open("rb") as f:
            return f.read(9)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error


def _is_framed(path: Path, head: bytes) -> bool:
    """Tell the frame of safetensors: the length of a JSON object, which may begin with any byte, and its bracket."""
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= path.stat().st_size


def _check_stated_hash(path: Path) -> None:
    try:
        stated = path.with_name(path.name + ".sha256").read_text(encoding="ascii").split()[:1]
    except (OSError, ValueError):  # none, or of another kind
        return
    if stated and stated[0].lower() != (found := sha256_file(path)):
        raise ModelError(
            f"{path}: changed or damaged: its SHA-256 {found[:12]}.. is not the {stated[0][:12]}.. of {path.name}.sha256"
        )

"""Weights out of files: no code is run, nothing is dropped in silence, every number is finite.

What a file is, is decided by its content: safetensors, or a torch archive read with `weights_only=True`.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wsi_ips.errors import ModelError

__all__ = ["check_finite", "load_strict", "read_state"]

_MAX_BYTES = 32 << 30  # no encoder of today is larger; a crafted archive may claim more
_SHOWN = 8  # names listed in a message


def read_state(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a .safetensors or .pt file without running code from it.

    Raises:
        ModelError: missing, truncated, compressed, pickled objects, or no plain mapping of names to tensors.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights")
    try:
        with path.open("rb") as f:
            head = f.read(9)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error})") from error
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return _plain_state(path, _read_torch(path))
    if len(head) < 9 or head[8:9] != b"{" or struct.unpack("<Q", head[:8])[0] > path.stat().st_size:
        raise ModelError(f"{path}: is not a complete safetensors file, nor a torch archive; copy it again")
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
            "save `model.module.state_dict()` instead"
        )
    parts = [("missing", missing), ("unexpected", extra), ("of another shape", shapes)]
    if any(names for _, names in parts):
        text = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in parts if names)
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


def _read_torch(path: Path) -> Any:
    if path.stat().st_size > _MAX_BYTES:
        raise ModelError(f"{path}: {path.stat().st_size} bytes are more than any known encoder's weights")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch stores its archives uncompressed: anything else may unfold without bound
                if any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
                    raise ModelError(f"{path}: a compressed archive is refused; save it with torch.save or safetensors")
        with path.open("rb") as f:  # a name would let its ending decide how it is read
            return torch.load(f, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: holds more than tensors and plain values, so opening it could run code; where it came from, "
            "save `model.state_dict()` as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: is not a complete torch file ({type(error).__name__}); copy it again") from error


def _plain_state(path: Path, data: Any) -> dict[str, Tensor]:
    if isinstance(data, Mapping) and data and all(isinstance(v, Tensor) for v in data.values()):
        return {str(key): value for key, value in data.items()}
    found = _some([str(k) for k in data]) if isinstance(data, Mapping) else type(data).__name__
    raise ModelError(f"{path}: expected a mapping of names to tensors, found {found}; save the state dict alone")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

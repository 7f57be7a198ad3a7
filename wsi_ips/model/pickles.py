"""Torch files read once, to become safetensors: the only door by which weights come out of a pickle.

Even here nothing in the file is run: torch's restricted unpickler (`weights_only=True`) makes tensors, containers and
plain numbers, and refuses everything else. What `--trust` adds is a person's word for the source, because that
unpickler has had holes. Before it sees the file, the archive's directory must not promise more than the file holds; what
it makes is bounded by the memory it may take, and no tensor may claim more numbers than are stored.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from wsi_ips.errors import ModelError
from wsi_ips.files import sync_file, sync_folder, write_whole
from wsi_ips.model.weights import check_finite, is_pickle, read_state, some
from wsi_ips.results import sha256_file

__all__ = ["ImportedWeights", "check_archive", "import_weights", "load_restricted"]

_MAX_BYTES = 32 << 30  # no encoder of today is larger
_MAX_PICKLE_BYTES = 64 << 20  # of the part without numbers
_SPARE_BYTES = 2 << 30  # what reading may take beyond the numbers themselves
_SAFE_TORCH = (2, 10)  # older ones run code, or spoil memory, in spite of the restriction
_LEVELS = 4
_MAX_GROWTH = 8  # tied weights are stored once and named several times
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "encoder", "backbone", "teacher",
             "student", "weights", "params")  # fmt: skip
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "encoder.", "backbone.", "teacher.", "student.")
_ENDING = ".safetensors"


@dataclass(frozen=True)
class ImportedWeights:
    """A file of safetensors that was made."""

    path: Path
    sha256: str
    n_tensors: int
    notes: tuple[str, ...]  # what was taken out of what, and left behind


def import_weights(path: Path, out: Path, *, trusts: bool, key: str = "") -> ImportedWeights:
    """Make safetensors of a torch file, or of safetensors with wrappers' names; its SHA-256 stands beside it.

    Args:
        path: .pt, .pth, .bin, .ckpt or .safetensors; its content decides.
        out: a folder, or a name that ends in .safetensors.
        trusts: the user answers for the source of a pickle.
        key: which part of a checkpoint to take, where it holds several.

    Raises:
        ModelError: not trusted, not only tensors and plain values, too large, not finite, or there is such a file.
    """
    target = _target(path, out)
    if is_pickle(path) and not trusts:
        raise ModelError(
            f"{path}: is a torch file (a pickle). Where you know its source, add --trust; it is then read by torch's "
            "restricted unpickler, never by one that runs code. From a stranger, ask for safetensors instead"
        )
    data = load_restricted(path) if is_pickle(path) else read_state(path)
    notes: list[str] = []
    state = _without_prefixes(_tensors_in(path, data, key, notes), notes)
    if not state:
        raise ModelError(f"{path}: holds no tensor")
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if claimed > _MAX_GROWTH * path.stat().st_size:
        raise ModelError(f"{path}: its tensors claim {claimed} bytes, far more than the file holds")
    plain = {name: _plain(path, name, tensor) for name, tensor in state.items()}
    check_finite(plain, str(path))
    source = sha256_file(path)
    digest = _write(target, plain, {"format": "pt", "source": path.name, "source_sha256": source})
    return ImportedWeights(target, digest, len(plain), tuple(notes))


def load_restricted(path: Path) -> Any:
    """Read a torch file by the restricted unpickler, within limits.

    Raises:
        ModelError: too large, packed, cut off, or with other objects than tensors and plain values, which are named.
    """
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < _SAFE_TORCH:
        raise ModelError(f"torch {torch.__version__} is too old to read a pickle safely; install 2.10 or newer")
    check_archive(path)
    try:
        with _memory_at_most(path.stat().st_size * 3 + _SPARE_BYTES), path.open("rb") as f, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's protocol: what it cannot read is told below
            return torch.load(f, map_location="cpu", weights_only=True)  # a name would let its ending decide how
    except pickle.UnpicklingError as error:
        raise ModelError(_explanation(path, str(error))) from error
    # whatever a damaged file makes torch raise
    except (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise ModelError(
                f"{path}: asks for far more memory than its size explains; it is damaged or hostile"
            ) from error
        raise ModelError(f"{path}: is not a complete torch file ({type(error).__name__}); copy it again") from error


def check_archive(path: Path) -> None:
    """Refuse a torch archive that would unpack to more than its own size, by its directory alone.

    Raises:
        ModelError: packed, promising too much, or larger than any known encoder.
    """
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ModelError(f"{path}: {size} bytes are more than any known encoder's weights")
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except Exception as error:  # a damaged directory raises BadZipFile, struct.error, NotImplementedError and others
        raise ModelError(f"{path}: is not a complete torch file ({error}); copy it again") from error
    unpacked = sum(part.file_size for part in parts)
    if unpacked > size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        # torch stores its archives unpacked
        raise ModelError(
            f"{path}: a compressed archive is refused ({size} bytes would become {unpacked}); save it with torch.save"
        )
    if any(part.filename.endswith("/constants.pkl") for part in parts):
        raise ModelError(
            f"{path}: is a TorchScript program, which is code; save `model.state_dict()` where it came from"
        )
    pickled = sum(part.file_size for part in parts if part.filename.endswith("data.pkl"))
    if pickled > _MAX_PICKLE_BYTES:
        raise ModelError(f"{path}: {pickled} bytes of names and plain values are more than any model's")


def _target(path: Path, out: Path) -> Path:
    is_file = out.suffix.lower() == _ENDING
    if not is_file and out.suffix and not out.is_dir():
        raise ModelError(f"{out}: give a folder, or a name that ends in {_ENDING}")
    # what a folder of the hub calls its weights
    name = "model" if path.stem == "pytorch_model" else path.stem
    target = out if is_file else out / f"{name}{_ENDING}"
    if target.exists():
        raise ModelError(f"{target}: exists already; remove it, or give another --out")
    return target


def _explanation(path: Path, said: str) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)  # reads names only
    except Exception:  # older files, and damaged ones
        names = re.findall(r"GLOBAL ([\w.]+)", said)
    held = f": {some(sorted(set(names)))}" if names else ""
    return (
        f"{path}: holds more than tensors and plain values{held}. A whole model, arguments or numbers of numpy in a checkpoint "
        "are objects that only their own code can make, and that could run anything; where the file came from, save "
        "`model.state_dict()` alone, best as safetensors"
    )


def _tensors_in(path: Path, data: Any, key: str, notes: list[str]) -> dict[str, Tensor]:
    """Go down through wrappers to a mapping of names to tensors."""
    wanted = [part for part in key.split(".") if part]
    for _ in range(_LEVELS):
        if not isinstance(data, Mapping):
            break
        named = {str(name): value for name, value in data.items()}
        chosen = wanted.pop(0) if wanted else ""
        if chosen and chosen not in named:
            raise ModelError(f"{path}: --key {key}: there is no {chosen!r}, found: {some(list(named))}")
        if not chosen and named and all(isinstance(value, Tensor) for value in named.values()):
            return named
        inside = [
            n
            for n, v in named.items()
            if isinstance(v, Mapping) and (_is_state(v) or (n in _WRAPPERS and _may_hold(v)))
        ]
        if not chosen and len(inside) > 1:
            raise ModelError(f"{path}: holds several sets of weights: {some(inside)}; choose one by --key {inside[0]}")
        if not chosen and not inside:
            tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
            if tensors and not any(isinstance(v, Mapping | list | tuple) for v in named.values()):
                notes.append(f"left behind: {some([n for n in named if n not in tensors])}")
                return tensors
            break
        taken = chosen or inside[0]
        rest = [name for name in named if name != taken]
        notes.append(f"took {taken!r}" + (f", left behind: {some(rest)}" if rest else ""))
        data = named[taken]
    found = some([str(k) for k in data]) if isinstance(data, Mapping) else type(data).__name__
    raise ModelError(f"{path}: expected a mapping of names to tensors, found {found}; save the state dict alone")


def _is_state(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _may_hold(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(v, Tensor | Mapping) for v in value.values())


def _without_prefixes(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if state and all(n.startswith(p) and n != p for n in state)), ""):
        notes.append(f"took {prefix!r} off the names")
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _plain(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Copy a tensor into memory of its own; refuse what is no array of stored numbers."""
    is_array = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not is_array or tensor.is_complex():
        raise ModelError(
            f"{path}: tensor {name!r} is {tensor.dtype}, {tensor.layout} on {tensor.device}; save plain numbers"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelError(f"{path}: tensor {name!r} of shape {tuple(tensor.shape)} claims more numbers than are stored")
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _write(target: Path, state: dict[str, Tensor], about: dict[str, str]) -> str:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, temporary, metadata=about)
        sync_file(temporary)
        digest = sha256_file(temporary)
        # the hash first: a file that is there is one that can be checked
        write_whole(target.with_name(target.name + ".sha256"), f"{digest}  {target.name}\n".encode())
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return digest


@contextlib.contextmanager
def _memory_at_most(n_bytes: int) -> Iterator[None]:
    """Let this process take so much more memory and no more, where the system can say so."""
    if sys.platform == "win32":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + n_bytes
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    if soft == resource.RLIM_INFINITY or most < soft:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

"""The folder beside a bundle that a training works in: one training's alone, and one process's at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from wsi_ips.errors import ConfigError, ModelError, StoppedError
from wsi_ips.files import write_whole
from wsi_ips.locking import sole_writer

__all__ = ["patient_hash", "work_folder"]

_NAME, _VERSION = "training.json", 1


@contextlib.contextmanager
def work_folder(folder: Path, identities: Sequence[str], *, is_leader: bool) -> Iterator[None]:
    """Make the folder, or go on in it, and hold it against other processes.

    Args:
        folder: `<bundle>.training`.
        identities: of the first seed's trainings, which decide the bundle.
        is_leader: of several processes that learn together the leader holds the folder for all.

    Raises:
        ConfigError: it cannot be written, or another process holds it. ModelError: it holds another training.
        StoppedError: the environment gave out.
    """
    if not is_leader:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".probe").write_bytes(b"wsi-ips")
        (folder / ".probe").unlink()
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be used as folder of a training ({error.strerror}); give another --out") from error
    with sole_writer(folder):
        identity = hashlib.sha256("\n".join(identities).encode()).hexdigest()
        _refuse_other(folder, identity)
        try:
            write_whole(folder / _NAME, json.dumps({"schema_version": _VERSION, "identity": identity}, indent=1).encode())
        except OSError as error:
            raise StoppedError(f"{folder}: cannot be written ({error.strerror}); make room and start the same command "
                               "again") from error  # fmt: skip
        yield


def patient_hash(patient_id: str) -> str:
    """Name a patient without telling who it is to somebody who does not know: 16 hex digits."""
    return hashlib.sha256(f"patient {patient_id}".encode()).hexdigest()[:16]


def _refuse_other(folder: Path, identity: str) -> None:
    try:
        found = json.loads((folder / _NAME).read_text(encoding="utf-8"))
        version, whose = int(found["schema_version"]), str(found["identity"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / _NAME}: cannot be read ({error}); delete {folder.name} to begin anew") from error
    if version > _VERSION:
        raise ModelError(f"{folder / _NAME}: version {version} needs a newer wsi-ips (this one reads {_VERSION})")
    if whose != identity:
        raise ModelError(f"{folder}: holds another training (other slides, labels, folds, settings, seed or start); choose "
                         "another --out, or delete that folder and the bundle beside it")  # fmt: skip

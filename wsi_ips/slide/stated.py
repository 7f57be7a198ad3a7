"""What a manifest says of a slide's file, held against the file: its size and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from wsi_ips.errors import UnreadableSlideError

__all__ = ["check_stated"]


def check_stated(path: str, stated: Mapping[str, str], *, read_all: bool = True) -> None:
    """Compare a slide's file with the size and hashes that its row gives.

    Args:
        path: of the file.
        stated: some of "size_bytes", "sha256", "md5".
        read_all: hashes are compared, too, which reads the whole file.

    Raises:
        UnreadableSlideError: `E_CHECKSUM`, the file is another one, or none whose bytes could be compared.
    """
    file = Path(path.removeprefix("file://"))
    if not stated or not (file.exists() or "://" in path):
        return  # a file that is not there is said when it is opened
    try:
        if not file.is_file():
            raise _other(file.name, f"a single local file is needed to compare {' and '.join(sorted(stated))}")
        size, wanted = file.stat().st_size, stated.get("size_bytes")
        if wanted is not None and size != int(wanted):
            raise _other(file.name, f"holds {size} bytes, the manifest's size_bytes says {int(wanted)}")
        for name in ("sha256", "md5") if read_all else ():
            if name not in stated:
                continue
            with file.open("rb") as f:
                found = hashlib.file_digest(f, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()  # noqa: B023
            if found != stated[name]:
                raise _other(file.name, f"its {name} is {found[:12]}.., the manifest says {stated[name][:12]}..")
    except UnreadableSlideError:
        raise
    except OSError as error:
        raise UnreadableSlideError("E_MISSING", f"{file.name}: cannot be read ({error.strerror}); correct the path") from error


def _other(name: str, what: str) -> UnreadableSlideError:
    return UnreadableSlideError("E_CHECKSUM", f"{name}: {what}; copy the file again, or correct the manifest")

"""A run folder that is only read, and not trusted: names stay inside, links are not followed, sizes are bounded.

Whoever audits a run got it, perhaps, from somebody else. So a name out of a record leads nowhere but into its slide's
folder, only regular files are opened, JSON is read up to a size, and what is printed holds no control characters.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from wsi_ips.errors import ConfigError, WsiIpsError
from wsi_ips.files import is_inside
from wsi_ips.results import SCHEMA_VERSION
from wsi_ips.runfolder import RunFolder
from wsi_ips.slidefiles import is_slide_id

__all__ = ["AuditFolder", "FileFaultError", "printed"]

_MOST_RUN_JSON, _MOST_RECORD = 256 << 20, 8 << 20  # bytes; a slide of 48 tiles has a record of 20 KB
_MOST_TABLE = 1 << 30
_MOST_ENTRIES = 2_000_000  # files that are listed
_STATUSES = ("ok", "ok_with_warnings", "no_tissue", "failed")
_HEX = frozenset("0123456789abcdef")


class FileFaultError(WsiIpsError):
    """A file of a run that is not what it should be; `what` is missing, link, unreadable or record."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


class AuditFolder(RunFolder):
    """Reads a run's files; never writes."""

    def facts(self) -> dict[str, Any]:
        """What run.json holds.

        Raises:
            ConfigError: the folder is not a run of classify, or a newer version has made it.
        """
        try:
            found = _as_json(self.read_bytes("run.json", most=_MOST_RUN_JSON))
        except FileFaultError as error:
            raise ConfigError(f"{self.path}: not a run folder (run.json: {error})") from error
        version = found.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ConfigError(f"{self.path}: made by a newer wsi-ips (schema_version {version}); update")
        if version != SCHEMA_VERSION or not isinstance(found.get("slides"), dict) or not isinstance(found.get("model"), dict):
            raise ConfigError(f"{self.path}: its run.json is not that of classify; give the run folder of classify")
        bad = [name for name in found["slides"] if not is_slide_id(name)]
        if bad:
            raise ConfigError(f"{self.path}: run.json names a slide {printed(bad[0])}, which is no slide id")
        return found

    def read_record(self, slide_id: str) -> dict[str, Any] | None:
        """Read a slide's record; None when there is none that is sound."""
        try:
            return self.sound_record(slide_id)
        except FileFaultError:
            return None

    def sound_record(self, slide_id: str) -> dict[str, Any]:
        """Read a slide's record and look at every part of it that is used.

        Raises:
            FileFaultError: it is missing, or not a record of this slide.
        """
        record = _as_json(self.read_bytes(f"slides/{slide_id}/state.json", most=_MOST_RECORD))
        wrong = _wrong_in(record, slide_id)
        if wrong:
            raise FileFaultError("record", f"state.json: {wrong}")
        return record

    def read_bytes(self, name: str, *, most: int = _MOST_TABLE) -> bytes:
        """Read a file of the run.

        Raises:
            FileFaultError: missing, a link, no regular file, larger than `most` bytes, or not readable.
        """
        with self._open(name) as f:
            try:
                size = os.fstat(f.fileno()).st_size
                data = f.read(most + 1) if size <= most else b""
            except OSError as error:
                raise FileFaultError("unreadable", f"cannot be read ({error.strerror})") from error
        if size > most or len(data) > most:
            raise FileFaultError("unreadable", f"holds more than {most} bytes, which is too much for such a file")
        return data

    def sha256(self, name: str) -> str:
        """Hash a file of the run, however large.

        Raises:
            FileFaultError: as `read_bytes`.
        """
        with self._open(name) as f:
            try:
                return hashlib.file_digest(f, "sha256").hexdigest()
            except OSError as error:
                raise FileFaultError("unreadable", f"cannot be read ({error.strerror})") from error

    def files(self) -> Iterator[tuple[str, os.stat_result]]:
        """List what lies in the folder, links as themselves: name with `/`, and what the system says of it.

        Raises:
            ConfigError: there are more files than anybody could look at.
        """
        waiting, n = [""], 0
        while waiting:
            place = waiting.pop()
            try:
                with os.scandir(self.path / place) as entries:
                    found = sorted(entries, key=lambda e: e.name)
            except OSError:
                continue  # gone meanwhile, or not to be listed: what a record names there is then missing
            for entry in found:
                n += 1
                if n > _MOST_ENTRIES:
                    raise ConfigError(f"{self.path}: holds more than {_MOST_ENTRIES} files; is this a run folder?")
                name = f"{place}/{entry.name}" if place else entry.name
                try:
                    about = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISDIR(about.st_mode):
                    waiting.append(name)
                else:
                    yield name, about

    def modified(self, name: str) -> float:
        """Tell when a file of the run was written, s; 0 where that is not known."""
        try:
            return (self.path / name).lstat().st_mtime
        except OSError:
            return 0.0

    def _open(self, name: str) -> io.BufferedReader:
        """Open a regular file below the folder, following no link on the way."""
        if not is_inside(name):
            raise FileFaultError("record", "the name leads out of its folder")
        path = self.path
        try:
            for part in name.split("/"):
                path = path / part
                if stat.S_ISLNK(path.lstat().st_mode):
                    raise FileFaultError("link", "is reached over a link, which is not followed")
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            if not stat.S_ISREG(path.lstat().st_mode):
                raise FileFaultError("unreadable", "is not a regular file")
            f = os.fdopen(os.open(path, flags), "rb")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileFaultError("missing", "is not there") from error
        except (OSError, ValueError) as error:
            raise FileFaultError("unreadable", f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error
        if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):  # exchanged since it was looked at
            f.close()
            raise FileFaultError("unreadable", "is not a regular file")
        return f


def printed(text: object) -> str:
    """Make text of a foreign file fit for a terminal: no control characters, not too long."""
    line = "".join(c if c.isprintable() else "?" for c in str(text))
    return line if len(line) <= 160 else line[:157] + "..."


def _as_json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FileFaultError("record", f"is not complete JSON ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise FileFaultError("record", "is JSON, but not a record")
    return found


def _wrong_in(record: Mapping[str, Any], slide_id: str) -> str:
    """Say what makes a record useless; "" when nothing does."""
    if record.get("schema_version") != SCHEMA_VERSION:
        return f"schema_version is {printed(record.get('schema_version'))}, {SCHEMA_VERSION} is known here"
    if record.get("slide_id") != slide_id:
        return "is the record of another slide"
    if record.get("status") not in _STATUSES or not all(isinstance(record.get(k), str) for k in ("reason", "message")):
        return "does not say what became of the slide"
    cells, outputs = record.get("cells"), record.get("outputs")
    if not isinstance(cells, dict) or not all(isinstance(v, str) for v in cells.values()):
        return "does not hold the slide's cells of predictions.csv"
    if not isinstance(outputs, dict) or not all(_is_hash(v) for v in outputs.values()):
        return "does not hold the hashes of the slide's files"
    if bad := [n for n in outputs if not is_inside(n)]:
        return f"names a file outside its folder, {printed(bad[0])!r}"
    numbers, added = record.get("outputs_logits", []), record.get("added", [])
    if not isinstance(numbers, list) or not all(_is_number(v) for v in numbers):
        return "does not hold the slide's logits"
    is_plain = isinstance(record.get("identity", {}), dict) and isinstance(record.get("made_with", {}), dict)
    if not is_plain or not isinstance(added, list) or not all(isinstance(n, str) for n in added):
        return "is not complete"
    return ""


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= _HEX


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

"""Marks that people leave on slides: a CSV in the run folder that only ever grows.

`reviews.csv` holds one line a mark: time (UTC), slide_id, reviewer, mark, note, and what was marked: call, probability,
model_hash. A mark is never changed; a later one of the same slide counts instead. The file is written whole under the
lock of `.reviews.lock`, so neither a crash nor a second server loses a line. A `reviews.csv` that this room cannot read
as its own is left as it is, and nothing is stored.
"""

from __future__ import annotations

import contextlib
import csv
import io
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wsi_ips.errors import ConfigError
from wsi_ips.files import read_regular, without_links, write_whole
from wsi_ips.tables import plain_text, table_bytes

__all__ = ["MARKS", "Review", "ReviewBook", "one_line"]

_MOST_BYTES, _LOCK_SECONDS = 256 << 20, 10.0
MARKS = ("agree", "disagree", "unsure")
_COLUMNS = ("time", "slide_id", "reviewer", "mark", "note", "call", "probability", "model_hash")
_FOREIGN = ("reviews.csv in the run folder cannot be read as the viewer's own (other columns, or damaged); "
            "it is left as it is, and no mark can be stored until it is renamed")  # fmt: skip


class Review(NamedTuple):
    """One mark."""

    time: str  # UTC, 2024-05-01T09:30:00Z
    slide_id: str
    reviewer: str
    mark: str  # of MARKS
    note: str
    call: str  # what the model had said
    probability: str
    model_hash: str


def one_line(text: str, limit: int) -> str:
    """Make any text fit one cell: no control characters, blanks and line ends as one blank, cut to `limit` characters.

    >>> one_line(" a\\n\\tb\\x07 ", 10)
    'a b'
    """
    spaced = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    return " ".join(spaced.split())[:limit]


class ReviewBook:
    """The marks of a run.

    Args:
        folder: run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "reviews.csv"
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._reviews: tuple[Review, ...] = ()

    def reviews(self) -> tuple[Review, ...]:
        """All marks, oldest first.

        Raises:
            ConfigError: there is a `reviews.csv` that is not ours.
        """
        with self._lock:
            try:
                found = self._path.stat()
            except FileNotFoundError:
                return ()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                try:
                    self._reviews = tuple(_parse(self._bytes()))
                except OSError as error:  # the run is shown all the same
                    raise ConfigError(_FOREIGN) from error
                self._seen = seen
            return self._reviews

    def latest(self) -> dict[str, Review]:
        """The mark that counts, by slide id; see `reviews`."""
        return {review.slide_id: review for review in self.reviews()}

    def add(self, review: Review) -> Review:
        """Store a mark; it is on the disk when this returns.

        Returns:
            The mark with its time.

        Raises:
            ConfigError: not one of MARKS, or a `reviews.csv` that is not ours.
            OSError: the run folder cannot be written.
        """
        if review.mark not in MARKS:
            raise ConfigError(f"mark: expected {', '.join(MARKS)}")
        with self._lock, _held(self._path.with_name(".reviews.lock")):
            before = self._bytes()
            _parse(before)
            stored = review._replace(time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            header, _, line = table_bytes(_COLUMNS, [stored._asdict()]).partition(b"\n")
            start = before or header + b"\n"
            write_whole(self._path, start + (b"" if start.endswith(b"\n") else b"\n") + line)
        return stored

    def _bytes(self) -> bytes:
        try:
            return read_regular(self._path, _MOST_BYTES)
        except FileNotFoundError:
            return b""


def _parse(data: bytes) -> list[Review]:
    if not data:
        return []
    try:
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(_FOREIGN) from error
    if not rows or tuple(rows[0]) != _COLUMNS or any(len(r) != len(_COLUMNS) or r[3] not in MARKS for r in rows[1:]):
        raise ConfigError(_FOREIGN)
    return [Review(*(plain_text(cell) for cell in row)) for row in rows[1:]]


@contextlib.contextmanager
def _held(lock: Path) -> Iterator[None]:
    """Hold a lock between processes; it falls with its holder. The run's own lock is not used: a run may be going on.

    Raises:
        OSError: another process holds it for too long, or the file cannot be opened.
    """
    with open(lock, "a+b", opener=without_links) as f:
        if sys.platform == "win32":
            import msvcrt

            f.seek(0)
            msvcrt.locking(f.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            end = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(f.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > end:
                        raise OSError(error.errno, f"another process holds {lock.name}") from error
                    time.sleep(0.01)
        try:
            yield
        finally:
            if sys.platform == "win32":
                f.seek(0)
                msvcrt.locking(f.fileno(), msvcrt.LK_UNLCK, 1)
            else:
                fcntl.flock(f.fileno(), fcntl.LOCK_UN)

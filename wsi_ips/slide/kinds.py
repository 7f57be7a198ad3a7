"""What a file is before any decoder sees it: regular, empty, text, an archive, a picture."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from wsi_ips.errors import UnreadableSlideError

__all__ = ["is_vms", "kind_of_content", "local_file"]

_MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
    (b"\x1f\x8b", "a gzip archive (unpack it first)"),
    (b"PK\x03\x04", "a zip archive (unpack it first)"),
    (b"BZh", "a bzip2 archive (unpack it first)"),
    (b"7z\xbc\xaf", "a 7-Zip archive (unpack it first)"),
    (b"\xfd7zXZ", "an xz archive (unpack it first)"),
    (b"Rar!", "a RAR archive (unpack it first)"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a plain PNG picture"),
    (b"\xff\xd8\xff", "a plain JPEG picture"),
    (b"\x89HDF", "an HDF5 file"),
)
_KEY_FILES = (b"[Virtual Microscope Specimen]", b"[Uncompressed Virtual Microscope Specimen]")  # Hamamatsu VMS, VMU
_BEFORE_TEXT = b"\xef\xbb\xbf \r\n\t"


def local_file(path: Path) -> bytes:
    """Check that a path is a readable regular file with content; return its first 512 bytes.

    A MIRAX index and Hamamatsu's text indices pass; other text, archives and pictures do not.

    Raises:
        UnreadableSlideError: `E_MISSING`, `E_NOT_A_FILE`, `E_EMPTY`, `E_NOT_A_SLIDE`.
    """
    name = path.name
    try:
        status = path.stat()
    except FileNotFoundError as error:
        what = "a link that leads nowhere" if path.is_symlink() else "no such file"
        raise UnreadableSlideError("E_MISSING", f"{name}: {what}; check the path in the manifest") from error
    except OSError as error:
        raise UnreadableSlideError("E_MISSING", f"{name}: cannot be reached ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableSlideError("E_NOT_A_FILE", f"{name}: {_file_type(status.st_mode)}, not a regular file")
    if status.st_size == 0:
        raise UnreadableSlideError("E_EMPTY", f"{name}: the file is empty (0 bytes); copy or download it again")
    try:
        # never blocks: should the file have become a FIFO meanwhile, the open fails or reads nothing
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as f:
            head = f.read(512)
    except OSError as error:
        raise UnreadableSlideError("E_MISSING", f"{name}: cannot be opened ({error.strerror})") from error
    found = kind_of_content(head)
    if found and path.suffix.lower() != ".mrxs":
        raise UnreadableSlideError("E_NOT_A_SLIDE", f"{name}: {found}, not a slide; copy or download the slide again")
    return head


def kind_of_content(head: bytes) -> str:
    """Name what the first bytes are, if it is something people mistake for a slide; else an empty string.

    >>> kind_of_content(b"<!doctype html><html>")
    'an HTML page'
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    text = head.lstrip(_BEFORE_TEXT)
    if text[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if is_vms(head):
        return ""
    if not head.strip(b"\0"):
        return "nothing but zero bytes (an unfinished copy?)"
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return "plain text"
    return ""


def is_vms(head: bytes) -> bool:
    """Tell the index of a Hamamatsu VMS or VMU slide, which is text."""
    return head.lstrip(_BEFORE_TEXT).startswith(_KEY_FILES)


def _file_type(mode: int) -> str:
    for test, kind in ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe (FIFO)"), (stat.S_ISSOCK, "a socket"),
                       (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device")):  # fmt: skip
        if test(mode):
            return kind
    return "a special file"

"""Whether a slide's files are still those that were opened: by size, time of change and inode.

A slide that is copied over while it is read gives tiles of two slides, and nothing in its pixels would show it.
"""

from __future__ import annotations

import os
from pathlib import Path

from wsi_ips.errors import UnreadableSlideError

__all__ = ["Stamps", "refuse_changed", "stamps"]

Stamps = tuple[tuple[int, int, int], ...]


def stamps(path: str) -> Stamps:
    """Size, time of change in ns and inode of a slide's files (a folder's, MIRAX data's); () for URIs, errors and ""."""
    bare = path.removeprefix("file://")
    if "://" in bare or not bare:
        return ()
    main = Path(bare)
    data = main.with_suffix("") if main.suffix.lower() == ".mrxs" else main
    try:
        found = [] if data == main and main.is_dir() else [main.stat()]
        if data.is_dir():
            with os.scandir(data) as entries:
                found += [entry.stat() for entry in sorted(entries, key=lambda e: e.name) if entry.is_file()]
    except OSError:
        return ()
    return tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in found)


def refuse_changed(path: str | None, before: Stamps) -> None:
    """Refuse a slide whose files are no longer what they were.

    Args:
        path: of the slide; None, and URIs, are never looked at.
        before: its stamps at an earlier time; () says nothing.

    Raises:
        UnreadableSlideError: `E_CHANGED`.
    """
    if path is None or not before or (now := stamps(path)) == before:
        return
    sizes = f"{sum(s for s, _, _ in before)} bytes before, {sum(s for s, _, _ in now)} now" if now else "it is gone"
    message = f"{Path(path).name}: the file was changed while it was read ({sizes}); start again when it is whole"
    raise UnreadableSlideError("E_CHANGED", message)

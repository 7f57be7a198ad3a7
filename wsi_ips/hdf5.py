"""HDF5 files that come from anywhere: one that leads to other files, or grows when it is read, is refused unread.

An HDF5 file may hold links into other files, datasets whose numbers lie in any file of the disk, and a few bytes that
inflate to terabytes. Who reads such a file and draws what it says would show what was never theirs to show.
"""

from __future__ import annotations

import h5py

__all__ = ["refuse_foreign"]

_MOST_OBJECTS = 1_000


def refuse_foreign(f: h5py.File, most_bytes: int) -> None:
    """Refuse a file that does not hold all of itself, or that holds more than expected.

    Args:
        f: open.
        most_bytes: of all its datasets, as numpy would hold them.

    Raises:
        ValueError: says what was found.
    """
    waiting: list[tuple[str, h5py.Group]] = [("", f)]
    n_objects = n_bytes = 0
    while waiting:
        path, group = waiting.pop()
        for name in group:
            n_objects += 1
            if n_objects > _MOST_OBJECTS:  # a circle of groups, too
                raise ValueError(f"it holds more than {_MOST_OBJECTS} objects")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{path}/{name} is a link")
            found = group[name]
            if isinstance(found, h5py.Group):
                waiting.append((f"{path}/{name}", found))
            elif isinstance(found, h5py.Dataset):
                if found.external or found.is_virtual:
                    raise ValueError(f"the numbers of {path}/{name} lie in another file")
                n_bytes += found.nbytes
    if n_bytes > most_bytes:
        raise ValueError(f"its datasets hold {n_bytes} bytes, more than the {most_bytes} that are read")

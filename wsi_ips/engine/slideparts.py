"""How large slides are, by their directory entries alone, and in which order a batch does them: longest first.

The longest slide last would leave all workers but one idle at the end. Size on disk stands for the time; it costs one
look at the directory and opens nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from wsi_ips.slide.stamps import stamps

__all__ = ["longest_first", "size_of_slide"]

_PARTS_ELSEWHERE = (".dcm", ".vms", ".vmu")  # files whose companions only reading them would tell

T = TypeVar("T")


def size_of_slide(path: str | None) -> int | None:
    """Bytes of a slide's files; None where that is not known without reading: URIs, parts beside a file, errors."""
    if path is None or path.lower().endswith(_PARTS_ELSEWHERE):
        return None
    found = stamps(path)
    return sum(size for size, _, _ in found) if found else None


def longest_first(items: Sequence[T], sizes: Sequence[int | None]) -> list[T]:
    """Order by size, largest first; an unknown size counts as the average of the known ones, ties stay in their order.

    >>> longest_first("abcd", [1, 5, None, 3])
    ['b', 'c', 'd', 'a']
    """
    known = [size for size in sizes if size is not None]
    mean = sum(known) / len(known) if known else 0.0
    weights = [mean if size is None else float(size) for size in sizes]
    return [items[i] for i in sorted(range(len(items)), key=lambda i: -weights[i])]

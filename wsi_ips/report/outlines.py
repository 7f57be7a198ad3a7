"""Outlines of a mask along the edges of its px, exact and in one pass: what a union of squares gives, far sooner.

A corner is where an outline turns. It has one edge across and one edge down; each edge leads to the next corner on its
line, so corners pair up twice and the pairs make rings. Where two px meet in a point alone, two corners share a vertex:
px joined by an edge stay one piece, and a ring that meets itself is cut there into rings that touch.

Frame: px of the mask (h, w); vertex (column, row) is the top-left corner of that px, so there are (h + 1, w + 1).
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import cv2
import numpy as np
import shapely

__all__ = ["Corners", "Piece", "polygons_of", "trace_outlines"]


class Corners(NamedTuple):
    """Where outlines turn; n corners."""

    column: np.ndarray  # (n,) int64, vertex
    row: np.ndarray  # (n,) int64
    ends_x: np.ndarray  # (n,) bool, the mask lies left of the edge that goes down from or up to here: a px ends
    ends_y: np.ndarray  # (n,) bool, the mask lies above the edge that goes across
    is_shared: np.ndarray  # (n,) bool, two corners in one vertex
    goes_left: np.ndarray  # (n,) bool, its edge across leads left
    goes_up: np.ndarray  # (n,) bool, its edge down leads up
    is_start: np.ndarray  # (n,) bool, the mask lies on the left of whoever walks across from here (with y upwards)

    @property
    def mask_row(self) -> np.ndarray:
        """(n,) row of a px of the mask at the corner, above or below its edge across."""
        return self.row - self.ends_y

    @property
    def mask_column(self) -> np.ndarray:
        """(n,) column of the same px."""
        return self.column - self.goes_left


class Piece(NamedTuple):
    """One piece of a mask: px that are joined by edges."""

    column: int  # of one of its px
    row: int
    shell: np.ndarray  # (k,) int64 corners in order, anticlockwise with y upwards
    holes: list[np.ndarray]


def trace_outlines(mask: np.ndarray) -> tuple[Corners, list[Piece]]:
    """Trace a mask (h, w) bool; pieces in the order of their first px."""
    corners = _find_corners(mask)
    label = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)[1]
    mask_row, mask_column = corners.mask_row, corners.mask_column
    pieces: dict[int, Piece] = {}
    holes: dict[int, list[np.ndarray]] = defaultdict(list)
    for ring in _rings(corners, mask.shape[1] + 1):
        row, column = int(mask_row[ring[0]]), int(mask_column[ring[0]])
        piece = int(label[row, column])
        x, y = corners.column[ring], corners.row[ring]
        if (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0:
            pieces[piece] = Piece(column, row, ring, holes[piece])
        else:
            holes[piece].append(ring)
    return corners, [pieces[piece] for piece in sorted(pieces)]


def polygons_of(pieces: list[Piece], x0: np.ndarray, y0: np.ndarray) -> np.ndarray:
    """Make polygons of pieces, given where their corners lie.

    Args:
        pieces: from `trace_outlines`.
        x0, y0: (n,) coordinates of all corners, in any frame.

    Returns:
        (len(pieces),) shapely polygons.
    """
    at = np.column_stack([x0, y0]).astype(np.float64)
    rings = [ring for piece in pieces for ring in (piece.shell, *piece.holes)]
    if not rings:
        return np.empty(0, dtype=object)
    indices = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    lines = shapely.linearrings(at[np.concatenate(rings)], indices=indices)
    firsts = np.cumsum([0] + [1 + len(piece.holes) for piece in pieces])
    found = shapely.polygons(lines[firsts[:-1]])
    for i, piece in enumerate(pieces):
        if piece.holes:
            found[i] = shapely.polygons(lines[firsts[i]], holes=lines[firsts[i] + 1 : firsts[i + 1]])
    return np.asarray(found)


def _find_corners(mask: np.ndarray) -> Corners:
    padded = np.pad(np.asarray(mask, bool), 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    left, up = nw != sw, nw != ne  # whether an outline goes there from a vertex
    row, column = np.nonzero(left != (ne != se))
    row2, column2 = np.nonzero((nw == se) & (ne == sw) & up)
    goes_left = np.concatenate([left[row, column], np.ones(len(row2), bool), np.zeros(len(row2), bool)])
    goes_up = np.concatenate([up[row, column], nw[row2, column2], ne[row2, column2]])
    is_shared = np.arange(len(goes_up)) >= len(row)
    row, column = np.concatenate([row, row2, row2]), np.concatenate([column, column2, column2])
    a, b, c, d = (quarter[row, column] for quarter in (nw, ne, sw, se))
    return Corners(column, row, np.where(goes_up, a, c), np.where(goes_left, a, b), is_shared, goes_left, goes_up,
                   np.where(goes_left, a, d))  # fmt: skip


def _rings(corners: Corners, width: int) -> list[np.ndarray]:
    """Walk all outlines: rings of corners, each vertex at most once in a ring."""
    across = _partners(np.lexsort((~corners.goes_left, corners.column, corners.row)))
    down = _partners(np.lexsort((~corners.goes_up, corners.row, corners.column)))
    vertex = (corners.row * width + corners.column).tolist()
    is_shared = corners.is_shared.tolist()
    seen, rings = bytearray(len(vertex)), []
    for start in np.flatnonzero(corners.is_start).tolist():
        if seen[start]:
            continue
        ring: list[int] = []
        at, meets = start, False
        while not seen[at]:
            seen[at] = 1
            other = across[at]
            ring += (at, other)
            meets = meets or is_shared[at] or is_shared[other]
            at = down[other]
        rings += _cut(ring, vertex) if meets else [np.array(ring)]
    return rings


def _partners(order: np.ndarray) -> list[int]:
    """Corners in the order of their lines pair up: first and second, third and fourth."""
    partner = np.empty(len(order), np.int64)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    found: list[int] = partner.tolist()
    return found


def _cut(ring: list[int], vertex: list[int]) -> list[np.ndarray]:
    """Cut a ring wherever it comes back to a vertex."""
    path: list[int] = []
    place: dict[int, int] = {}
    rings = []
    for corner in ring:
        if vertex[corner] in place:
            since = place[vertex[corner]]
            rings.append(np.array(path[since:]))
            for gone in path[since:]:
                del place[vertex[gone]]
            del path[since:]
        place[vertex[corner]] = len(path)
        path.append(corner)
    return [*rings, np.array(path)]

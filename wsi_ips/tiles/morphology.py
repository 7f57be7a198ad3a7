"""Shapes on a map of 0 and 1: small holes filled, small specks dropped, ink grown to its edges.

Areas are counted in whole px from contours, so that no map of labels (four bytes a px) is needed.
"""

from __future__ import annotations

import cv2
import numpy as np

from wsi_ips.tiles.colour import INK, NEAR_INK

__all__ = ["drop_specks", "fill_holes", "grow_ink"]


def drop_specks(mask: np.ndarray, min_area_px: float) -> None:
    """Erase pieces (8-connected) of fewer px than `min_area_px` from (h, w) uint8 in place; holes are no area."""
    contours, family = _contours(mask)
    for k, contour in enumerate(contours):
        _, _, child, parent = family[k]
        if parent >= 0:
            continue
        area_px, holes = _area_px(contour, is_hole=False), []
        while child >= 0:
            holes.append(child)
            area_px -= _area_px(contours[child], is_hole=True)
            child = family[child][0]
        if area_px < min_area_px:
            _paint_piece(mask, contours, k, holes)


def fill_holes(mask: np.ndarray, max_area_px: float) -> None:
    """Fill holes (4-connected) of fewer px than `max_area_px` in (h, w) uint8 in place."""
    if max_area_px <= 0:
        return
    contours, family = _contours(mask)
    for k, contour in enumerate(contours):
        if family[k][3] >= 0 and _area_px(contour, is_hole=True) < max_area_px:
            # the contour of a hole runs on the tissue around it
            cv2.drawContours(mask, contours, k, 1, cv2.FILLED)


def grow_ink(flags: np.ndarray, min_area_px: float, reach_px: int) -> np.ndarray:
    """Turn flags of px (h, w) uint8 into an ink mask (h, w) uint8 of 0 and 1.

    Pieces of ink under `min_area_px` do not count. The others take a rim of 2 px with them, where ink is mixed
    with what lies beside it, and the paler px of its hue in reach.
    """
    ink = (flags & INK) >> 1
    drop_specks(ink, min_area_px)
    if not ink.any():
        return ink
    side = 2 * reach_px + 1
    near = cv2.bitwise_and(cv2.dilate(ink, np.ones((side, side), np.uint8)), flags & NEAR_INK)
    return np.asarray(cv2.bitwise_or(cv2.dilate(ink, np.ones((5, 5), np.uint8)), near))


def _contours(mask: np.ndarray) -> tuple[tuple[np.ndarray, ...], list[list[int]]]:
    """Trace pieces and their holes; the family of each is [next, previous, first child, parent], -1 for none."""
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return tuple(contours), [] if hierarchy is None else hierarchy[0].tolist()


def _area_px(contour: np.ndarray, *, is_hole: bool) -> float:
    """Count the px of a filled contour; of a hole, those inside it.

    Source: Pick's theorem (1899): area = inside + boundary / 2 - 1, on lattice points.
    """
    area, n_boundary = cv2.contourArea(contour), len(contour)
    return area - n_boundary / 2.0 + 1.0 if is_hole else area + n_boundary / 2.0 + 1.0


def _paint_piece(mask: np.ndarray, contours: tuple[np.ndarray, ...], k: int, holes: list[int]) -> None:
    """Erase one piece, not the other pieces that lie in its holes."""
    x, y, width, height = cv2.boundingRect(contours[k])
    piece = np.zeros((height, width), np.uint8)
    cv2.drawContours(piece, contours, k, 1, cv2.FILLED, offset=(-x, -y))
    for hole in holes:
        cv2.drawContours(piece, contours, hole, 0, cv2.FILLED, offset=(-x, -y))
        cv2.drawContours(piece, contours, hole, 1, 1, offset=(-x, -y))  # its contour is the piece's own px
    mask[y : y + height, x : x + width][piece > 0] = 0

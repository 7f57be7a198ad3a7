"""The unselected tiles pooled by attention, collected while a slide streams by, before anyone knows who is selected.

All tiles are summed as they come; at the end the selected are taken out again. A difference of sums is only as exact
as its largest term, so tiles are summed apart by size: one bin every 8 nats of their logit. A tile that outweighs all
others lies in a bin of its own and leaves the others' sums untouched; inside a bin no tile outweighs another by more
than e^8, and a bin that is left empty is exactly zero.

Shapes: n tiles of a chunk, m selected, T tasks, H heads, Dk width of a head. All sums are float64.
"""

from __future__ import annotations

import numpy as np

from wsi_ips.results import Pooled

__all__ = ["ContextPool"]

_BIN_NATS = 8.0  # e^8 is 3000: a sum of a million such tiles still tells one from its rounding


class _Bin:
    """Sums of the tiles whose logit lies in one bin, relative to the bin's lower edge."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        self.count = np.zeros(shape, np.int64)  # (T, H)
        self.total = np.zeros(shape)  # (T, H)
        self.pooled = np.zeros((*shape, width))  # (T, H, Dk)


class ContextPool:
    """Takes chunks of one slide in any order; mutable, for one pass."""

    def __init__(self) -> None:
        self._bins: dict[int, _Bin] = {}
        self._n = 0

    def add(self, values: np.ndarray, logits: np.ndarray) -> None:
        """Take a chunk: values (n, H, Dk) from `classifier.values`, logits (n, T, H) from `scan`, all finite."""
        self._n += len(logits)
        _accumulate(self._bins, values, logits)

    def rest(self, values_selected: np.ndarray, logits_selected: np.ndarray) -> Pooled | None:
        """Pool all tiles but the selected, which must have been added with the same numbers.

        Args:
            values_selected: (m, H, Dk).
            logits_selected: (m, T, H).

        Returns:
            None when nothing is left.
        """
        if self._n <= len(logits_selected):
            return None
        taken: dict[int, _Bin] = {}
        _accumulate(taken, values_selected, logits_selected)
        empty = _empty_like(next(iter(self._bins.values())))
        left = [(number, _without(whole, taken.get(number, empty))) for number, whole in self._bins.items()]
        with np.errstate(divide="ignore"):
            logs = np.stack([number * _BIN_NATS + np.log(one.total) for number, one in left])  # -inf where empty
        log_norm = np.logaddexp.reduce(logs)
        # a tile left lies above its bin's lower edge, so these are at most 1
        shares = [np.exp(np.where(one.count > 0, number * _BIN_NATS - log_norm, -np.inf)) for number, one in left]
        return Pooled(
            log_norm, np.sum([w[..., None] * one.pooled for w, (_, one) in zip(shares, left, strict=True)], 0)
        )


def _empty_like(one: _Bin) -> _Bin:
    return _Bin(one.total.shape, one.pooled.shape[-1])


def _without(whole: _Bin, taken: _Bin) -> _Bin:
    out = _empty_like(whole)
    out.count = whole.count - taken.count
    stays = out.count > 0
    out.total = np.where(stays, np.maximum(whole.total - taken.total, 1.0), 0.0)  # each tile left adds 1 or more
    out.pooled = np.where(stays[..., None], whole.pooled - taken.pooled, 0.0)
    return out


def _accumulate(bins: dict[int, _Bin], values: np.ndarray, logits: np.ndarray) -> None:
    values, logits = np.asarray(values, np.float64), np.asarray(logits, np.float64)
    place = np.floor(logits / _BIN_NATS).astype(np.int64)  # (n, T, H)
    for number in np.unique(place).tolist():
        inside = place == number
        weights = np.where(inside, np.exp(np.minimum(logits - number * _BIN_NATS, _BIN_NATS)), 0.0)
        one = bins.setdefault(number, _Bin(logits.shape[1:], values.shape[-1]))
        one.count += inside.sum(axis=0)
        one.total += weights.sum(axis=0)
        one.pooled += np.einsum("nth,nhd->thd", weights, values)

"""Which tiles of a slide are learned from this time: the exact top M, and what may be changed about it.

`full` scores every tile with the weights of the moment. `stale` keeps last time's embeddings: the present head ranks
them, the best M and a random sample of the others go through the encoder again, and what has become of these says how the
others have drifted. By the drifted embeddings the tiles near the M boundary are chosen that are encoded as well. The
sampled tiles that this choice would not have taken are its audit: one that enters the top M stands for all the others it
was drawn from. Only what the encoder does to a tile and to no other can hide it; the head's changes never do.

Shapes: N tiles, M memory size, m = min(M, N), W encoder width, T tasks, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from wsi_ips.config import ModelSettings
from wsi_ips.errors import ModelError
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.ledger import ips_loop, scores_from_logits, top_rows
from wsi_ips.recipe import TrainSettings
from wsi_ips.training.bags import Bags, PixelBags, Planned
from wsi_ips.training.drift import follow_drift
from wsi_ips.training.stale import StaleStore

__all__ = ["STEPS", "Audit", "Moment", "Pick", "Picker", "pooled_recall"]


_BATCH = 8192
STEPS = 1_000_000  # more than an epoch has


class Audit(NamedTuple):
    """What one slide's selection from stale embeddings says of itself."""

    m: int
    n_missed: float  # estimated members of the true top M that were not found
    true_recall: float = float("nan")  # where every tile was scored to check


class Pick(NamedTuple):
    """What a slide gives to a step."""

    rows: np.ndarray  # (m,) int64, what is learned from
    others: np.ndarray | None  # (n, W) float32, the context; None without
    other_rows: np.ndarray | None  # (n,) int64, theirs
    embeddings: np.ndarray | None  # (m, W) float32, where instances are embeddings
    audit: Audit | None

    @property
    def others_tensor(self) -> torch.Tensor | None:
        """The context as a tensor."""
        return None if self.others is None else torch.from_numpy(self.others)


@dataclass(frozen=True)
class Moment:
    """When a slide is picked: decides draws and whether tiles are scored again."""

    epoch: int  # from 1
    index: int  # the slide's place in the training set
    memory_size: int  # M of this step
    step: int = 0  # of the epoch
    is_full: bool = True  # score every tile
    is_check: bool = False  # stale: score every tile, too, to know the recall

    def rng(self, seed: int, purpose: int) -> np.random.Generator:
        """Draws that depend on nothing but seed, step and slide: the same on any process, after any restart."""
        return np.random.default_rng([seed, self.epoch, self.step, self.index, purpose])

    @property
    def tag(self) -> int:
        """Number of the step among all steps; a slide may come twice in an epoch."""
        return self.epoch * STEPS + self.step


def pooled_recall(audits: list[Audit]) -> float:
    """Estimated share of the true top M that was found, over all slides; NaN without an audit."""
    total = sum(a.m for a in audits)
    return max(0.0, 1.0 - sum(a.n_missed for a in audits) / total) if total else float("nan")


class Picker:
    """Picks; holds nothing but the store of stale embeddings.

    Args:
        bags: where tiles come from.
        settings: of the model.
        train: of the training.
        store: last embeddings a slide; needed for `rescan: {mode: stale}`.
    """

    def __init__(self, bags: Bags, settings: ModelSettings, train: TrainSettings, store: StaleStore | None) -> None:
        self.bags, self.settings, self.train, self.store = bags, settings, train, store
        self.is_stale = train.rescan.mode == "stale" and bags.are_tiles and store is not None

    def pick(self, planned: Planned, classifier: IPSClassifier, moment: Moment) -> Pick:
        """Choose a slide's instances with the present weights (the classifier in eval mode).

        Raises:
            SlideError: the slide cannot be read (any more).
            ModelError: `E_NOT_FINITE`, numbers of a tile that are not finite; names the slide and the place.
        """
        try:
            pick = self._pick(planned, classifier, moment)
        except ModelError as error:
            when = f"epoch {moment.epoch}, step {moment.step + 1}, slide {planned.member.record.slide_id}"
            raise ModelError(f"{when}: {error}", error.code) from error
        self.bags.has_chosen(planned, pick.rows)
        return pick

    def _pick(self, planned: Planned, classifier: IPSClassifier, moment: Moment) -> Pick:
        n, m = planned.n_tiles, min(moment.memory_size, planned.n_tiles)
        audit = None
        embeddings: np.ndarray | None = None
        if moment.epoch <= self.train.random_epochs:
            rows = self.bags.different_first(planned, moment.rng(self.train.seed, 0).permutation(n), m)
            if not self.bags.are_tiles or self.settings.selection.context:
                embeddings = self.bags.embeddings(planned, classifier)
            return _pick(rows, np.setdiff1d(np.arange(n), rows), embeddings, None, self)
        if not self.bags.are_tiles or self.settings.selection.context or self.is_stale:
            embeddings, audit = self._embeddings(planned, classifier, moment)
            rows = self._chosen(embeddings, classifier, m, moment)
        elif m == n and self.train.mask_top == 0.0:
            rows = np.arange(n)  # all of them, whatever the scores
        else:
            rows = self._best(self.bags.logits(planned, classifier), m, moment)
        others = np.setdiff1d(np.arange(n), rows)
        rows, others = self._varied(planned, rows, others, moment)
        return _pick(rows, others, embeddings, audit, self)

    def _chosen(self, embeddings: np.ndarray, classifier: IPSClassifier, m: int, moment: Moment) -> np.ndarray:
        if m == len(embeddings) and self.train.mask_top == 0.0:
            return np.arange(m)
        return self._best(self._logits(embeddings, classifier), m, moment)

    def _best(self, logits: np.ndarray, m: int, moment: Moment) -> np.ndarray:
        """Rows (m,), best first: the exact top M, or what the paper's loop ends with."""
        how = self.settings.selection
        if how.mode == "exact":
            return top_rows(scores_from_logits(logits), m)
        n = len(logits)
        rng = np.random.default_rng([self.train.seed, moment.epoch, moment.step, 6, 6, 6])  # one draw for all slides of a step
        order = rng.permutation(n) if how.order == "shuffled" else np.arange(n)
        return order[ips_loop(logits[order], m, how.chunk_size)]

    def _top(self, embeddings: np.ndarray, classifier: IPSClassifier, m: int) -> np.ndarray:
        return top_rows(self._scores(embeddings, classifier), m) if m < len(embeddings) else np.arange(m)

    def _scores(self, embeddings: np.ndarray, classifier: IPSClassifier) -> np.ndarray:
        return scores_from_logits(self._logits(embeddings, classifier))

    def _logits(self, embeddings: np.ndarray, classifier: IPSClassifier) -> np.ndarray:
        # one call for most bags; fixed batches are for the last bits of a label, and none is made here
        n = len(embeddings)
        return classifier.scan(embeddings.astype(np.float32), min(n, _BATCH), np.arange(n)).logits

    def _varied(
        self, planned: Planned, rows: np.ndarray, others: np.ndarray, moment: Moment
    ) -> tuple[np.ndarray, np.ndarray]:
        """Leave some of the best out, exchange the last for random unselected ones, as the settings say."""
        train, rng = self.train, moment.rng(self.train.seed, 1)
        if train.mask_top > 0.0 and len(rows) > 1:
            top = max(1, len(rows) // 10)
            stays = np.ones(len(rows), bool)
            stays[:top] = rng.random(top) >= train.mask_top
            rows = rows[stays] if stays.any() else rows[-1:]  # what is left out is in no bag this time
        if train.explore > 0.0:
            k = min(round(train.explore * len(rows)), len(others))
            enter = self.bags.different_first(planned, rng.permutation(others), k)
            leave = rows[len(rows) - k :]
            rows = np.concatenate([rows[: len(rows) - k], enter])
            others = np.sort(np.concatenate([np.setdiff1d(others, enter), leave]))
        return rows, others

    def _embeddings(
        self, planned: Planned, classifier: IPSClassifier, moment: Moment
    ) -> tuple[np.ndarray, Audit | None]:
        """All tiles' embeddings, stale ones renewed where they matter."""
        slide_id = planned.member.record.slide_id
        old = self.store.get(slide_id) if self.is_stale and self.store is not None and not moment.is_full else None
        if old is None:
            found = self.bags.embeddings(planned, classifier)
            if self.is_stale and self.store is not None:
                self.store.put(slide_id, found, moment.tag)
            return found, None
        mixed, audit = self._renewed(planned, classifier, moment, old)
        if self.store is not None:
            self.store.put(slide_id, mixed, moment.tag)
        return mixed, audit

    def _renewed(
        self, planned: Planned, classifier: IPSClassifier, moment: Moment, old: np.ndarray
    ) -> tuple[np.ndarray, Audit]:
        assert isinstance(self.bags, PixelBags)
        n, how = len(old), self.train.rescan
        m = min(self.settings.selection.memory_size, n)  # elastic or not, the boundary that a label has
        reach = min(n, max(moment.memory_size, round((1.0 + how.band) * m)))
        near = self._top(old, classifier, m)
        far = np.setdiff1d(np.arange(n), near)
        sample = np.sort(moment.rng(self.train.seed, 2).permutation(far)[: int(np.ceil(how.audit * len(far)))])
        fresh = self._fresh(planned, classifier, moment)
        known = np.concatenate([near, sample])
        mixed, guess = follow_drift(old, known, made := fresh.rows(known))
        mixed[known] = made
        # who else may be among the best: by rank of what is guessed, for sampled rows as if they had not been made anew
        rows = mixed.copy()
        rows[known] = guess
        more = far[top_rows(self._scores(rows, classifier)[far], reach - m)] if reach > m else far[:0]
        extra = np.setdiff1d(more, sample)
        if len(extra):
            mixed[extra] = fresh.rows(extra)
        scores = self._scores(mixed, classifier)
        best = top_rows(scores, m)
        rest = np.setdiff1d(sample, more)  # a random part of all that nobody asked for
        n_missed = _missed(scores, np.concatenate([near, more]), rest, len(far) - len(more), m)
        recall = float("nan") if fresh.whole is None else float(np.isin(self._top(fresh.whole, classifier, m), best).mean())
        return mixed.astype(old.dtype), Audit(m, n_missed, recall)

    def _fresh(self, planned: Planned, classifier: IPSClassifier, moment: Moment) -> _Fresh:
        assert isinstance(self.bags, PixelBags)
        if not moment.is_check:
            return _Fresh(self.bags, planned, classifier, None)
        before = self.bags.n_encoded
        whole = self.bags.embeddings(planned, classifier).astype(np.float32)
        self.bags.n_encoded = before  # what the check alone costs is not counted
        return _Fresh(self.bags, planned, classifier, whole)


class _Fresh(NamedTuple):
    """Embeddings of the moment: made when asked for, or, for a check, all at once."""

    bags: PixelBags
    planned: Planned
    classifier: IPSClassifier
    whole: np.ndarray | None  # (N, W)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """(n, W) float32."""
        if self.whole is None:
            return self.bags.embed_rows(self.planned, rows, self.classifier)
        self.bags.n_encoded += len(rows)
        return self.whole[rows]


def _pick(
    rows: np.ndarray, others: np.ndarray, embeddings: np.ndarray | None, audit: Audit | None, picker: Picker
) -> Pick:
    context = None
    if picker.settings.selection.context and embeddings is not None and len(others):
        context = embeddings[others].astype(np.float32)
    own = None if picker.bags.are_tiles or embeddings is None else embeddings[rows].astype(np.float32)
    return Pick(rows, context, None if context is None else others, own, audit)


def _missed(scores: np.ndarray, near: np.ndarray, sample: np.ndarray, n_far: int, m: int) -> float:
    """Estimate how many of the true top M are among the unsampled.

    Every sampled tile stands for `n_far / len(sample)` tiles. Going down the fresh scores until M tiles are stood for,
    those met are what was found; the rest of M is what the others would have held.

    Args:
        scores: (N,) of the mixed embeddings; only those of fresh tiles are used.
        near: rows scored again because of their rank.
        sample: rows scored again by chance, of `n_far` that are not near.
        n_far: tiles that are not near.
        m: M.
    """
    if not len(sample):
        return 0.0
    rows = np.concatenate([near, sample])
    weights = np.concatenate([np.ones(len(near)), np.full(len(sample), n_far / len(sample))])
    order = np.argsort(-scores[rows], kind="stable")
    stood_for = np.cumsum(weights[order])
    at = int(np.searchsorted(stood_for, m))  # the tile that M falls on
    before = stood_for[at - 1] if at else 0.0
    found = at + (m - before) / weights[order][at] if at < len(rows) else len(rows)
    return max(0.0, m - found)

"""Which tiles are learned from: exact when everything is scored, audited when not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.ledger import ips_loop, scores_from_logits, top_rows
from wsi_ips.recipe import TrainSettings
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.training.bags import PixelBags, Planned
from wsi_ips.training.held import HeldSlides
from wsi_ips.training.selecting import Audit, Moment, Picker, pooled_recall
from wsi_ips.training.stale import StaleStore
from wsi_ips.training.start import build_classifier
from wsi_ips.training.targets import Member

N = 400


class _DrawnBags(PixelBags):
    """Embeddings that a test draws in place of an encoder's; counts what is asked for."""

    vectors: np.ndarray

    def embeddings(self, planned, classifier):  # type: ignore[no-untyped-def]
        self.n_encoded += N
        return self.vectors.astype(np.float16)

    def embed_rows(self, planned, rows, classifier):  # type: ignore[no-untyped-def]
        self.n_encoded += len(rows)
        return self.vectors[rows].astype(np.float16).astype(np.float32)

    def logits(self, planned, classifier):  # type: ignore[no-untyped-def]
        return classifier.scan(self.embeddings(planned, classifier).astype(np.float32), N).logits


@pytest.fixture
def parts(tiny_settings: ModelSettings):  # type: ignore[no-untyped-def]
    settings = tiny_settings.replace(selection={"memory_size": 20, "chunk_size": 16})
    classifier = build_classifier(settings, seed=3).eval()
    bags = _DrawnBags(settings, ReadSettings())
    bags.vectors = np.random.default_rng(0).normal(size=(N, classifier.width)).astype(np.float32)
    planned = Planned(Member(SlideRecord("a", "a.svs", "p"), (1.0,)), N)
    return settings, classifier, bags, planned


def _true_top(classifier, vectors: np.ndarray, m: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    logits = classifier.scan(vectors.astype(np.float16).astype(np.float32), 16).logits
    return top_rows(scores_from_logits(logits), m)


def test_full_scoring_picks_the_exact_top(parts) -> None:  # type: ignore[no-untyped-def]
    """The M best of all N by the weights of the moment; any M that a step asks for."""
    settings, classifier, bags, planned = parts
    for m in (5, 20, 77):
        pick = Picker(bags, settings, TrainSettings(), None).pick(planned, classifier, Moment(1, 0, m))
        assert pick.rows.tolist() == _true_top(classifier, bags.vectors, m).tolist()
    assert bags.n_encoded == 3 * N


def test_a_bag_no_larger_than_m_is_not_scored(parts) -> None:  # type: ignore[no-untyped-def]
    """All tiles are taken, so nothing is encoded to choose."""
    settings, classifier, bags, planned = parts
    pick = Picker(bags, settings, TrainSettings(), None).pick(planned, classifier, Moment(1, 0, N + 3))
    assert pick.rows.tolist() == list(range(N))
    assert bags.n_encoded == 0


def test_stale_scoring_follows_the_head_exactly_and_encodes_less(parts, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """While the encoder stands still, stale embeddings give the exact top M for a head that has moved."""
    settings, classifier, bags, planned = parts
    train = TrainSettings(rescan={"mode": "stale", "band": 2.0, "audit": 0.05})
    picker = Picker(bags, settings, train, StaleStore(tmp_path))
    picker.pick(planned, classifier, Moment(1, 0, 20))
    assert bags.n_encoded == N
    with torch.no_grad():
        classifier.attention.query.add_(torch.randn_like(classifier.attention.query))
    pick = picker.pick(planned, classifier, Moment(2, 0, 20, is_full=False))
    assert pick.rows.tolist() == _true_top(classifier, bags.vectors, 20).tolist()
    asked = bags.n_encoded - N
    assert 60 <= asked <= 60 + 19  # (1 + band) M, and 5 % of the 380 behind M that are not among them
    assert pick.audit is not None
    assert pick.audit.n_missed == 0.0


def test_the_audit_estimates_the_recall_that_a_check_counts(parts, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The encoder jumps: over many audits the estimate agrees with the count, and both are far from 1."""
    settings, classifier, bags, planned = parts
    train = TrainSettings(rescan={"mode": "stale", "band": 1.0, "audit": 0.2})
    old, rng = bags.vectors.copy(), np.random.default_rng(1)
    moved = old + 0.6 * rng.normal(size=old.shape).astype(np.float32)
    audits = []
    for index in range(60):
        picker = Picker(bags, settings, train, StaleStore(tmp_path / str(index)))
        bags.vectors = old
        picker.pick(planned, classifier, Moment(1, index, 20))
        bags.vectors = moved
        before = bags.n_encoded
        audits.append(picker.pick(planned, classifier, Moment(2, index, 20, is_full=False, is_check=True)).audit)
        assert 40 + 56 <= bags.n_encoded - before <= 40 + 76  # what is scored for the check alone is not counted
    counted = np.mean([a.true_recall for a in audits])
    assert counted < 0.95
    assert pooled_recall(audits) == pytest.approx(counted, abs=0.05)


def test_a_drift_that_all_tiles_share_hides_none(parts, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The encoder turns and shifts all embeddings: the exact top M is found where old embeddings alone would miss a third."""
    settings, classifier, bags, planned = parts
    picker = Picker(bags, settings, TrainSettings(rescan={"mode": "stale", "audit": 0.1}), StaleStore(tmp_path))
    picker.pick(planned, classifier, Moment(1, 0, 20))
    before, rng = bags.vectors, np.random.default_rng(2)
    width = before.shape[1]
    turn = np.linalg.qr(np.eye(width) + 0.5 * rng.normal(size=(width, width)))[0]
    bags.vectors = (before @ turn + rng.normal(size=width)).astype(np.float32)
    now = _true_top(classifier, bags.vectors, 20)
    old = _true_top(classifier, before, 50)  # as many as are asked for by rank
    assert np.isin(now, old).mean() < 0.67
    pick = picker.pick(planned, classifier, Moment(2, 0, 20, is_full=False))
    assert sorted(pick.rows.tolist()) == sorted(now.tolist())


def test_pooled_recall_weighs_slides_by_their_memory() -> None:
    """3 of 30 missed on one slide, none of 10 on the other: 37 of 40 found."""
    assert pooled_recall([Audit(30, 3.0), Audit(10, 0.0)]) == pytest.approx(0.925)
    assert np.isnan(pooled_recall([]))


def test_masking_leaves_out_some_of_the_best_tenth_only(parts) -> None:  # type: ignore[no-untyped-def]
    """Ranks behind the best tenth always stay; over many draws each of the best is out about half of the time."""
    settings, classifier, bags, planned = parts
    top = _true_top(classifier, bags.vectors, 20)
    picker = Picker(bags, settings, TrainSettings(epochs=300, mask_top=0.5), None)
    out = np.zeros(20)
    for epoch in range(1, 101):
        rows = picker.pick(planned, classifier, Moment(epoch, 0, 20)).rows
        out += ~np.isin(top, rows)
    assert (out[2:] == 0).all()
    assert (np.abs(out[:2] - 50) < 25).all()


def test_exploring_exchanges_the_last_for_unselected_tiles(parts) -> None:  # type: ignore[no-untyped-def]
    """A quarter of M is drawn from the others; the best three quarters stay; draws depend on epoch and slide alone."""
    settings, classifier, bags, planned = parts
    top = _true_top(classifier, bags.vectors, 20)
    picker = Picker(bags, settings, TrainSettings(explore=0.25), None)
    one = picker.pick(planned, classifier, Moment(1, 0, 20)).rows
    assert one[:15].tolist() == top[:15].tolist()
    assert not np.isin(one[15:], top).any()
    assert picker.pick(planned, classifier, Moment(1, 0, 20)).rows.tolist() == one.tolist()
    assert picker.pick(planned, classifier, Moment(2, 0, 20)).rows.tolist() != one.tolist()


def test_context_holds_every_tile_that_is_not_learned_from(parts) -> None:  # type: ignore[no-untyped-def]
    """Selected and others together are the whole bag, once each."""
    settings, classifier, bags, planned = parts
    settings = settings.replace(selection={"memory_size": 20, "chunk_size": 16, "context": True})
    pick = Picker(bags, settings, TrainSettings(), None).pick(planned, classifier, Moment(1, 0, 20))
    assert pick.others is not None
    whole = np.concatenate([bags.vectors[pick.rows], pick.others])
    assert np.allclose(np.sort(whole[:, 0]), np.sort(bags.vectors[:, 0]), atol=0.01)
    assert len(pick.others) == N - 20


def test_a_restored_store_gives_the_embeddings_of_its_checkpoint(tmp_path: Path) -> None:
    """What was put behind the checkpoint does not count, and pruning keeps what counts."""
    store = StaleStore(tmp_path)
    store.put("a", np.full((3, 2), 1, np.float16), 1)
    state = store.state()
    store.put("a", np.full((3, 2), 2, np.float16), 2)
    store.restore(state)
    store.prune()
    found = store.get("a")
    assert found is not None
    assert (found == 1).all()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_epoch_scores_every_tile_though_there_are_last_embeddings(parts, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """What the encoder makes of the tiles now decides, no old vector does, and there is nothing to audit."""
    settings, classifier, bags, planned = parts
    picker = Picker(bags, settings, TrainSettings(rescan={"mode": "stale"}), StaleStore(tmp_path))
    picker.pick(planned, classifier, Moment(1, 0, 20))
    bags.vectors = np.random.default_rng(1).normal(size=bags.vectors.shape).astype(np.float32)
    pick = picker.pick(planned, classifier, Moment(2, 0, 20, is_full=True))
    assert pick.rows.tolist() == _true_top(classifier, bags.vectors, 20).tolist()
    assert (bags.n_encoded, pick.audit) == (2 * N, None)


def test_what_was_scored_again_is_what_is_remembered(parts, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """After a stale epoch the renewed rows hold the new vectors, the others what the shared drift makes of the old ones."""
    settings, classifier, bags, planned = parts
    train, store = TrainSettings(rescan={"mode": "stale", "band": 1.0, "audit": 0.05}), StaleStore(tmp_path)
    picker = Picker(bags, settings, train, store)
    picker.pick(planned, classifier, Moment(1, 0, 20))
    old, rng = bags.vectors, np.random.default_rng(4)
    bags.vectors = (old + 1.0 + 0.1 * rng.normal(size=old.shape)).astype(np.float32)
    picker.pick(planned, classifier, Moment(2, 0, 20, is_full=False))
    kept = store.get("a")
    assert kept is not None
    is_new = (kept == bags.vectors.astype(np.float16)).all(axis=1)
    assert is_new.sum() == bags.n_encoded - N
    assert is_new.sum() < N / 2
    left = np.abs(kept[~is_new] - bags.vectors[~is_new]).mean()
    assert left < 0.3 * np.abs(old[~is_new] - bags.vectors[~is_new]).mean()


def test_the_first_epochs_learn_on_random_tiles(parts) -> None:  # type: ignore[no-untyped-def]
    """Nothing is scored in either of two random epochs, each draws other tiles, and the third takes the best."""
    settings, classifier, bags, planned = parts
    picker = Picker(bags, settings, TrainSettings(random_epochs=2), None)
    drawn = [picker.pick(planned, classifier, Moment(epoch, 0, 20)).rows for epoch in (1, 2)]
    assert bags.n_encoded == 0
    assert [len(set(rows.tolist())) for rows in drawn] == [20, 20]
    assert len(np.intersect1d(*drawn)) < 10
    third = picker.pick(planned, classifier, Moment(3, 0, 20)).rows
    assert third.tolist() == _true_top(classifier, bags.vectors, 20).tolist()


def test_the_papers_loop_teaches_where_it_is_asked_for(parts, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Mode `ips` picks what the loop ends with; shuffled, all slides of a step meet one order, and the next step another."""
    settings, classifier, bags, planned = parts
    logits = np.random.default_rng(0).normal(0.0, 5.0, (N, 1, 2)).astype(np.float32)  # sharp, so that heads disagree
    monkeypatch.setattr(bags, "logits", lambda *_: logits)
    picks = {}
    for order in ("rows", "shuffled"):
        chosen = settings.replace(selection={"mode": "ips", "order": order, "memory_size": 20, "chunk_size": 16})
        picker = Picker(bags, chosen, TrainSettings(), None)
        picks[order] = [picker.pick(planned, classifier, Moment(1, i, 20, step)).rows for i, step in ((0, 0), (1, 0), (0, 1), (0, 2), (0, 3))]
    assert picks["rows"][0].tolist() == ips_loop(logits, 20, 16).tolist()
    first, second, *later = (set(rows.tolist()) for rows in picks["shuffled"])
    assert first == second
    assert any(rows != first for rows in later)


def test_loading_changes_what_is_read_and_not_what_is_learned(tiny_settings: ModelSettings) -> None:
    """Lazy tiles are read twice when chosen; of a slide or a step they are kept; rows and pixels are the same."""
    settings = tiny_settings.replace(tile={"size_px": 32, "mpp": 1.0}, tissue={"method": "whole"})
    classifier = build_classifier(settings, seed=3).eval()
    image = np.random.default_rng(0).integers(0, 256, (128, 160, 3), dtype=np.uint8)
    found, n_read = {}, {}
    for loading in ("lazy", "slide", "batch"):
        reads: list[tuple[int, int]] = []

        class Watched(ArraySlide):
            def read_into(self, out, x0, y0, level, shrink=1):  # type: ignore[no-untyped-def]
                reads.append((x0, y0))  # noqa: B023
                return super().read_into(out, x0, y0, level, shrink)

        bags = PixelBags(settings, ReadSettings(loading=loading), slides=HeldSlides(0.0, lambda _: Watched(image, mpp=1.0)))
        (planned,), _ = bags.plan([Member(SlideRecord("a", "a", "p"), (1.0,))])
        for _step in range(2):
            pick = Picker(bags, settings, TrainSettings(), None).pick(planned, classifier, Moment(1, 0, 6))
            tiles = np.concatenate(list(bags.tiles(planned, pick.rows)))
            bags.end_step()
        found[loading], n_read[loading] = (pick.rows.tolist(), tiles.tobytes()), len(reads)
    assert found["lazy"] == found["slide"] == found["batch"]
    assert n_read == {"lazy": 2 * 26, "slide": 2 * 20, "batch": 2 * 20}


def test_random_tiles_are_different_ones_where_equal_tiles_count_once(tiny_settings: ModelSettings) -> None:
    """Of 20 tiles 4 have marks: five random ones are these and one blank, at other places each time."""
    settings = tiny_settings.replace(tile={"size_px": 32, "mpp": 1.0}, tissue={"method": "whole"})
    image = np.zeros((128, 160, 3), np.uint8)
    marked = [3, 4, 11, 17]
    for k, row in enumerate(marked):
        image[row // 5 * 32 + 9, row % 5 * 32 + 5] = 10 + k
    for same_once in (True, False):
        bags = PixelBags(settings, ReadSettings(same_once=same_once), slides=HeldSlides(0.0, lambda _: ArraySlide(image, mpp=1.0)))
        (planned,), _ = bags.plan([Member(SlideRecord("a", "a", "p"), (1.0,))])
        picker = Picker(bags, settings, TrainSettings(random_epochs=5, epochs=6), None)
        found = [picker.pick(planned, build_classifier(settings), Moment(epoch, 0, 5)).rows.tolist() for epoch in (1, 2, 3)]
        assert len({tuple(rows) for rows in found}) == 3
        assert [len(set(rows)) for rows in found] == [5, 5, 5]
        assert all(set(marked) < set(rows) for rows in found) == same_once


def test_different_tiles_are_looked_for_only_as_far_as_needed(tiny_settings: ModelSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 tiles the first three differ: one block is read for two of them; where ten are wanted, all, and copies fill up."""
    settings = tiny_settings.replace(tile={"size_px": 32, "mpp": 1.0}, tissue={"method": "whole"})
    image = np.zeros((480, 640, 3), np.uint8)
    image[0, 0], image[0, 32] = 1, 2
    bags = PixelBags(settings, ReadSettings(same_once=True), slides=HeldSlides(0.0, lambda _: ArraySlide(image, mpp=1.0)))
    (planned,), _ = bags.plan([Member(SlideRecord("a", "a", "p"), (1.0,))])
    read: list[int] = []
    tiles = bags.tiles
    monkeypatch.setattr(bags, "tiles", lambda *a: (read.append(len(t)) or t for t in tiles(*a)))
    assert bags.different_first(planned, np.arange(200), 2).tolist() == [0, 1]
    assert sum(read) == 64
    read.clear()
    assert bags.different_first(planned, np.arange(300), 10).tolist() == list(range(10))
    assert sum(read) == 300

"""Numbers that are not finite, bags of odd sizes, scores of odd values: what a slide's label and map make of them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from dark_model import SIDE, dark_bundle, tissue_slide

from wsi_ips.engine.predict import PredictJob, predict_slide
from wsi_ips.errors import ModelError, NoTissueError
from wsi_ips.model import classifier as classifier_module
from wsi_ips.model.bundle import Bundle
from wsi_ips.model.ledger import attention_from_logits, scores_from_logits, top_rows
from wsi_ips.results import SlidePrediction, ledger_bytes
from wsi_ips.slide.arrayslide import ArraySlide

HOT = (3 * SIDE, 2 * SIDE)  # level-0 px, corner of the dark tile


def _predict(bundle: Bundle, slide: ArraySlide | None = None) -> SlidePrediction:
    return predict_slide(slide or tissue_slide((*HOT, SIDE)), bundle, PredictJob("s", with_bag=True))


@pytest.fixture
def bundle() -> Bundle:
    return dark_bundle()


class _Spoiled(torch.nn.Module):
    """A net that gives some number for dark tiles."""

    num_features = 4

    def __init__(self, net: torch.nn.Module, value: float) -> None:
        super().__init__()
        self.net, self.value = net, value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.net(x).clone()
        out[x.mean(dim=(1, 2, 3)) < 0.4] = self.value
        return out


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_fault_105_an_embedding_that_is_not_finite_stops_the_slide_with_its_place(bundle: Bundle, value: float) -> None:
    """Never a class: the tile's level-0 px are said."""
    encoder = bundle.classifier.encoder
    encoder.net = _Spoiled(encoder.net, value)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=re.escape(f"the tile at level-0 px {HOT}")) as caught:
        _predict(bundle)
    assert caught.value.code == "E_NOT_FINITE"


def test_fault_105_a_score_that_is_not_finite_stops_the_slide_with_its_place(bundle: Bundle) -> None:
    """Finite embeddings whose attention overflows float32: the tile is found, not the first of its chunk."""
    encoder = bundle.classifier.encoder
    encoder.net = _Spoiled(encoder.net, 6e4)  # type: ignore[union-attr]
    with torch.no_grad():
        bundle.classifier.attention.to_key.weight *= 1e35  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=re.escape(f"attention logits of the tile at level-0 px {HOT}")) as caught:
        _predict(bundle)
    assert caught.value.code == "E_NOT_FINITE"


def test_fault_105_a_label_that_is_not_finite_is_no_label(bundle: Bundle) -> None:
    """A head that overflows is an error, whatever an argmax would make of it."""
    with torch.no_grad():
        bundle.classifier.heads[0].bias.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="label's logits are not finite") as caught:
        predict_slide(tissue_slide((*HOT, SIDE)), bundle, PredictJob("s"))
    assert caught.value.code == "E_NOT_FINITE"


def test_fault_105_evidence_that_is_not_finite_is_no_result(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label may be finite where the label without one tile is not."""
    real = classifier_module.leave_one_out

    def spoiled(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type]
        found.without[2] = float("inf")
        return found

    monkeypatch.setattr(classifier_module, "leave_one_out", spoiled)
    with pytest.raises(ModelError, match="rank 3 is not finite"):
        predict_slide(tissue_slide((*HOT, SIDE)), bundle, PredictJob("s"))


def test_fault_107_no_tile_is_no_label(bundle: Bundle) -> None:
    """Glass, and a slide smaller than a tile, end as no tissue or no tiles before any softmax over nothing."""
    with pytest.raises(NoTissueError, match="E_NO_T"):
        _predict(bundle, tissue_slide(width=SIDE - 1, height=SIDE - 9))


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9])
def test_fault_107_bags_about_as_large_as_the_memory_are_read_out_exactly(bundle: Bundle, n: int) -> None:
    """N below, at and above M = 8: all numbers finite, attention sums to 1, all tiles used where N <= M; equal tiles share alike."""
    p = _predict(bundle, tissue_slide(width=n * SIDE, height=SIDE))
    assert p.n_tiles == n
    assert len(p.selected) == min(n, 8)
    for name in ("logits", "attention", "values", "evidence", "outputs", "bag_evidence"):
        assert np.isfinite(getattr(p, name)).all(), name
    np.testing.assert_allclose(p.attention.sum(axis=0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(p.attention, 1 / n, rtol=1e-5)
    if n == 1:  # the rest is the query alone
        alone = bundle.classifier.read_out(np.zeros((0, 4), np.float32), None).outputs
        np.testing.assert_allclose(p.evidence[0], p.outputs - alone, atol=1e-5)


def test_fault_106_equal_scores_are_taken_by_row(bundle: Bundle) -> None:
    """All tiles alike: the selection is the first M rows, in order, whatever the length of the bag."""
    for columns in (9, 12, 37):
        p = _predict(bundle, tissue_slide(width=columns * SIDE, height=2 * SIDE))
        assert len(np.unique(p.logits)) == 1
        assert p.selected.tolist() == list(range(8))


@pytest.mark.parametrize("size", [1e2, 1e5, 1e8])
def test_huge_logits_keep_softmax_and_selection_exact(size: float) -> None:
    """Differences are taken before the exponential: ties share all the weight, nothing overflows. (Float64 knows them up to 1e15.)"""
    logits = np.zeros((50, 1, 2), np.float32)
    logits[7], logits[11], logits[13] = size, size, -size
    attention = attention_from_logits(logits)
    np.testing.assert_allclose(attention.sum(axis=0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(attention[[7, 11], 0], 0.5, rtol=1e-6)
    assert top_rows(scores_from_logits(logits), 4).tolist()[:2] == [7, 11]


def test_fault_109_sharp_attention_does_not_overflow_half_precision(bundle: Bundle) -> None:
    """Scores beyond what float16 holds (65,504) stand in the ledger as float32, and all weight lies on the hot tile."""
    with torch.no_grad():
        bundle.classifier.attention.query *= 1e5  # type: ignore[union-attr]
    p = _predict(bundle)
    assert p.logits.dtype == np.float32
    assert p.logits.max() > 65_504
    hot = int(np.flatnonzero((p.coords == HOT).all(axis=1))[0])
    assert p.attention[hot, 0] == pytest.approx(1.0)
    assert p.selected[0] == hot


def test_fault_108_a_model_that_was_left_in_training_labels_as_ever(bundle: Bundle) -> None:
    """No dropout and no statistics of the company enter a label, whatever mode the caller left."""
    before = ledger_bytes(_predict(bundle))
    bundle.classifier.train()
    assert ledger_bytes(_predict(bundle)) == before


def test_fault_110_a_tile_s_numbers_do_not_depend_on_its_neighbours(bundle: Bundle) -> None:
    """The same tile alone, in another company and at another place of the batch has the very same logits."""
    rng = np.random.default_rng(0)
    pixels = np.full((2 * SIDE, 20 * SIDE, 3), (205, 120, 180), np.uint8)
    pixels[:, :] = np.clip(pixels + rng.normal(0, 20, pixels.shape), 0, 255).astype(np.uint8)
    whole = predict_slide(ArraySlide(pixels, mpp=1.0), bundle, PredictJob("s"))
    rolled = predict_slide(ArraySlide(np.roll(pixels, 3 * SIDE, axis=1), mpp=1.0), bundle, PredictJob("s"))
    short = predict_slide(ArraySlide(pixels[:, : 5 * SIDE].copy(), mpp=1.0), bundle, PredictJob("s"))
    at = {tuple(c): logit for c, logit in zip(whole.coords.tolist(), whole.logits, strict=True)}
    for other, shift in ((rolled, 3 * SIDE), (short, 0)):
        for (x0, y0), logit in zip(other.coords.tolist(), other.logits, strict=True):
            assert np.array_equal(at[(x0 - shift) % (20 * SIDE), y0], logit)


def test_the_seed_of_the_process_changes_no_label(bundle: Bundle) -> None:
    """Random orders of the faithfulness curves have a seed of their own; nothing else is drawn."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append(ledger_bytes(_predict(bundle)))
    assert found[0] == found[1]

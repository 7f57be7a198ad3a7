"""Ensembles: one selection, the mean of the members, a shared encoder run once; they travel as one bundle."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wsi_ips.errors import ModelError
from wsi_ips.model.bundle import load_bundle, save_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.context import ContextPool
from wsi_ips.model.ensemble import EnsembleClassifier
from wsi_ips.model.features import FeatureInput
from wsi_ips.model.ledger import attention_from_logits, scores_from_logits, top_rows


def _shared(make_classifier, k: int = 3, **options: object) -> list[IPSClassifier]:
    """Members with heads of their own and equal encoders."""
    members = [make_classifier(seed=i, dim=12, norm_layer="groupnorm", **options) for i in range(k)]
    for member in members[1:]:
        member.encoder.load_state_dict(members[0].encoder.state_dict())
    return members


def _different(make_classifier, **options: object) -> list[IPSClassifier]:
    """Members whose encoders differ in width and weights; the third has the first one's."""
    wide = make_classifier(seed=5, dim=12, channels=[8, 8, 8, 16], norm_layer="groupnorm", **options)
    first, third = _shared(make_classifier, 2, **options)
    return [first, wide, third]


@pytest.mark.parametrize("kind", [_shared, _different])
def test_label_evidence_and_attention_are_the_members_means(make_classifier, tiles: torch.Tensor, kind) -> None:
    """On the common selection: outputs, leave-one-out and attention are means over the members' own."""
    members = kind(make_classifier)
    alone = copy.deepcopy(members)
    ensemble = EnsembleClassifier(members)
    scan = ensemble.scan(tiles, 4)
    own = [member.scan(tiles, 4) for member in alone]
    assert scan.features.shape == (7, 36) == (7, ensemble.dim)
    assert scan.logits.shape == (7, 2, 6)
    attention = np.mean([attention_from_logits(one.logits) for one in own], axis=0)
    assert np.allclose(attention_from_logits(scan.logits), attention, atol=1e-12)
    chosen = top_rows(scores_from_logits(scan.logits), 3)
    assert np.array_equal(chosen, top_rows(attention.mean(1), 3))
    found = ensemble.read_out(scan.features[chosen])
    parts = [member.read_out(one.features[chosen]) for member, one in zip(alone, own, strict=True)]
    assert np.allclose(found.outputs, np.mean([p.outputs for p in parts], axis=0), atol=1e-6)
    assert np.allclose(found.evidence, np.mean([p.evidence for p in parts], axis=0), atol=1e-6)
    assert not np.allclose(found.outputs, parts[0].outputs, atol=1e-3)
    assert found.outputs.dtype == found.evidence.dtype == np.float32


def test_the_context_is_every_members_own(make_classifier, tiles: torch.Tensor) -> None:
    """Pooled side by side, each member reads its own heads' context."""
    members = _shared(make_classifier, 2, context=True)
    alone = copy.deepcopy(members)
    ensemble, rows = EnsembleClassifier(members), np.array([4, 0])

    def label(classifier: IPSClassifier | EnsembleClassifier) -> np.ndarray:
        scan, pool = classifier.scan(tiles, 4), ContextPool()
        pool.add(classifier.values(scan.features), scan.logits)
        context = pool.rest(classifier.values(scan.features[rows]), scan.logits[rows])
        return classifier.read_out(scan.features[rows], context).outputs

    assert ensemble.values(np.zeros((5, 24), np.float32)).shape == (5, 4, 6)
    assert np.allclose(label(ensemble), np.mean([label(member) for member in alone], axis=0), atol=1e-6)


@pytest.mark.parametrize(("kind", "passes", "width"), [(_shared, 1, 8), (_different, 2, 24)])
def test_a_shared_encoder_encodes_a_tile_once(
    make_classifier, tiles: torch.Tensor, kind, passes: int, width: int
) -> None:
    """Three members: as many passes as there are different encoders, counted in tiles."""
    ensemble = EnsembleClassifier(kind(make_classifier))
    seen: list[int] = []
    for encoder in {member.encoder for member in ensemble.members}:
        encoder.register_forward_hook(lambda _m, args, _out: seen.append(len(args[0])))
    ensemble.scan(tiles[:4], 4)
    assert sum(seen) == 4 * passes
    embeddings = ensemble.embed_tiles(tiles[:4], 4)
    assert embeddings.shape == (4, width)
    assert ensemble.width == width
    assert np.array_equal(ensemble.scan(embeddings, 4).logits, ensemble.scan(tiles[:4], 4).logits)


def test_what_is_cached_for_a_member_serves_the_ensemble(make_classifier) -> None:
    """The identity of embeddings is the encoder's alone where it is shared; another encoder is another identity."""
    members = _shared(make_classifier, 2)
    assert EnsembleClassifier(members).embedding_hash == members[0].embedding_hash
    other = EnsembleClassifier(_different(make_classifier))
    assert len({other.embedding_hash, *(m.embedding_hash for m in other.members)}) == 3


@pytest.mark.parametrize(("kind", "shared"), [(_shared, True), (_different, False)])
def test_an_ensemble_travels_as_one_bundle(
    make_classifier, tiles: torch.Tensor, tmp_path: Path, kind, shared: bool
) -> None:
    """After save and load: the same bits, encoders still shared and stored once; it is said to be an ensemble."""
    ensemble = EnsembleClassifier(kind(make_classifier))
    save_bundle(tmp_path / "m", ensemble, ensemble.settings, card="# three")
    bundle = load_bundle(tmp_path / "m")
    again = bundle.classifier
    assert isinstance(again, EnsembleClassifier)
    assert (bundle.config["members"], bundle.config["shared_encoder"]) == (3, shared)
    assert again.encoder_of == ensemble.encoder_of
    assert again.members[0].encoder is again.members[2].encoder
    assert again.embedding_hash == ensemble.embedding_hash
    stored = sum(
        t.numel() for key, t in load_file(tmp_path / "m" / "model.safetensors").items() if key.endswith("weight")
    )
    assert stored == sum(p.numel() for name, p in ensemble.named_parameters() if name.endswith("weight"))  # each once
    assert bundle.config["weights"]["n_parameters"] == sum(p.numel() for p in ensemble.parameters())
    before, after = ensemble.scan(tiles, 4), again.scan(tiles, 4)
    assert np.array_equal(before.features, after.features)
    assert np.array_equal(before.logits, after.logits)
    wanted, found = ensemble.read_out(before.features), again.read_out(before.features)
    assert np.array_equal(wanted.outputs, found.outputs)
    assert np.array_equal(wanted.evidence, found.evidence)
    with pytest.raises(ModelError, match="holds 3 models together, which cannot learn"):
        _ = bundle.single


def test_the_hash_changes_with_any_member(make_classifier, tmp_path: Path) -> None:
    """Another weight in the last member, or one member less, is another model."""
    ensemble = EnsembleClassifier(_shared(make_classifier))
    hashes = [save_bundle(tmp_path / "a", ensemble, ensemble.settings, card="")]
    with torch.no_grad():
        ensemble.members[2].heads[1].bias += 1e-3
    hashes.append(save_bundle(tmp_path / "b", ensemble, ensemble.settings, card=""))
    for k in (2, 1):
        fewer = EnsembleClassifier(_shared(make_classifier, k))
        hashes.append(save_bundle(tmp_path / f"c{k}", fewer, fewer.settings, card=""))
        assert len(load_bundle(tmp_path / f"c{k}").classifier.members) == k
    hashes.append(save_bundle(tmp_path / "d", fewer.members[0], fewer.settings, card=""))
    assert len(set(hashes)) == 5


def test_ensembles_of_embeddings(make_classifier, tmp_path: Path) -> None:
    """Members without encoder share the input; the bundle opens again."""
    settings = make_classifier(dim=12).settings.replace(encoder={"name": "features", "width": 8})
    members = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        members.append(IPSClassifier(FeatureInput(8), settings).eval())
    ensemble = EnsembleClassifier(members)
    embeddings = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    wanted = ensemble.scan(embeddings, 4)
    assert not ensemble.takes_tiles
    assert np.array_equal(wanted.features[:, 12:], members[1].scan(embeddings, 4).features)
    save_bundle(tmp_path / "m", ensemble, settings, card="")
    assert np.array_equal(load_bundle(tmp_path / "m").classifier.scan(embeddings, 4).logits, wanted.logits)


def test_members_that_do_not_belong_together_are_refused(make_classifier) -> None:
    """Other tiles, other tasks, no member: the message names what differs."""
    a = make_classifier(dim=12)
    with pytest.raises(ModelError, match="at least one"):
        EnsembleClassifier([])
    with pytest.raises(ModelError, match="member 1 of the ensemble differs from member 0 in tasks"):
        EnsembleClassifier([a, make_classifier(dim=12, tasks=a.settings.tasks[:1])])
    with pytest.raises(ModelError, match="differs from member 0 in attention"):
        EnsembleClassifier([a, make_classifier(dim=8)])
    wide = make_classifier(dim=None, channels=[8, 8, 8, 16])
    with pytest.raises(ModelError, match=r"features of 16, member 0 of 8; set attention\.dim"):
        EnsembleClassifier([make_classifier(dim=None), wide])
    with pytest.raises(ModelError, match=r"expected \(n, 8\)"):
        EnsembleClassifier([a]).scan(np.zeros((2, 9), np.float32), 4)
    with pytest.raises(ModelError, match=r"expected \(m, 12\)"):
        EnsembleClassifier([a]).read_out(np.zeros((2, 9), np.float32))

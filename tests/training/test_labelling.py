"""Labels of held-out slides: the read-out of inference, and what they are worth over all tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.errors import TileReadError
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.training import labelling as labelling_module
from wsi_ips.training.bags import FrozenBags, Planned
from wsi_ips.training.labelling import judge, label_readable, label_slides
from wsi_ips.training.start import build_classifier
from wsi_ips.training.targets import Member
from wsi_ips.training.team import Team

N, WIDTH = 12, 8


def _parts(memory_size: int, *, context: bool) -> tuple[IPSClassifier, FrozenBags, list[Planned]]:
    """The same weights and four slides of twelve vectors for any selection; dropout is set."""
    settings = ModelSettings.model_validate({
        "encoder": {"name": "features", "width": WIDTH}, "attention": {"dim": 16, "n_heads": 2, "dropout": 0.5},
        "selection": {"memory_size": memory_size, "chunk_size": 5, "context": context},
        "tasks": [{"name": n, "kind": "binary", "classes": ["no", "yes"]} for n in "ab"],
    })  # fmt: skip
    bags, rng = FrozenBags(settings, ReadSettings()), np.random.default_rng(0)
    slides = []
    for i in range(4):
        bags.held[f"s{i}"] = rng.normal(size=(N, WIDTH)).astype(np.float32)
        record = SlideRecord(f"s{i}", f"s{i}.h5", f"p{i}")
        slides.append(Planned(Member(record, (float(i % 2), float(i // 2))), N))
    return build_classifier(settings, seed=1), bags, slides


def test_validation_reads_the_context_too() -> None:
    """Two selected tiles and the pooled rest give the label of the undivided bag; two alone do not."""
    labels = {}
    for name, memory_size, context in (("whole", N, False), ("context", 2, True), ("two", 2, False)):
        classifier, bags, slides = _parts(memory_size, context=context)
        labels[name] = label_slides(classifier.train(), slides, bags)
    assert np.allclose(labels["context"], labels["whole"], atol=1e-5)
    assert not np.allclose(labels["two"], labels["whole"], atol=1e-3)


def test_the_score_is_the_mean_over_tasks_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUROC 1 of task a and 0.25 of task b; a task of one class has none and does not count."""
    outputs = np.array([[-1.0, 3.0], [1.0, 2.0], [-1.0, 1.0], [1.0, 2.5]])
    classifier, bags, slides = _parts(N, context=False)
    monkeypatch.setattr(labelling_module, "label_slides", lambda *_: outputs)
    assert judge(classifier, slides, bags, Team()).score == pytest.approx((1.0 + 0.25) / 2)
    alike = [Planned(Member(s.member.record, (s.member.targets[0], 1.0)), N) for s in slides]
    assert judge(classifier, alike, bags, Team()).score == 1.0


def test_a_slide_that_cannot_be_read_leaves_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others keep their places; the row is NaN and the reason stands under its number."""
    classifier, bags, slides = _parts(N, context=False)
    whole, real = label_slides(classifier, slides, bags), labelling_module._label

    def fail(classifier: Any, head: Any, planned: Planned, bags: Any) -> np.ndarray:
        if planned.member.record.slide_id == "s1":
            raise TileReadError("E_TILE", "gone")
        return real(classifier, head, planned, bags)

    monkeypatch.setattr(labelling_module, "_label", fail)
    outputs, failed = label_readable(classifier, slides, bags)
    assert list(failed) == [1]
    assert np.isnan(outputs[1]).all()
    assert np.array_equal(outputs[[0, 2, 3]], whole[[0, 2, 3]])

"""Finetuning: repeatable, by validation, and blind to the test slides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsi_ips.config import ModelSettings, ReadSettings
from wsi_ips.errors import ConfigError, ManifestError, ModelError
from wsi_ips.manifest import load_manifest
from wsi_ips.model.bundle import load_bundle
from wsi_ips.recipe import FinetuneSettings, TrainSettings
from wsi_ips.training import held as held_module
from wsi_ips.training import step as step_module
from wsi_ips.training.bags import PixelBags
from wsi_ips.training.cohort import Member
from wsi_ips.training.finetune import FinetuneOptions, finetune_manifest

QUICK = TrainSettings(epochs=2, batch_slides=2, lr=1e-3, micro_batch=5)


def _options(settings: ModelSettings, train: TrainSettings = QUICK, **more: Any) -> FinetuneOptions:
    chosen = FinetuneSettings(model=settings, train=train)
    return FinetuneOptions(settings=chosen, device="cpu", quiet=True, **more)


@pytest.fixture(scope="module")
def trained(
    cohort: Path, tiny_settings: ModelSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A bundle, and the slides that were opened for it, in order."""
    opened: list[str] = []
    real = held_module.open_slide

    def watch(path: str, *rest: Any, **more: Any) -> Any:
        opened.append(Path(path).stem)
        return real(path, *rest, **more)

    folder = tmp_path_factory.mktemp("trained") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_module, "open_slide", watch)
        finetune_manifest(load_manifest(cohort), folder, _options(tiny_settings))
    return folder, opened


def test_test_slides_are_opened_once_at_the_end(trained: tuple[Path, list[str]], cohort: Path) -> None:
    """Training and validation slides are read; the test split only behind all of them, to be planned and labelled.

    What was read is held, so that no file is opened again for tiles that are in memory.
    """
    manifest, opened = load_manifest(cohort), trained[1]
    held = {r.slide_id for r in manifest.records if r.split == "test"}
    first = min(opened.index(slide) for slide in held)
    assert set(opened[:first]) == {r.slide_id for r in manifest.records} - held
    assert set(opened[first:]) == held
    assert len(opened[first:]) == 2 * len(held)  # once to find its tissue, once for its tiles


def test_the_bundle_holds_what_inference_needs(trained: tuple[Path, list[str]], cohort: Path) -> None:
    """Classes in order, tiles, colour range, history; a card that says what it is for."""
    bundle = load_bundle(trained[0])
    assert bundle.settings.tasks[0].classes == ("negative", "positive")
    assert set(bundle.extra["colour_range"]) >= {"red density", "texture"}
    history = bundle.extra["training"]["history"]
    assert [h["epoch"] for h in history] == [1, 2]
    assert history[0]["n_scanned"] > history[0]["n_learned"] > 0
    card = (trained[0] / "README.md").read_text()
    assert "Research use only" in card
    assert "| training | 4 |" in card


def test_labels_never_influence_tiling(cohort: Path, tiny_settings: ModelSettings) -> None:
    """P11: the grids training learns on are the same whatever the label, the class or the other columns say."""
    records = load_manifest(cohort, label_columns=("label",)).records[:2]
    grids = []
    for target, label in enumerate(("negative", "positive", "")):
        marked = [Member(replace(r, labels={"label": label}, carried={"note": label}), (float(target),)) for r in records]
        planned, notes = PixelBags(tiny_settings, ReadSettings()).plan(marked)
        assert not notes
        grids.append([p.grid for p in planned])
    for others in zip(*grids, strict=True):
        assert all(np.array_equal(g.coords, others[0].coords) for g in others)
        assert all(np.array_equal(g.tissue, others[0].tissue) for g in others)


def test_training_repeats_itself(
    trained: tuple[Path, list[str]], cohort: Path, tiny_settings: ModelSettings, tmp_path: Path
) -> None:
    """The same seed gives the same weights; another seed does not."""
    first = load_bundle(trained[0]).classifier.state_dict()
    for seed, same in ((0, True), (1, False)):
        finetune_manifest(load_manifest(cohort), tmp_path / str(seed), _options(tiny_settings, seed=seed))
        other = load_bundle(tmp_path / str(seed)).classifier.state_dict()
        assert all(torch.equal(first[k], other[k]) for k in first) is same


def test_a_frozen_encoder_keeps_its_weights(
    trained: tuple[Path, list[str]], cohort: Path, tiny_settings: ModelSettings, tmp_path: Path
) -> None:
    """From a bundle, with no stage open: the head learns, the encoder does not; the tile spec comes along."""
    train = QUICK.replace(train_stages=0, epochs=1)
    finetune_manifest(load_manifest(cohort), tmp_path / "m", _options(tiny_settings, train, init=trained[0], seed=7))
    before, after = load_bundle(trained[0]), load_bundle(tmp_path / "m")
    encoder = [k for k in before.classifier.state_dict() if k.startswith("encoder.")]
    assert encoder
    assert all(torch.equal(before.classifier.state_dict()[k], after.classifier.state_dict()[k]) for k in encoder)
    assert not torch.equal(before.classifier.attention.query, after.classifier.attention.query)
    assert after.settings.tile == before.settings.tile


def test_tiles_an_encoder_was_not_trained_on_are_refused(
    trained: tuple[Path, list[str]], cohort: Path, tiny_settings: ModelSettings, tmp_path: Path
) -> None:
    """P10: another mpp than the starting bundle's needs --allow-mismatch, and the note says so."""
    other = tiny_settings.replace(tile={"size_px": 32, "mpp": 2.0})
    with pytest.raises(ConfigError, match="--allow-mismatch"):
        finetune_manifest(load_manifest(cohort), tmp_path / "m", _options(other, init=trained[0]))
    pretrained = tiny_settings.replace(encoder={"name": "resnet18", "weights": "pretrained"})
    with pytest.raises(ConfigError, match="resnet18 was trained on 224 px, the tiles are 32 px"):
        finetune_manifest(load_manifest(cohort), tmp_path / "m", _options(pretrained, offline=True))


def test_a_loss_that_is_not_finite_stops_with_slides_and_rate(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never goes on, and nothing is written."""
    monkeypatch.setattr(step_module, "slide_loss", lambda z, *_, **__: z.sum() * float("nan"))
    with pytest.raises(ModelError, match=r"slide_\d+.*learning rate"):
        finetune_manifest(load_manifest(cohort), tmp_path / "m", _options(tiny_settings))
    assert not (tmp_path / "m").exists()


def test_an_occupied_out_folder_is_refused_before_training(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path
) -> None:
    """Not after the last epoch."""
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ModelError, match="exists and is no model bundle"):
        finetune_manifest(load_manifest(cohort), tmp_path, _options(tiny_settings))


def test_a_cohort_that_cannot_be_read_is_refused(cohort: Path, tiny_settings: ModelSettings, tmp_path: Path) -> None:
    """Broken slides are named; too few left is an error, not a model of nothing."""
    lines = ["slide_path,patient_id,label,split"]
    for i, split in enumerate(("train", "train", "val", "val")):
        (tmp_path / f"s{i}.svs").write_text("no slide")
        lines.append(f"s{i}.svs,P{i},{'a' if i % 2 else 'b'},{split}")
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ManifestError, match="only 0 training and 0 validation slides"):
        finetune_manifest(load_manifest(tmp_path / "m.csv"), tmp_path / "m", _options(tiny_settings))

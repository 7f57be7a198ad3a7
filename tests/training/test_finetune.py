"""Finetuning: repeatable, by validation, and blind to the test slides."""

from __future__ import annotations

import csv
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsi_ips.config import ModelSettings, ReadSettings, load_settings
from wsi_ips.errors import ConfigError, ManifestError, ModelError, StoppedError, TileReadError
from wsi_ips.manifest import load_manifest
from wsi_ips.model.bundle import load_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.recipe import FinetuneSettings, TrainSettings
from wsi_ips.training import fit as fit_module
from wsi_ips.training import held as held_module
from wsi_ips.training import labelling as labelling_module
from wsi_ips.training import step as step_module
from wsi_ips.training.bags import PixelBags
from wsi_ips.training.cohort import Member
from wsi_ips.training.events import EventLog
from wsi_ips.training.finetune import FinetuneOptions, finetune_manifest
from wsi_ips.training.spool import TileSpool
from wsi_ips.training.stale import StaleStore
from wsi_ips.training.start import make_start

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
    assert history[0]["n_learned"] > 0
    assert not {"seconds", "n_scanned", "micro_batch"} & history[0].keys()  # machine and cache decide those
    card = (trained[0] / "README.md").read_text()
    assert "Research use only" in card
    assert "| training | 4 |" in card


def test_labels_never_influence_tiling(cohort: Path, tiny_settings: ModelSettings) -> None:
    """P11: the grids training learns on are the same whatever the label, the class or the other columns say."""
    records = load_manifest(cohort, label_columns=("label",)).records[:2]
    grids = []
    for target, label in enumerate(("negative", "positive", "")):
        marked = [
            Member(replace(r, labels={"label": label}, carried={"note": label}), (float(target),)) for r in records
        ]
        planned, notes = PixelBags(tiny_settings, ReadSettings()).plan(marked)
        assert not notes
        grids.append([p.grid for p in planned])
    for others in zip(*grids, strict=True):
        assert all(np.array_equal(g.coords, others[0].coords) for g in others)
        assert all(np.array_equal(g.tissue, others[0].tissue) for g in others)


@pytest.mark.slow
def test_training_repeats_itself(
    trained: tuple[Path, list[str]], cohort: Path, tiny_settings: ModelSettings, tmp_path: Path
) -> None:
    """The same seed gives the same weights; another seed does not."""
    first = load_bundle(trained[0]).classifier.state_dict()
    for seed, same in ((0, True), (1, False)):
        finetune_manifest(load_manifest(cohort), tmp_path / str(seed), _options(tiny_settings, seed=seed))
        other = load_bundle(tmp_path / str(seed)).classifier.state_dict()
        assert all(torch.equal(first[k], other[k]) for k in first) is same


@pytest.mark.slow
def test_a_warm_cache_gives_the_same_bundle(
    trained: tuple[Path, list[str]], cohort: Path, tiny_settings: ModelSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Down to its hash; the second training, its report's drawings included, never asks the encoder."""
    found = []
    for name in ("cold", "warm"):
        options = _options(tiny_settings, QUICK.replace(train_stages=0), init=trained[0], cache=str(tmp_path / "cache"))
        found.append(finetune_manifest(load_manifest(cohort), tmp_path / name, options))
        assert len(list((tmp_path / f"{name}.training" / "slides").rglob("*.overlay.png"))) == len(found[-1].cases)

        def refuse(*_: Any) -> None:
            raise AssertionError("the encoder was asked")

        monkeypatch.setattr(IPSClassifier, "embed_tiles", refuse)
    cold, warm = (sum(e.n_scanned for e in r.fits[0].history) for r in found)
    assert cold > 0
    assert warm == 0
    assert found[0].hash == found[1].hash


def test_a_test_slide_that_cannot_be_read_costs_its_figure_alone(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training stands; the slide is named and left out."""
    real = labelling_module._label
    lost = sorted(r.slide_id for r in load_manifest(cohort).records if r.split == "test")[0]

    def fail(classifier: Any, head: Any, planned: Any, bags: Any) -> np.ndarray:
        if planned.member.record.slide_id == lost:
            raise TileReadError("E_TILE", "1 of 9 tiles cannot be decoded")
        return real(classifier, head, planned, bags)

    monkeypatch.setattr(labelling_module, "_label", fail)
    result = finetune_manifest(load_manifest(cohort), tmp_path / "m", _options(tiny_settings))
    assert lost not in result.cases.slide_ids
    assert len(result.cases) > 0
    assert f"{lost} is not judged: 1 of 9 tiles" in " ".join(n.message for n in result.fits[0].notes)
    assert "is not judged" in (tmp_path / "m.training" / "index.html").read_text()
    finetune_manifest(load_manifest(cohort), tmp_path / "m", _options(tiny_settings))  # done before


@pytest.mark.slow
def test_a_training_that_ended_early_leaves_the_test_slides_closed(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training slide is lost after the first epoch: what is there is kept, and test slides judge when it is done."""
    real = PixelBags.tiles

    def lose(self: PixelBags, planned: Any, rows: np.ndarray) -> Any:
        if self.n_encoded:  # the first epoch learns on random tiles and scores none
            raise TileReadError("E_TILE", "1 of 9 tiles cannot be decoded")
        return real(self, planned, rows)

    options = _options(tiny_settings, QUICK.replace(random_epochs=1))
    with monkeypatch.context() as patch:
        patch.setattr(PixelBags, "tiles", lose)
        early = finetune_manifest(load_manifest(cohort), tmp_path / "m", options)
    assert not early.fits[0].is_complete
    assert set(early.cases.parts) == {"val"}
    whole = finetune_manifest(load_manifest(cohort), tmp_path / "m", options)
    assert whole.fits[0].is_complete
    assert set(whole.cases.parts) == {"test"}


@pytest.mark.slow
def test_without_test_slides_the_validation_slides_are_shown_with_their_flaw(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path
) -> None:
    """Figures, drawings and epochs in numbers; page, card and terminal say that nothing unseen has judged."""
    lines = cohort.read_text().splitlines()
    table = cohort.with_name("no_test.csv")
    table.write_text("\n".join(line for line in lines if ",test" not in line) + "\n")
    result = finetune_manifest(load_manifest(table), tmp_path / "m", _options(tiny_settings))
    assert result.evaluation is not None
    assert (result.evaluation.judged, result.evaluation.n) == ("val", 4)
    assert "no test slides" in result.text()
    page = (result.work / "index.html").read_text()
    assert "every figure here flatters" in page
    assert "E_NO_TEST: no test slides" in page
    assert "On the very slides they are shown for" in page
    assert "every figure here flatters" in (tmp_path / "m" / "README.md").read_text()
    assert len(list((result.work / "slides").rglob("*.overlay.png"))) == 4
    history = result.fits[0].history
    rows = list(csv.DictReader((result.work / "epochs.csv").open()))
    assert [(r["epoch"], int(r["scored"])) for r in rows] == [(str(e.epoch), e.n_scanned) for e in history]
    assert [int(r["encoder forwards"]) for r in rows] == [e.n_scanned + 2 * e.n_learned for e in history]
    assert all(f"<td class=\"number\">{r['encoder forwards']}</td>" in page for r in rows)


def test_a_full_disk_stops_with_the_way_on(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it shows first: tiles that wait in a temporary file, last embeddings, the log."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for owner, method, train in (
        (TileSpool, "append", QUICK),
        (StaleStore, "put", QUICK.replace(rescan={"mode": "stale"})),
        (EventLog, "epoch", QUICK),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, full)
            with pytest.raises(StoppedError, match=r"No space left on device.*start the same command again"):
                finetune_manifest(load_manifest(cohort), tmp_path / method, _options(tiny_settings, train))


@pytest.mark.slow
def test_a_mask_that_changed_is_another_training(cohort: Path, tiny_settings: ModelSettings, tmp_path: Path) -> None:
    """Even under its old name: other tiles would teach."""
    mask = tmp_path / "mask.geojson"
    lines = cohort.read_text().splitlines()
    rows = [f"{line},{mask if i == 1 else ''}" for i, line in enumerate(lines[1:], start=1)]
    table = cohort.with_name("masked.csv")
    table.write_text("\n".join([f"{lines[0]},mask_path", *rows]) + "\n")
    for side in (4000, 3000):
        ring = [[0, 0], [side, 0], [side, side], [0, side], [0, 0]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        mask.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": geometry}))
        options = _options(tiny_settings, QUICK.replace(epochs=1))
        if side == 4000:
            finetune_manifest(load_manifest(table), tmp_path / "m", options)
        else:
            with pytest.raises(ModelError, match="holds another training"):
                finetune_manifest(load_manifest(table), tmp_path / "m", options)


def test_a_field_set_over_a_bundle_leaves_its_siblings(trained: tuple[Path, list[str]]) -> None:
    """What is not said stays the bundle's, not the default."""
    own = load_bundle(trained[0]).settings
    asked = load_settings(ModelSettings, {"selection": {"memory_size": 99}, "tissue": {"min_focus": 1.0}})
    start = make_start(asked, own.tasks, (), init=trained[0], offline=True, allow_mismatch=False, precision="float32")
    assert own.selection.chunk_size != ModelSettings().selection.chunk_size
    assert start.settings.selection == own.selection.replace(memory_size=99)
    assert start.settings.tissue == own.tissue.replace(min_focus=1.0)


@pytest.mark.slow
def test_settings_without_effect_are_named(trained: tuple[Path, list[str]], cohort: Path, tmp_path: Path) -> None:
    """Where the head alone learns no tile is augmented, and nothing goes stale."""
    train = QUICK.replace(train_stages=0, epochs=1, augment={"blur": 0.5}, rescan={"mode": "stale"})
    result = finetune_manifest(load_manifest(cohort), tmp_path / "m", _options(ModelSettings(), train, init=trained[0]))
    page = (result.work / "index.html").read_text()
    assert "augment.blur, rescan.mode have no effect" in page
    with pytest.raises(ConfigError, match="rescan mode stale"):
        load_settings(
            FinetuneSettings, {"model": {"selection": {"context": True}}, "train": {"rescan": {"mode": "stale"}}}
        )


@pytest.mark.slow
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


def test_fault_111_a_loss_that_is_not_finite_stops_with_slides_and_rate(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never goes on, and nothing is written."""
    monkeypatch.setattr(step_module, "slide_loss", lambda z, *_, **__: z.sum() * float("nan"))
    with pytest.raises(ModelError, match=r"epoch 1, step 1; slides slide_\d+.*learning rate"):
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


@pytest.mark.slow
@pytest.mark.parametrize("is_scratch", [True, False])
def test_statistics_of_an_untrained_encoder_are_those_of_training_tiles(
    trained: tuple[Path, list[str]], cohort: Path, tiny_settings: ModelSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, is_scratch: bool,
) -> None:  # fmt: skip
    """They are measured before the first step, on training slides alone; a trained encoder keeps its own."""
    measured: list[str] = []

    def measure(_: Any, learn: list[Any], *__: Any) -> None:
        measured.extend(p.member.record.slide_id for p in learn)

    monkeypatch.setattr(fit_module, "measure_norms", measure)
    settings, init = (tiny_settings, None) if is_scratch else (ModelSettings(), trained[0])
    manifest = load_manifest(cohort)
    finetune_manifest(manifest, tmp_path / "m", _options(settings, QUICK.replace(epochs=1), init=init))
    assert sorted(measured) == sorted(r.slide_id for r in manifest.records if is_scratch and r.split == "train")


@pytest.mark.slow
def test_fault_136_a_training_from_local_files_calls_nobody(
    cohort: Path, tiny_settings: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From scratch, cached and offline: not one connection is tried, not one name looked up."""
    calls = []

    def refuse(*arguments: object, **_: object) -> None:
        calls.append(arguments)
        raise OSError("no network in here")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    finetune_manifest(load_manifest(cohort), tmp_path / "m", _options(tiny_settings))
    assert calls == []

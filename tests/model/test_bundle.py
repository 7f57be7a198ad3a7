"""The bundle: a model that travels whole, opens without code or network, and shows every change."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wsi_ips.errors import ModelError
from wsi_ips.model.bundle import load_bundle, save_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.results import sha256_file


@pytest.fixture
def classifier(make_classifier) -> IPSClassifier:
    """A two-task model with a projector and group norm."""
    return make_classifier(dim=12, norm_layer="groupnorm")


@pytest.fixture
def folder(tmp_path: Path, classifier: IPSClassifier) -> Path:
    """A saved bundle."""
    save_bundle(tmp_path / "model", classifier, classifier.settings, card="# A model\n", extra={"synthetic": True})
    return tmp_path / "model"


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _reweigh(folder: Path, change: Any) -> None:
    """Change the weights and make the stated SHA-256 agree."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    weights = {"file": "model.safetensors", "sha256": sha256_file(folder / "model.safetensors")}
    _edit(folder, weights=weights)


def test_a_bundle_opens_to_the_same_model(folder: Path, classifier: IPSClassifier, tiles: torch.Tensor) -> None:
    """Settings, features and the label made from stored values are the same, bit for bit, after save and load."""
    bundle = load_bundle(folder)
    assert bundle.settings == classifier.settings
    assert bundle.extra == {"synthetic": True}
    assert not bundle.classifier.training
    before, after = classifier.scan(tiles, 4), bundle.classifier.scan(tiles, 4)
    assert np.array_equal(before.features, after.features)
    assert np.array_equal(before.logits, after.logits)
    wanted, found = classifier.read_out(before.features), bundle.classifier.read_out(before.features)
    assert np.array_equal(wanted.outputs, found.outputs)
    assert np.array_equal(wanted.evidence, found.evidence)


def test_the_folder_says_what_the_model_needs(folder: Path) -> None:
    """The configuration holds preprocessing, classes and resolution, in WSInfer's words too."""
    config = json.loads((folder / "config.json").read_text())
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert config["schema_version"] == 2
    assert config["class_names"] == ["no", "yes", "low", "mid", "high"]
    assert (config["num_classes"], config["patch_size_pixels"], config["spacing_um_px"]) == (5, 32, 1.0)
    assert config["architecture"] == "resnet18"
    assert config["encoder"]["mean"] == [0.485, 0.456, 0.406]
    assert config["encoder"]["crop_pct"] == 1.0
    assert config["transform"][1]["arguments"]["std"] == [0.229, 0.224, 0.225]
    assert config["weights"]["sha256"] == sha256_file(folder / "model.safetensors")


def test_the_hash_is_the_content(tmp_path: Path, folder: Path, classifier: IPSClassifier) -> None:
    """The same model saved twice is the same bytes and hash; another weight or setting is another model."""
    again = save_bundle(tmp_path / "b", classifier, classifier.settings, card="# A model\n", extra={"synthetic": True})
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()
    assert load_bundle(folder).hash == again
    with torch.no_grad():
        classifier.heads[0].bias += 1e-3
    other = save_bundle(tmp_path / "c", classifier, classifier.settings, card="", extra={"synthetic": True})
    settings = classifier.settings.replace(icc="srgb")
    third = save_bundle(tmp_path / "d", classifier, settings, card="", extra={"synthetic": True})
    assert len({again, other, third}) == 3


def test_paths_of_the_maker_do_not_travel(tmp_path: Path, classifier: IPSClassifier) -> None:
    """A model tells a weight file's name, not where it lay."""
    settings = classifier.settings
    settings = settings.replace(
        encoder=settings.encoder.replace(weights="/home/alice/secret/w.safetensors").model_dump()
    )
    save_bundle(tmp_path / "m", classifier, settings, card="")
    assert "alice" not in (tmp_path / "m" / "config.json").read_text()
    assert load_bundle(tmp_path / "m").settings.encoder.weights == "w.safetensors"


def test_fault_072_opening_asks_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub name in the settings is history: the bundle builds from its own configuration."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("wsi_ips.model.encoder.build_pretrained", refuse)
    settings = json.loads((folder / "config.json").read_text())["settings"]
    settings["encoder"].update(name="hf-hub:someone/gone", weights="pretrained")
    _edit(folder, settings=settings)
    assert load_bundle(folder).settings.encoder.name == "hf-hub:someone/gone"


def test_fault_067_a_flipped_bit_is_noticed(folder: Path) -> None:
    """One bit in the weights: refused with the file's name."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors: changed or damaged"):
        load_bundle(folder)


def test_fault_068_and_069_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    """Names and numbers are checked even where the hash agrees."""
    _reweigh(folder, lambda s: s.update(extra=torch.zeros(1)))
    with pytest.raises(ModelError, match="1 unexpected: extra"):
        load_bundle(folder)
    _reweigh(folder, lambda s: (s.pop("extra"), s["heads.0.bias"].fill_(float("nan"))))
    with pytest.raises(ModelError, match=r"heads\.0\.bias"):
        load_bundle(folder)


def test_fault_071_another_normalisation_than_the_stored_one_is_refused(folder: Path) -> None:
    """Editing mean or std in the configuration cannot go unnoticed."""
    encoder = json.loads((folder / "config.json").read_text())["encoder"]
    _edit(folder, encoder=encoder | {"mean": [0.5, 0.5, 0.5]})
    with pytest.raises(ModelError, match="mean or std differ"):
        load_bundle(folder)


def test_a_bundle_of_version_1_still_opens(folder: Path, classifier: IPSClassifier, tiles: torch.Tensor) -> None:
    """It knows neither ensembles nor the settings that came later; the label is the same."""
    config = json.loads((folder / "config.json").read_text())
    del config["members"], config["shared_encoder"]
    del config["settings"]["selection"]["context"], config["settings"]["encoder"]["width"]
    for task in config["settings"]["tasks"]:
        for name in set(task) - {"name", "kind", "classes", "threshold"}:
            del task[name]
    (folder / "config.json").write_text(json.dumps(config | {"schema_version": 1}))
    bundle = load_bundle(folder)
    assert bundle.single.settings == classifier.settings
    assert np.array_equal(bundle.single.scan(tiles, 4).logits, classifier.scan(tiles, 4).logits)


def test_a_newer_version_says_what_it_needs(folder: Path) -> None:
    """A bundle of tomorrow is refused with the version that reads it."""
    _edit(folder, schema_version=3, wsi_ips_version="9.1")
    with pytest.raises(ModelError, match=r"schema_version 3 needs wsi-ips 9\.1 or newer"):
        load_bundle(folder)
    for version in (True, 0, "2", None):
        _edit(folder, schema_version=version)
        with pytest.raises(ModelError, match="schema_version"):
            load_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"format": "other"}', '{"format": "wsi-ips-bundle"}', "[" * 100_000,
                                  '{"extra": ' + "[" * 70 + "]" * 70 + "}", '{"format": NaN}', "\ud800"])  # fmt: skip
def test_broken_configurations_are_one_sentence(folder: Path, text: str) -> None:
    """Whatever stands in config.json, the error names the file."""
    (folder / "config.json").write_text(text, errors="surrogatepass")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_bundle(folder)


def test_a_huge_configuration_is_not_read(folder: Path) -> None:
    """It is refused by its size."""
    with (folder / "config.json").open("r+b") as f:
        f.truncate(100 << 20)
    with pytest.raises(ModelError, match=r"config\.json: 104857600 bytes are no bundle configuration"):
        load_bundle(folder)


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_fault_064_a_configuration_opens_no_file_of_its_own(folder: Path, tmp_path: Path, key: str) -> None:
    """Arguments by which timm would read a pickle or the network are refused by name, before timm sees them."""
    torch.save({"a": _Flag(tmp_path / "executed")}, tmp_path / "w.pth")
    encoder = json.loads((folder / "config.json").read_text())["encoder"]
    encoder["kwargs"][key] = {"file": str(tmp_path / "w.pth")} if "cfg" in key else str(tmp_path / "w.pth")
    _edit(folder, encoder=encoder)
    with pytest.raises(ModelError, match=rf"kwargs {key} are not taken"):
        load_bundle(folder)
    assert not (tmp_path / "executed").exists()


class _Flag:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.flag),)


@pytest.mark.parametrize("name", ["hf-hub:someone/else", "local-dir:/tmp", "nothing_18"])
def test_fault_072_an_architecture_is_a_name_and_no_address(folder: Path, name: str) -> None:
    """A configuration cannot make opening a model fetch one."""
    _edit(folder, encoder=json.loads((folder / "config.json").read_text())["encoder"] | {"architecture": name})
    with pytest.raises(ModelError, match="no such timm model"):
        load_bundle(folder)


def test_fault_065_a_pickle_under_the_weights_name_is_refused(folder: Path, tmp_path: Path) -> None:
    """Content decides, also where the stated hash agrees."""
    torch.save({"a": _Flag(tmp_path / "executed")}, folder / "model.safetensors")
    digest = sha256_file(folder / "model.safetensors")
    _edit(folder, weights={"file": "model.safetensors", "sha256": digest})
    with pytest.raises(ModelError, match=r"is a torch file \(a pickle\).*model import --trust"):
        load_bundle(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("width", [10**15, -1, "x", 1e300])
def test_absurd_sizes_in_a_configuration_are_one_sentence(folder: Path, width: Any) -> None:
    """A width no memory holds is an error of this package."""
    encoder = json.loads((folder / "config.json").read_text())["encoder"]
    _edit(folder, encoder=encoder | {"kwargs": {"channels": [width] * 4}})
    with pytest.raises(ModelError):
        load_bundle(folder)


@pytest.mark.parametrize("key", ["settings", "encoder", "weights"])
@pytest.mark.parametrize("value", [None, 3, {}, []])
def test_broken_parts_of_a_configuration_are_one_sentence(folder: Path, key: str, value: Any) -> None:
    """A part of another kind is an error of this package, not a traceback from inside."""
    _edit(folder, **{key: value})
    with pytest.raises(ModelError):
        load_bundle(folder)


def test_fault_066_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    """Half a bundle and no bundle are told apart."""
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: missing"):
        load_bundle(folder)
    with pytest.raises(ModelError, match="a model bundle is a folder with"):
        load_bundle(tmp_path)


def test_saving_replaces_a_bundle_and_nothing_else(folder: Path, classifier: IPSClassifier, tmp_path: Path) -> None:
    """An older bundle gives way, its other files stay; a folder of other things is not touched."""
    (folder / "metrics.json").write_text("{}")
    save_bundle(folder, classifier, classifier.settings, card="# Newer\n")
    assert (folder / "README.md").read_text() == "# Newer\n"
    assert (folder / "metrics.json").read_text() == "{}"
    load_bundle(folder)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="is no model bundle"):
        save_bundle(tmp_path / "home", classifier, classifier.settings, card="")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "model"]


def test_a_failed_save_leaves_the_old_bundle(folder: Path, classifier: IPSClassifier, tmp_path: Path) -> None:
    """NaN weights or an `extra` that is no JSON: an error, the old model whole, no temporary folder left."""
    before = load_bundle(folder).hash
    with pytest.raises(ModelError, match="no plain JSON"):
        save_bundle(folder, classifier, classifier.settings, card="", extra={"x": object()})
    with torch.no_grad():
        classifier.heads[0].weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"heads\.0\.weight"):
        save_bundle(folder, classifier, classifier.settings, card="")
    assert load_bundle(folder).hash == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]

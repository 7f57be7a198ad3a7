"""Names of encoders: what lies on this machine is used, what is missing offline is said at once."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from wsi_ips.config import EncoderSettings
from wsi_ips.errors import ModelError
from wsi_ips.model import hub
from wsi_ips.model.encoder import build_encoder
from wsi_ips.model.pickles import import_weights


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty caches, and no network to look at."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _write_model(folder: Path, seed: int = 3, **changes: Any) -> dict[str, torch.Tensor]:
    """Write a timm folder whose normalisation is its own; return its tensors."""
    torch.manual_seed(seed)
    net = timm.create_model("resnet18", num_classes=4, channels=[8, 8, 8, 8])
    state = {key: t.clone() for key, t in net.state_dict().items()}
    cfg = {
        "mean": [0.7, 0.6, 0.5], "std": [0.2, 0.21, 0.22], "interpolation": "bilinear", "num_classes": 4,
        "input_size": [3, 224, 224], "crop_pct": 0.875, "classifier": "fc", "first_conv": "conv1",
    }  # fmt: skip
    config = {"architecture": "resnet18", "pretrained_cfg": cfg, "model_args": {"channels": [8, 8, 8, 8]}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | changes))
    save_file(state, folder / "model.safetensors")
    return state


def _write_cached_repo(cache: Path, repo: str) -> Path:
    """Lay a repository out as the hub's client caches it; return the folder of its files."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    return root / "snapshots" / "abc"


def test_a_folder_brings_its_weights_and_its_own_normalisation(tmp_path: Path) -> None:
    """`local-dir:` gives architecture, arguments, weights, mean, std and interpolation; no crop."""
    state = _write_model(tmp_path / "model")
    encoder = build_encoder(EncoderSettings(name=f"local-dir:{tmp_path / 'model'}"), 32)
    assert torch.equal(encoder.net.state_dict()["conv1.weight"], state["conv1.weight"])
    assert encoder.architecture.mean == (0.7, 0.6, 0.5)
    assert encoder.architecture.std == (0.2, 0.21, 0.22)
    assert encoder.interpolation == "bilinear"
    assert encoder.architecture.kwargs == {"channels": [8, 8, 8, 8]}
    assert encoder(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 8)


@pytest.mark.parametrize("scheme", ["hf-hub", "hf_hub"])
def test_a_cached_repository_is_used_without_network(tmp_path: Path, scheme: str) -> None:
    """What the hub's client has stored before is loaded as it stands."""
    state = _write_model(_write_cached_repo(tmp_path / "hub", "someone/encoder"))
    encoder = build_encoder(EncoderSettings(name=f"{scheme}:someone/encoder"), 32)
    assert torch.equal(encoder.net.state_dict()["layer4.0.conv1.weight"], state["layer4.0.conv1.weight"])
    assert encoder.architecture.mean == (0.7, 0.6, 0.5)


def test_cached_weights_of_a_registry_name_are_used(tmp_path: Path) -> None:
    """A stock timm model in the cache needs no network either."""
    snapshot = _write_cached_repo(tmp_path / "hub", "timm/resnet18.a1_in1k")
    snapshot.mkdir(parents=True)
    torch.manual_seed(4)
    state = {key: t.clone() for key, t in timm.create_model("resnet18").state_dict().items()}
    save_file(state, snapshot / "model.safetensors")
    encoder = build_encoder(EncoderSettings(name="resnet18.a1_in1k"), 32)
    assert torch.equal(encoder.net.state_dict()["conv1.weight"], state["conv1.weight"])
    assert "state_dict" not in encoder.net.pretrained_cfg


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "resnet18.a1_in1k",
            ("huggingface.co/timm/resnet18.a1_in1k", "encoder.weights: <path", "encoder.weights: none"),
        ),
        ("hf-hub:someone/else", ("model.safetensors of someone/else", "encoder.name: local-dir:")),
    ],
)
def test_fault_072_missing_weights_offline_are_said_at_once(name: str, words: tuple[str, ...]) -> None:
    """Within a second, with the file to fetch and the setting to set."""
    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        build_encoder(EncoderSettings(name=name), 32)
    assert time.monotonic() - start < 1.0
    assert all(word in str(caught.value) for word in words)


def test_no_network_is_noticed_without_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing answers the hub is not tried, whatever the client's patience."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    monkeypatch.setenv("HF_ENDPOINT", "https://127.0.0.1:9")
    start = time.monotonic()
    assert not hub.has_network()
    with pytest.raises(ModelError, match="out of reach"):
        build_encoder(EncoderSettings(), 32)
    assert time.monotonic() - start < 2.5


def test_fault_064_a_pickle_in_a_folder_is_refused_and_imported_beside(tmp_path: Path) -> None:
    """`local-dir:` with pytorch_model.bin names the command; run on it, the folder works."""
    state = _write_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "model" / "pytorch_model.bin")
    settings = EncoderSettings(name=f"local-dir:{tmp_path / 'model'}")
    with pytest.raises(ModelError, match=rf"import --trust \S+pytorch_model\.bin --out {tmp_path / 'model'}`"):
        build_encoder(settings, 32)
    import_weights(tmp_path / "model" / "pytorch_model.bin", tmp_path / "model", trusts=True)
    assert torch.equal(build_encoder(settings, 32).net.state_dict()["conv1.weight"], state["conv1.weight"])


def test_fault_064_only_safetensors_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A repository that offers a pickle alone is not fetched; the cure is said. One with safetensors is."""
    state = _write_model(tmp_path / "model")
    (snapshot := _write_cached_repo(tmp_path / "hub", "someone/encoder")).mkdir(parents=True)
    shutil.copy(tmp_path / "model" / "config.json", snapshot)
    monkeypatch.setattr(hub, "_may_ask", lambda offline: not offline)
    asked: list[str] = []
    offered: dict[str, Path] = {"pytorch_model.bin": tmp_path / "absent"}

    def download(repo: str, name: str) -> str:
        asked.append(f"{repo}/{name}")
        if name not in offered:
            raise EntryNotFoundError(name)
        return str(offered[name])

    monkeypatch.setattr(hub, "hf_hub_download", download)
    settings = EncoderSettings(name="hf-hub:someone/encoder")
    with pytest.raises(ModelError, match=r"someone/encoder offers no safetensors.*model import --trust"):
        build_encoder(settings, 32)
    assert asked == ["someone/encoder/model.safetensors"]
    offered["model.safetensors"] = tmp_path / "model" / "model.safetensors"
    assert torch.equal(build_encoder(settings, 32).net.state_dict()["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("where", ["model_args", "settings"])
def test_fault_064_a_folder_cannot_name_files_to_load(tmp_path: Path, where: str) -> None:
    """Arguments by which timm opens a checkpoint are refused, from a configuration and from settings."""
    arguments = {"checkpoint_path": str(tmp_path / "w.pth")}
    _write_model(tmp_path / "model", **({"model_args": arguments} if where == "model_args" else {}))
    kwargs = arguments if where == "settings" else {}
    for weights in ("pretrained", "none"):
        with pytest.raises(ModelError, match="kwargs checkpoint_path are not taken"):
            build_encoder(EncoderSettings(name=f"local-dir:{tmp_path / 'model'}", weights=weights, kwargs=kwargs), 32)


def test_a_folder_that_lacks_parts_of_the_model_is_refused(tmp_path: Path) -> None:
    """timm would leave the missing layers random and say so in a log line; here it is an error that names them."""
    state = _write_model(tmp_path / "model")
    del state["layer3.0.conv2.weight"]
    save_file(state, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ModelError, match=r"layer3\.0\.conv2\.weight"):
        build_encoder(EncoderSettings(name=f"local-dir:{tmp_path / 'model'}"), 32)


def test_broken_folders_are_explained(tmp_path: Path) -> None:
    """No folder, no weights, no configuration, an unknown architecture: one sentence each."""
    folder = tmp_path / "model"

    def build() -> None:
        build_encoder(EncoderSettings(name=f"local-dir:{folder}"), 32)

    with pytest.raises(ModelError, match=r"config\.json is no timm configuration"):
        build()
    _write_model(folder, architecture="resnet_of_tomorrow")
    with pytest.raises(ModelError, match=r"'resnet_of_tomorrow', unknown to timm"):
        build()
    _write_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds none of model\.safetensors"):
        build()
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"config\.json is no timm configuration"):
        build()

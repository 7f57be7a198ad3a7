"""Weights from files: strict, finite, and nothing is executed."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wsi_ips.config import EncoderSettings
from wsi_ips.errors import ModelError
from wsi_ips.model.encoder import Encoder, build_encoder

NARROW = {"channels": [8, 8, 8, 8]}


def _build(weights: str | Path) -> Encoder:
    return build_encoder(EncoderSettings(weights=str(weights), kwargs=NARROW), 32)


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Seeded weights of the narrow net, with the classifier that stock checkpoints carry."""
    torch.manual_seed(5)
    own = {key: t.clone() for key, t in _build("none").net.state_dict().items()}
    return own | {"fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}


def _saved(state: dict[str, Tensor], path: Path) -> Path:
    packed = {key: t.contiguous() for key, t in state.items()}  # safetensors refuses channels-last memory
    save_file(packed, path) if path.suffix == ".safetensors" else torch.save(packed, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "torch_file_under_another_name.safetensors.bak"])
def test_weights_of_a_stock_checkpoint_are_loaded(tmp_path: Path, state: dict[str, Tensor], name: str) -> None:
    """Safetensors and torch files load by content; the ImageNet classifier is the only thing left out."""
    encoder = _build(_saved(state, tmp_path / name))
    loaded = encoder.net.state_dict()
    assert all(torch.equal(loaded[key], t) for key, t in state.items() if not key.startswith("fc."))


def test_names_and_shapes_that_do_not_fit_are_listed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Missing, unexpected and misshapen tensors are all named at once; nothing is skipped in silence."""
    state["surplus"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(2, 3, 7, 7)
    del state["layer2.0.conv1.weight"]
    with pytest.raises(ModelError) as caught:
        _build(_saved(state, tmp_path / "w.pt"))
    text = str(caught.value)
    assert "w.pt" in text
    assert "1 missing: layer2.0.conv1.weight" in text
    assert "1 unexpected: surplus" in text
    assert "conv1.weight (2, 3, 7, 7) in the file, (64, 3, 7, 7) in the model" in text


def test_a_wrapper_prefix_gets_its_cure(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """`module.` before every name is explained, not stripped."""
    with pytest.raises(ModelError, match=r"model\.module\.state_dict\(\)"):
        _build(_saved({f"module.{k}": t for k, t in state.items()}, tmp_path / "w.safetensors"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_name_their_tensor(tmp_path: Path, state: dict[str, Tensor], bad: float) -> None:
    """A NaN in the weights is found before the first slide."""
    state["layer1.0.conv1.weight"][3, 1, 0, 2] = bad
    with pytest.raises(ModelError, match=r"'layer1\.0\.conv1\.weight' holds 1 numbers") as caught:
        _build(_saved(state, tmp_path / "w.safetensors"))
    assert caught.value.code == "E_NOT_FINITE"


class _Bomb:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.flag),)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    """Opening a model file never executes what it holds."""
    path = tmp_path / "w.pt"
    torch.save({"a": _Bomb(tmp_path / "executed")}, path)
    with pytest.raises(ModelError, match="could run code"):
        _build(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"hello, weights", b"{}", b"\xff" * 64, b"PK\x03\x04nothing", b"\x80\x02N."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, suffix: str) -> None:
    """Empty, text and broken files are one sentence with the file's name."""
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="broken"):
        _build(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_half_a_file_is_refused(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    """A copy that stopped half way is recognised."""
    path = _saved(state, tmp_path / f"half{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match=r"half.*is not a complete"):
        _build(path)


def test_compressed_archives_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """An archive that could unfold to any size is not opened."""
    plain, packed = _saved(state, tmp_path / "plain.pt"), tmp_path / "packed.pt"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as sink:
        for name in source.namelist():
            sink.writestr(name, source.read(name))
    with pytest.raises(ModelError, match="compressed"):
        _build(packed)


def test_a_training_checkpoint_is_explained(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """A file with more than a state dict says what was found in it."""
    path = tmp_path / "last.pt"
    torch.save({"state_dict": state, "epoch": 3}, path)
    with pytest.raises(ModelError, match="found state_dict, epoch"):
        _build(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    """A path with a typing error says so."""
    with pytest.raises(ModelError, match=r"nowhere\.safetensors: no such file"):
        _build(tmp_path / "nowhere.safetensors")

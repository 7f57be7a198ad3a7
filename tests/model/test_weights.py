"""Weights from files: strict, finite, and nothing is executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from wsi_ips.config import EncoderSettings
from wsi_ips.errors import ModelError
from wsi_ips.model.encoder import Encoder, build_encoder
from wsi_ips.model.weights import is_pickle, read_state
from wsi_ips.results import sha256_file

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
    save_file(packed, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "weights_under_another_name.pt"])
def test_fault_065_safetensors_are_known_by_their_content(tmp_path: Path, state: dict[str, Tensor], name: str) -> None:
    """Safetensors load whatever they are called; the ImageNet classifier is the only thing left out."""
    save_file({key: t.contiguous() for key, t in state.items()}, tmp_path / name)
    loaded = _build(tmp_path / name).net.state_dict()
    assert all(torch.equal(loaded[key], t) for key, t in state.items() if not key.startswith("fc."))


@pytest.mark.parametrize("length", [0x80, 0x4B50, 0x1F80])
def test_fault_065_safetensors_whose_length_looks_like_a_pickle(tmp_path: Path, length: int) -> None:
    """The first byte of safetensors is that of a length, and may be a pickle's; the frame decides."""
    head = json.dumps({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode().ljust(length)
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + head)
    assert not is_pickle(path)
    assert list(read_state(path)) == ["a"]


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt", "pytorch_model.bin", "renamed.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_fault_064_and_065_a_pickle_is_refused_with_the_command_that_imports_it(
    tmp_path: Path, state: dict[str, Tensor], name: str, zipped: bool
) -> None:
    """No name makes a torch file weights; the refusal says how safetensors are made of it."""
    path = tmp_path / name
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=rf"pickle.*`wsi-ips model import --trust \S*{name} --out {tmp_path}`"):
        _build(path)


def test_fault_069_names_and_shapes_that_do_not_fit_are_listed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Missing, unexpected and misshapen tensors are all named at once; nothing is skipped in silence."""
    state["surplus"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(2, 3, 7, 7)
    del state["layer2.0.conv1.weight"]
    with pytest.raises(ModelError) as caught:
        _build(_saved(state, tmp_path / "w.safetensors"))
    text = str(caught.value)
    assert "w.safetensors" in text
    assert "1 missing: layer2.0.conv1.weight" in text
    assert "1 unexpected: surplus" in text
    assert "conv1.weight (2, 3, 7, 7) in the file, (64, 3, 7, 7) in the model" in text


def test_fault_069_a_wrapper_prefix_gets_its_cure(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """`module.` before every name is explained, not stripped in silence."""
    with pytest.raises(ModelError, match=r"all names start with 'module\.'.*model import"):
        _build(_saved({f"module.{k}": t for k, t in state.items()}, tmp_path / "w.safetensors"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fault_068_numbers_that_are_not_finite_name_their_tensor(tmp_path: Path, state: dict[str, Tensor], bad: float) -> None:
    """A NaN in the weights is found before the first slide."""
    state["layer1.0.conv1.weight"][3, 1, 0, 2] = bad
    with pytest.raises(ModelError, match=r"'layer1\.0\.conv1\.weight' holds 1 numbers") as caught:
        _build(_saved(state, tmp_path / "w.safetensors"))
    assert caught.value.code == "E_NOT_FINITE"


@pytest.mark.parametrize("content", [b"", b"hello, weights", b"{}", b"\xff" * 64, b"PK\x03\x04nothing", b"\x80\x02N."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_fault_066_files_that_are_no_weights(tmp_path: Path, content: bytes, suffix: str) -> None:
    """Empty, text and broken files are one sentence with the file's name."""
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="broken"):
        _build(path)


def test_fault_066_half_a_file_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """A copy that stopped half way is recognised."""
    path = _saved(state, tmp_path / "half.safetensors")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match=r"half.*is not a complete safetensors file"):
        _build(path)


def test_fault_067_a_hash_beside_the_weights_must_agree(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """A file of the SHA-256, as `model import` and sha256sum write it, makes one flipped bit an error."""
    path = _saved(state, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors.sha256").write_text(f"{sha256_file(path)}  w.safetensors\n")
    _build(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"w\.safetensors: changed or damaged"):
        _build(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    """A path with a typing error says so."""
    with pytest.raises(ModelError, match=r"nowhere\.safetensors: no such file"):
        _build(tmp_path / "nowhere.safetensors")

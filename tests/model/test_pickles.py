"""The only door for pickles: nothing runs, nothing grows beyond its file, and what comes out is safetensors."""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from wsi_ips.cli import app
from wsi_ips.errors import ModelError, exit_status
from wsi_ips.model.pickles import ImportedWeights, import_weights
from wsi_ips.results import sha256_file

STATE = {"stem.weight": torch.arange(12.0).view(3, 4), "stem.bias": torch.tensor([1.0, -2.0, 0.5]),
         "n": torch.tensor(7)}  # fmt: skip


def _import(folder: Path, data: Any, *, name: str = "w.pt", key: str = "", **options: Any) -> ImportedWeights:
    torch.save(data, folder / name, **options)
    return import_weights(folder / name, folder / "out", trusts=True, key=key)


def _refusal(folder: Path, data: Any, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        _import(folder, data, **options)
    assert not list((folder / "out").glob("*"))
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.safetensors"])
def test_fault_064_a_trusted_torch_file_becomes_safetensors(tmp_path: Path, name: str, zipped: bool) -> None:
    """Every tensor arrives bit for bit; the SHA-256 stands beside the file, and in it that of its source."""
    made = _import(tmp_path, STATE, name=name, _use_new_zipfile_serialization=zipped)
    assert made.path == tmp_path / "out" / "w.safetensors"
    found = load_file(made.path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], t) and found[key].dtype == t.dtype for key, t in STATE.items())
    assert (tmp_path / "out" / "w.safetensors.sha256").read_text() == f"{sha256_file(made.path)}  w.safetensors\n"
    assert made.sha256 == sha256_file(made.path)
    assert sha256_file(tmp_path / name).encode() in made.path.read_bytes()
    assert made.notes == ()


def test_fault_064_the_command_imports_and_without_trust_refuses(tmp_path: Path) -> None:
    """Exit 2 and the cure without --trust; with it the file, the notes and the hash."""
    torch.save({"state_dict": STATE, "epoch": 3}, tmp_path / "w.pt")
    words = ["model", "import", str(tmp_path / "w.pt"), "--out", str(tmp_path)]
    refused = CliRunner().invoke(app, words).exception
    assert isinstance(refused, ModelError)
    assert exit_status(refused) == 2
    assert "add --trust" in str(refused)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]
    done = CliRunner().invoke(app, [*words, "--trust"])
    assert done.exit_code == 0, done.output
    assert "took 'state_dict', left behind: epoch" in done.stderr
    assert sha256_file(tmp_path / "w.safetensors") in done.stdout
    assert "restricted unpickler" in CliRunner().invoke(app, ["model", "import", "--help"]).stdout.replace("\n", " ")


class _Bomb:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.flag),)


@pytest.mark.parametrize("zipped", [True, False])
def test_fault_064_trust_runs_no_code_either(tmp_path: Path, zipped: bool) -> None:
    """What a pickle asks to be called is named and never called."""
    text = _refusal(tmp_path, {"a": _Bomb(tmp_path / "executed")}, _use_new_zipfile_serialization=zipped)
    assert "posix.mkdir" in text or "nt.mkdir" in text
    assert not (tmp_path / "executed").exists()


class _Net(torch.nn.Linear):
    """A whole model of somebody's own."""


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (_Net(2, 2), ["_Net"]),
        ({"state_dict": STATE, "args": argparse.Namespace(lr=1.0)}, ["argparse.Namespace"]),
        ({"state_dict": STATE, "best": np.float64(0.9)}, ["numpy", "scalar"]),
    ],
    ids=["module", "Namespace", "numpy scalar"],
)
def test_fault_073_objects_in_a_checkpoint_are_named_with_the_cure(tmp_path: Path, data: Any, names: list[str]) -> None:
    """One plain sentence, without torch's coloured advice to read the file unsafely."""
    text = _refusal(tmp_path, data)
    assert all(name in text for name in names), text
    assert "`model.state_dict()` alone" in text
    assert "\x1b" not in text
    assert "weights_only" not in text
    assert "\n" not in text


def test_fault_073_a_torchscript_program_is_told_apart(tmp_path: Path) -> None:
    """It is code and weights in one, and is not taken for a damaged file."""
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name in ("w/data.pkl", "w/constants.pkl", "w/code/__torch__.py"):
            archive.writestr(name, b"\x80\x02N.")
    with pytest.raises(ModelError, match="TorchScript program"):
        import_weights(tmp_path / "w.pt", tmp_path / "out", trusts=True)


def _packed(folder: Path, method: int) -> Path:
    torch.save({"a": torch.zeros(1 << 16)}, folder / "plain.pt")
    with zipfile.ZipFile(folder / "plain.pt") as source, zipfile.ZipFile(folder / "w.pt", "w", method) as sink:
        for name in source.namelist():
            sink.writestr(name, source.read(name))
    return folder / "w.pt"


def test_fault_070_a_packed_archive_is_refused_by_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would unfold to many times its size is refused before anything of it is unpacked."""
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("was opened"))
    packed = _packed(tmp_path, zipfile.ZIP_DEFLATED)
    with pytest.raises(
        ModelError, match=rf"compressed archive is refused \({packed.stat().st_size} bytes would become 26"
    ):
        import_weights(packed, tmp_path / "out", trusts=True)


def test_fault_070_parts_that_share_their_bytes_are_counted_each(tmp_path: Path) -> None:
    """A directory that names the same bytes many times promises more than the file holds."""
    plain = _packed(tmp_path, zipfile.ZIP_STORED)
    with zipfile.ZipFile(plain, "a") as archive:
        part = max(archive.infolist(), key=lambda p: p.file_size)
        archive.filelist += [part] * 50
        archive._didModify = True  # so that the directory is written anew
    with pytest.raises(ModelError, match="would become 13"):
        import_weights(plain, tmp_path / "out", trusts=True)


def test_fault_070_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    """One number that claims to be a terabyte takes no memory."""
    text = _refusal(tmp_path, {"a": torch.zeros(1).expand(1 << 38)})
    assert "far more than the file holds" in text
    text = _refusal(tmp_path, {"a": torch.zeros(1).expand(300)})
    assert "'a' of shape (300,) claims more numbers than are stored" in text


@pytest.mark.skipif(sys.platform == "win32", reason="the system offers no limit")
def test_fault_070_an_allocation_the_file_does_not_explain_is_refused(tmp_path: Path) -> None:
    """A few bytes that ask for a terabyte are stopped by the memory reading may take."""
    asked = 1 << 40
    pickled = b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + asked.to_bytes(6, "little") + b"\x85R."
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/data.pkl", pickled)
        archive.writestr("w/version", "3\n")
    with pytest.raises(ModelError, match="asks for far more memory than its size explains"):
        import_weights(tmp_path / "w.pt", tmp_path / "out", trusts=True)


@pytest.mark.parametrize("data", [b"PK\x03\x04nothing", b"\x80\x02N.", b"\x80\x02", b"PK\x05\x06" + bytes(18)])
def test_fault_066_what_is_no_torch_file_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    """Broken archives and pickles of nothing name the file."""
    (tmp_path / "w.pt").write_bytes(data)
    with pytest.raises(ModelError, match=r"w\.pt: "):
        import_weights(tmp_path / "w.pt", tmp_path / "out", trusts=True)


def test_fault_066_half_a_torch_file_is_refused(tmp_path: Path) -> None:
    """A copy that stopped half way is recognised, at any place."""
    torch.save(STATE, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    for n in range(5, len(data), len(data) // 12):
        (tmp_path / "w.pt").write_bytes(data[:n])
        with pytest.raises(ModelError, match=r"w\.pt: is not a complete torch file"):
            import_weights(tmp_path / "w.pt", tmp_path / "out", trusts=True)


@pytest.mark.parametrize(
    ("wrap", "notes"),
    [
        (lambda s: {f"module.{k}": t for k, t in s.items()}, ("took 'module.' off the names",)),
        (lambda s: {f"_orig_mod.module.{k}": t for k, t in s.items()},
         ("took '_orig_mod.' off the names", "took 'module.' off the names")),
        (lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {0: {"m": s["n"]}}, "param_groups": []}},
         ("took 'state_dict', left behind: epoch, optimizer",)),
        (lambda s: {"model": {"state_dict": {f"model.{k}": t for k, t in s.items()}}},
         ("took 'model'", "took 'state_dict'", "took 'model.' off the names")),
        (lambda s: s | {"epoch": 3, "arch": "resnet"}, ("left behind: epoch, arch",)),
    ],
    ids=["DataParallel", "compiled", "checkpoint", "two levels", "plain values beside"],
)  # fmt: skip
def test_fault_069_wrappers_are_taken_off_by_name_and_said(tmp_path: Path, wrap: Any, notes: tuple[str, ...]) -> None:
    """`module.`, `state_dict` and their kin go, each with a note; the tensors are the same."""
    made = _import(tmp_path, wrap(STATE))
    assert made.notes == notes
    assert load_file(made.path).keys() == STATE.keys()


def test_fault_069_of_several_sets_of_weights_one_is_chosen_by_name(tmp_path: Path) -> None:
    """Teacher or student is not guessed."""
    data = {"student": STATE, "teacher": {k: t + 1 for k, t in STATE.items()}}
    assert "several sets of weights: student, teacher; choose one by --key student" in _refusal(tmp_path, data)
    assert "there is no 'theacher', found: student, teacher" in _refusal(tmp_path, data, key="theacher")
    made = _import(tmp_path, data, key="teacher")
    assert torch.equal(load_file(made.path)["n"], torch.tensor(8))
    assert made.notes == ("took 'teacher', left behind: student",)


def test_fault_069_safetensors_lose_a_wrapper_too(tmp_path: Path) -> None:
    """They need no trust."""
    save_file({f"module.{k}": t for k, t in STATE.items()}, tmp_path / "w.safetensors")
    made = import_weights(tmp_path / "w.safetensors", tmp_path / "bare.safetensors", trusts=False)
    assert made.path == tmp_path / "bare.safetensors"
    assert load_file(made.path).keys() == STATE.keys()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fault_068_numbers_that_are_not_finite_are_not_imported(tmp_path: Path, bad: float) -> None:
    """The tensor is named."""
    assert "'stem.bias' holds 1 numbers that are not finite" in _refusal(
        tmp_path, STATE | {"stem.bias": torch.tensor([0, bad])}
    )


@pytest.mark.parametrize(
    "tensor", [torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex64)], ids=["sparse", "complex"]
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_that_are_no_plain_arrays_are_named(tmp_path: Path, tensor: Tensor) -> None:
    """They have no place among an encoder's weights."""
    assert "tensor 'a' is torch." in _refusal(tmp_path, {"a": tensor})


def test_views_and_tied_weights_are_stored_whole(tmp_path: Path) -> None:
    """A transposed view and a tensor of two names come out as their own numbers."""
    base = torch.arange(6.0).view(2, 3)
    found = load_file(_import(tmp_path, {"a": base.T, "b": base, "c": torch.nn.Parameter(base[1])}).path)
    assert torch.equal(found["a"], base.T)
    assert torch.equal(found["b"], base)
    assert torch.equal(found["c"], base[1])


def test_nothing_is_overwritten_and_a_folder_of_the_hub_gets_its_own_name(tmp_path: Path) -> None:
    """pytorch_model.bin becomes the model.safetensors that `local-dir:` looks for; a second import is refused."""
    made = _import(tmp_path, STATE, name="pytorch_model.bin")
    assert made.path.name == "model.safetensors"
    with pytest.raises(ModelError, match=r"model\.safetensors: exists already"):
        _import(tmp_path, STATE, name="pytorch_model.bin")
    with pytest.raises(ModelError, match=r"a name that ends in \.safetensors"):
        import_weights(tmp_path / "pytorch_model.bin", tmp_path / "w.pt", trusts=True)
    with pytest.raises(ModelError, match="no such file of weights"):
        import_weights(tmp_path / "absent.pt", tmp_path, trusts=True)

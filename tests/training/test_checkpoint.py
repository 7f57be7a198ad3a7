"""The state of a training on disk: given back as it was, refused when it is not what it says, and never run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_ips.errors import ModelError
from wsi_ips.training import checkpoint as checkpoint_module
from wsi_ips.training.checkpoint import read_checkpoint, write_checkpoint


class _Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._folder),)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """Tensors, numbers of numpy as plain ones, nested lists; nothing where there is no file."""
    path = tmp_path / "c.pt"
    assert read_checkpoint(path, "mine") is None
    write_checkpoint(path, "mine", {"w": torch.arange(3.0), "n": np.float64(0.1), "h": [(1, np.int64(2))]})
    found = read_checkpoint(path, "mine")
    assert found is not None
    assert torch.equal(found["w"], torch.arange(3.0))
    assert (found["n"], found["h"]) == (0.1, [[1, 2]])


def test_no_checkpoint_runs_code(tmp_path: Path) -> None:
    """A file that was planted is refused, and what it wanted to do is not done."""
    torch.save({"version": 1, "identity": "mine", "state": {"w": _Runs(tmp_path / "ran")}}, tmp_path / "c.pt")
    with pytest.raises(ModelError, match="damaged, or no checkpoint"):
        read_checkpoint(tmp_path / "c.pt", "mine")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fields may mean something else."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "_VERSION", 2)
        write_checkpoint(tmp_path / "c.pt", "mine", {})
    with pytest.raises(ModelError, match="version 2 needs a newer wsi-ips"):
        read_checkpoint(tmp_path / "c.pt", "mine")


def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    """Half a file is no state."""
    write_checkpoint(tmp_path / "c.pt", "mine", {"w": torch.arange(300.0)})
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:500])
    with pytest.raises(ModelError, match="delete it to start"):
        read_checkpoint(tmp_path / "c.pt", "mine")

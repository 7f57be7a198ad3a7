"""What a training writes down while it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from wsi_ips.training.events import EventLog
from wsi_ips.training.loop import Epoch


def _epoch(number: int, loss: float) -> Epoch:
    nan = float("nan")
    return Epoch(number, loss, nan, nan, 1e-3, 2.0, 70, 8, nan, nan, 4)


class _Writer:
    """Stands for TensorBoard's writer, which is an extra."""

    def __init__(self, folder: str) -> None:
        self.folder, self.found, self.n_flushed = folder, [], 0
        _WRITERS.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.found.append((name, value, step))

    def flush(self) -> None:
        self.n_flushed += 1


_WRITERS: list[_Writer] = []


def test_an_epoch_done_again_replaces_its_line(tmp_path: Path) -> None:
    """After a restart from before it; what is not a number is null."""
    log = EventLog(tmp_path)
    log.epoch(_epoch(1, 0.7))
    log.epoch(_epoch(2, 0.6))
    EventLog(tmp_path).epoch(_epoch(2, 0.5))
    lines = [json.loads(line) for line in (tmp_path / "epochs.jsonl").read_text().splitlines()]
    assert [(x["epoch"], x["loss"], x["val_loss"]) for x in lines] == [(1, 0.7, None), (2, 0.5, None)]


def test_tensorboard_gets_every_number_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is installed: all fields of the epoch by name, at its step, in a folder beside the lines."""
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = _Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    EventLog(tmp_path).epoch(_epoch(3, 0.25))
    written = _WRITERS.pop()
    assert Path(written.folder) == tmp_path / "tensorboard"
    assert ("loss", 0.25, 3) in written.found
    assert ("n_scanned", 70, 3) in written.found
    assert not {"epoch", "val_loss", "recall"} & {name for name, _, _ in written.found}
    assert written.n_flushed == 1


def test_without_the_extra_there_are_only_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder for TensorBoard, no error."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    EventLog(tmp_path).epoch(_epoch(1, 0.7))
    assert [p.name for p in tmp_path.iterdir()] == ["epochs.jsonl"]

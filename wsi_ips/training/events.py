"""What a training says while it runs, for programs: a line of JSON an epoch, and TensorBoard events where installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_ips.files import write_whole

if TYPE_CHECKING:
    from wsi_ips.training.loop import Epoch

__all__ = ["EventLog"]


class EventLog:
    """Writes `epochs.jsonl` into a folder; after a restart epochs that are done again replace their lines.

    With the extra `tensorboard` installed the same numbers go to `tensorboard/`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "epochs.jsonl"
        self._writer = _tensorboard(folder / "tensorboard")

    def epoch(self, e: Epoch) -> None:
        """Take an epoch in."""
        old = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        kept = [line for line in old if json.loads(line)["epoch"] < e.epoch]
        values = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in e._asdict().items()}
        write_whole(self._path, ("\n".join([*kept, json.dumps(values)]) + "\n").encode())
        if self._writer is not None:
            for name, value in values.items():
                if value is not None and name != "epoch":
                    self._writer.add_scalar(name, value, e.epoch)
            self._writer.flush()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # the extra `tensorboard`
    except ImportError:
        return None
    return SummaryWriter(str(folder))

"""What a finished run of `classify` says of its slides: tasks and logits, and why a slide has none.

Read from run.json and the slides' records (the ledger where an older record holds no logits); no model is opened.

Shapes: P outputs of all tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pydantic import ValidationError

from wsi_ips.errors import ConfigError, ManifestError
from wsi_ips.results import SCHEMA_VERSION
from wsi_ips.runfolder import RunFolder
from wsi_ips.tables import plain_text, read_table
from wsi_ips.tasks import TaskSettings

__all__ = ["RunOutputs", "read_outputs"]

_FINISHED = ("ok", "ok_with_warnings")


@dataclass(frozen=True)
class RunOutputs:
    """A run's logits."""

    path: Path
    facts: Mapping[str, Any]  # run.json
    tasks: tuple[TaskSettings, ...]
    logits: dict[str, np.ndarray]  # (P,) float64 by slide_id
    unfinished: dict[str, str]  # why a slide has none, by slide_id
    files: dict[str, tuple[str, ...]]  # names in a slide's folder, by slide_id

    def patient_of(self, slide_id: str) -> str:
        """Whose slide it is, as the run's own manifest had it."""
        return str(self.facts.get("slides", {}).get(slide_id, {}).get("patient_id") or slide_id)


def read_outputs(run: str | Path) -> RunOutputs:
    """Read a run.

    Raises:
        ConfigError: the folder is not a run of `classify`, was made by a newer version, or contradicts itself.
    """
    folder = RunFolder(run)
    facts = folder.read_json("run.json")
    if facts.get("schema_version", 0) > SCHEMA_VERSION:
        raise ConfigError(f"{run}: made by a newer wsi-ips (schema_version {facts['schema_version']}); update")
    tasks = _tasks(folder, facts)
    said = _predictions(folder)
    model = facts.get("model", {})
    wanted = {k: model.get(k) for k in ("model_hash", "settings_hash")}
    logits, unfinished, files = {}, {}, {}
    for slide_id in facts.get("slides", {}):
        record = folder.read_record(slide_id)
        why = _fault(record, wanted, said.get(slide_id, {}))
        if record is None or why:
            unfinished[slide_id] = why
            continue
        z = _logits(folder, slide_id, record)
        n = sum(t.n_outputs for t in tasks)
        if z.shape != (n,) or not np.isfinite(z).all():
            raise ConfigError(
                f"{run}: slide {slide_id}: {len(z)} logits, the model's tasks need {n} finite ones; classify it again"
            )
        logits[slide_id], files[slide_id] = z, tuple(record.get("outputs", {}))
    return RunOutputs(folder.path, facts, tasks, logits, unfinished, files)


def _tasks(folder: RunFolder, facts: Mapping[str, Any]) -> tuple[TaskSettings, ...]:
    given = facts.get("tasks") or facts.get("model", {}).get("model_settings", {}).get("tasks")
    if not given:
        raise ConfigError(f"{folder.path}: run.json names no tasks; give the run folder of classify")
    try:
        return tuple(TaskSettings(**t) for t in given)
    except (TypeError, ValidationError) as error:
        raise ConfigError(f"{folder.path}: the tasks of run.json cannot be read ({error}); was it edited?") from error


def _predictions(folder: RunFolder) -> dict[str, dict[str, str]]:
    """Rows of predictions.csv by slide; none where the run was stopped before it wrote any."""
    try:
        table = read_table(folder.path / "predictions.csv")
    except ManifestError:
        return {}
    names = [plain_text(name) for name in table.header]
    rows = [dict(zip(names, map(plain_text, row.cells), strict=True)) for row in table.rows]
    return {row.get("slide_id", ""): row for row in rows}


def _fault(record: Mapping[str, Any] | None, wanted: Mapping[str, Any], row: Mapping[str, str]) -> str:
    """Say why a slide has no logits of this run's model; "" when it has."""
    if record is None:
        return "excluded from the run" if row.get("reason") == "E_EXCLUDED" else "not reached by the run"
    if record["status"] not in _FINISHED:
        return f"{record['status'].replace('_', ' ')} in the run ({record.get('reason') or 'no reason given'})"
    identity = record.get("identity") or {}
    if any(identity.get(k) != v for k, v in wanted.items()):
        return "labelled by another model or other settings than run.json names"
    return ""


def _logits(folder: RunFolder, slide_id: str, record: Mapping[str, Any]) -> np.ndarray:
    found = record.get("outputs_logits")
    if found:
        return np.asarray(found, dtype=np.float64)
    path = folder.slide_folder(slide_id) / f"{slide_id}.ledger.h5"
    try:
        with h5py.File(path, "r") as ledger:
            return np.asarray(ledger["outputs"], dtype=np.float64)
    except (OSError, KeyError) as error:
        raise ConfigError(f"{path}: holds no outputs ({error}); classify the slide again") from error

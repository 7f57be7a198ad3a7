"""What a run holds, by slide id: the only way from a request to a file.

A request names a slide id; the index knows the run's ids, and nothing else leads to a file. Where a slide lies is
known in here and never told: messages of the run are freed of file names before they leave.
"""

from __future__ import annotations

import csv
import io
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from wsi_ips.errors import ConfigError
from wsi_ips.files import read_regular
from wsi_ips.results import SCHEMA_VERSION
from wsi_ips.runfolder import RunFolder
from wsi_ips.slidefiles import is_slide_id
from wsi_ips.tables import plain_text
from wsi_ips.tasks import TaskSettings

__all__ = ["RunIndex", "SlideEntry", "calls_in"]

Icc = Literal["none", "srgb"]
_MOST_BYTES = 1 << 30  # of predictions.csv


@dataclass(frozen=True)
class SlideEntry:
    """One row of the run."""

    slide_id: str
    cells: dict[str, str]  # of predictions.csv
    path: str | None  # where the slide lies now; None where there is none
    mpp: float | None  # from the manifest, µm per level-0 px

    @property
    def status(self) -> str:
        """As in predictions.csv."""
        return self.cells.get("status", "")

    @property
    def is_labelled(self) -> bool:
        """Whether there is a ledger to draw from."""
        return self.status in ("ok", "ok_with_warnings")

    def told(self, text: str) -> str:
        """Free a sentence of the slide's path and file name."""
        if self.path:
            name = Path(self.path).name
            text = text.removeprefix(f"{name}: ")
            for secret in (self.path, str(Path(self.path).absolute()), name):
                text = text.replace(secret, "the slide file")
        return " ".join("(a file)" if _is_path(word) else word for word in text.split(" "))


def _is_path(word: str) -> bool:
    bare = word.strip("'\"()[],;:")
    return "://" in bare or bare.startswith(("/", "~/", "\\\\")) or bare[1:3] in (":\\", ":/")


class RunIndex:
    """The rows of a run folder; read again when they have changed.

    Args:
        run: run folder.
        slide_root: folder that holds the slides now; by default they lie where they lay.

    Raises:
        ConfigError: no run folder, or one made by a newer version.
    """

    def __init__(self, run: str | Path, slide_root: Path | None = None) -> None:
        self.folder = RunFolder(run)
        self._slide_root = slide_root
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._entries: dict[str, SlideEntry] = {}
        facts = self.folder.read_json("run.json")
        version = facts.get("schema_version", 0)
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ConfigError(f"{self.folder.path}: made by a newer wsi-ips (schema_version {version}); update")
        try:
            model = facts["model"]
            settings = model["model_settings"]
            self.model_hash = str(model["model_hash"])
            self.icc = cast(Icc, settings["icc"])
            self.tasks = tuple(TaskSettings(**task) for task in settings["tasks"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{self.folder.path}: run.json does not say which model the run is of") from error
        self.entries()

    def entries(self) -> dict[str, SlideEntry]:
        """All rows by slide id, in the order of the table."""
        with self._lock:
            seen = (_stamp(self.folder.path / "predictions.csv"), _stamp(self.folder.path / "run.json"))
            if seen != self._seen:
                self._entries, self._seen = self._read(), seen
            return self._entries

    def _read(self) -> dict[str, SlideEntry]:
        said = self.folder.read_json("run.json").get("slides")
        sources: dict[str, Any] = said if isinstance(said, dict) else {}
        rows = self._rows(list(sources))
        entries = {}
        for row in rows:
            slide_id = row.get("slide_id", "")
            if not is_slide_id(slide_id):  # could name a file outside the run folder
                continue
            source = sources.get(slide_id)
            source = source if isinstance(source, dict) else {}
            path, mpp = source.get("path") or None, source.get("mpp")
            path = path if isinstance(path, str) else None
            if path and self._slide_root:
                path = str(self._slide_root / Path(path).name)
            entries[slide_id] = SlideEntry(slide_id, row, path, float(mpp) if isinstance(mpp, int | float) else None)
        return entries

    def _rows(self, slide_ids: list[str]) -> list[dict[str, str]]:
        """Rows of predictions.csv; of a run that is still going on, the records of what is finished."""
        try:
            text = read_regular(self.folder.path / "predictions.csv", _MOST_BYTES).decode("utf-8-sig")
        except FileNotFoundError:
            records = {i: self.folder.read_record(i) for i in slide_ids if is_slide_id(i)}
            return [
                {"slide_id": i, **{k: str(r.get(k, "")) for k in ("status", "reason", "message")}, **r.get("cells", {})}
                if r else {"slide_id": i, "status": "not_run", "message": "not reached yet"}
                for i, r in records.items()
            ]  # fmt: skip
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.folder.path}: predictions.csv cannot be read ({error})") from error
        try:
            return [{plain_text(k): plain_text(v or "") for k, v in row.items() if k} for row in csv.DictReader(io.StringIO(text))]
        except csv.Error as error:
            raise ConfigError(f"{self.folder.path}: predictions.csv cannot be read ({error})") from error


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def calls_in(cells: dict[str, str], tasks: tuple[TaskSettings, ...]) -> list[dict[str, Any]]:
    """Read calls and probabilities out of a row of predictions.csv, one entry a task; none for a slide without a call.

    `value` is the number a list sorts by, and `of` what it speaks for: binary, the probability of the positive class;
    multilabel, of the most probable class; other classes, of the called one. A regression has none.
    """
    calls = []
    for task in tasks:
        single = len(tasks) == 1
        prefix = "" if single else f"{task.name}_"
        call = cells.get("pred" if single else task.name, "")
        if not call:
            continue
        probs = {name: _number(cells.get(f"{prefix}prob_{name}")) for name in task.classes}
        of = call
        if task.kind == "binary":
            of = task.classes[1]
        elif task.kind == "multilabel" and task.classes:
            of = max(task.classes, key=lambda name: probs[name] or 0.0)
        calls.append({
            "task": task.name, "kind": task.kind, "call": call, "of": of if probs else "", "value": probs.get(of),
            "threshold": _number(cells.get(f"{prefix}threshold")),
            "probabilities": [{"name": name, "value": value} for name, value in probs.items()],
        })  # fmt: skip
    return calls


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None

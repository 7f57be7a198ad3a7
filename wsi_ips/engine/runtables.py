"""The tables of a run, laid out from the slides' records: predictions.csv, patients.csv, timings.csv, index.html.

Columns and their order: one row of the manifest, one row of predictions.csv. A missing score is an empty cell.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from wsi_ips.config import TaskSettings
from wsi_ips.engine.runpages import PATIENT_RULE, write_pages
from wsi_ips.manifest import Manifest, SlideRecord
from wsi_ips.results import SlidePrediction
from wsi_ips.runfolder import RunFolder, table_bytes
from wsi_ips.tables import cell_text
from wsi_ips.tasks import prediction_cells

__all__ = ["RunTables", "measured_cells", "row_identity"]

_MEASURED = ("n_tiles", "n_selected", "n_missing", "n_failed_reads", "mpp", "mpp_source", "tissue_mm2", "reader", "model_hash",
             "settings_hash")  # fmt: skip


def measured_cells(p: SlidePrediction) -> dict[str, str]:
    """Cells of predictions.csv that one slide's pass decides."""
    return prediction_cells(p.outputs, p.tasks) | {
        "n_tiles": str(p.n_tiles), "n_selected": str(len(p.selected)), "n_missing": str(p.n_missing),
        "n_failed_reads": str(p.n_failed_reads), "mpp": _number(p.mpp.x, ".6g"), "mpp_source": p.mpp.source,
        "tissue_mm2": _number(p.tissue_mm2, ".4f"), "reader": p.reader, "model_hash": p.model_hash, "settings_hash": p.settings_hash,
    }  # fmt: skip


def _number(value: float, form: str) -> str:
    """Write a number; unknown (NaN) is an empty cell."""
    return "" if math.isnan(value) else format(value, form)


def row_identity(record: SlideRecord, info: Mapping[str, Any]) -> dict[str, str]:
    """What a slide's record must agree with: the model, the settings, and what the manifest's row asks for."""
    asked = [record.slide_id, record.slide_path, record.mpp, record.mask_path, record.patient_id]
    asked += [] if info.get("takes_tiles", True) else [record.features_path]
    asked += [f"{k} {v}" for k, v in sorted(record.stated.items())]
    row = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    return {"model_hash": info["model_hash"], "settings_hash": info["settings_hash"], "row": row}


class RunTables:
    """Lays a run's tables out.

    Args:
        run: the folder with the records.
        manifest: the rows, in their order.
        tasks: of the model.
        info: what a worker says of the model (`model_hash`, `settings_hash`).
    """

    def __init__(
        self, run: RunFolder, manifest: Manifest, tasks: tuple[TaskSettings, ...], info: Mapping[str, Any]
    ) -> None:
        self._run, self._manifest, self._tasks, self._info = run, manifest, tasks, info

    def rows(self) -> list[dict[str, str]]:
        """Rows of predictions.csv in the manifest's order."""
        return [self._row(r, self._record_of(r)) for r in self._manifest.records]

    def columns(self) -> list[str]:
        """Columns of predictions.csv."""
        blank = np.zeros(sum(t.n_outputs for t in self._tasks))
        carried = dict.fromkeys(c for r in self._manifest.records for c in self._carried(r))
        return [
            "slide_id",
            "patient_id",
            "status",
            "reason",
            "message",
            *prediction_cells(blank, self._tasks),
            *_MEASURED,
            *carried,
        ]

    def write(self) -> None:
        """Write predictions.csv, patients.csv, timings.csv and the pages."""
        rows = self.rows()
        for name, data in self.tables(rows).items():
            self._run.write_file(name, data)
        timings = self._timings()
        names = dict.fromkeys(["slide_id", "attempts", *(k for t in timings for k in t)])
        self._run.write_table("timings.csv", list(names), timings)
        records = {r.slide_id: self._record_of(r) for r in self._manifest.records}
        write_pages(self._run, rows, self._tasks, self._info, records)

    def tables(self, rows: list[dict[str, str]]) -> dict[str, bytes]:
        """Lay out predictions.csv, from its rows, and patients.csv."""
        patients = self._patients()
        return {
            "predictions.csv": table_bytes(self.columns(), [{k: cell_text(v) for k, v in row.items()} for row in rows]),
            "patients.csv": table_bytes(list(patients[0]) if patients else ["patient_id"], patients),
        }

    def _record_of(self, r: SlideRecord) -> dict[str, Any] | None:
        """The slide's record, unless it belongs to another model, other settings or another row of a manifest."""
        record = None if r.is_excluded else self._run.read_record(r.slide_id)
        identity = (record or {}).get("identity") or {}
        wanted = row_identity(r, self._info)
        return record if all(identity.get(k) == v for k, v in wanted.items()) else None

    def _row(self, r: SlideRecord, record: Mapping[str, Any] | None) -> dict[str, str]:
        base = {"slide_id": r.slide_id, "patient_id": r.patient_id} | self._carried(r)
        if record is None:
            why = (
                ("E_EXCLUDED", r.exclude_reason or "excluded by the manifest")
                if r.is_excluded
                else ("E_NOT_REACHED", "the run did not reach this slide")
            )
            return base | {"status": "not_run", "reason": why[0], "message": why[1]}
        return base | {k: str(record[k]) for k in ("status", "reason", "message")} | record["cells"]

    def _carried(self, r: SlideRecord) -> dict[str, str]:
        blank = np.zeros(sum(t.n_outputs for t in self._tasks))
        own = {
            "slide_id",
            "patient_id",
            "status",
            "reason",
            "message",
            *prediction_cells(blank, self._tasks),
            *_MEASURED,
        }
        return {(f"manifest_{k}" if k in own else k): v for k, v in ({**r.labels, **r.carried}).items()}

    def _patients(self) -> list[dict[str, str]]:
        by_patient: dict[str, list[list[float]]] = defaultdict(list)
        for r in self._manifest.records:
            record = self._record_of(r)
            if record and record.get("outputs_logits"):
                by_patient[r.patient_id].append(record["outputs_logits"])
        rows = []
        for patient, logits in by_patient.items():
            outputs = np.mean(np.array(logits), axis=0)
            cells = prediction_cells(outputs, self._tasks)
            rows.append(
                {"patient_id": cell_text(patient), "n_slides": str(len(logits)), **cells, "rule": PATIENT_RULE}
            )
        return rows

    def _timings(self) -> list[dict[str, str]]:
        rows = []
        for r in self._manifest.records:
            record = self._record_of(r)
            if record:
                seconds = {f"{k}_s": f"{v:.3f}" for k, v in record.get("seconds", {}).items()}
                seconds |= {f"stage_{k}_s": f"{v:.3f}" for k, v in record.get("stages", {}).items()}
                rows.append({"slide_id": r.slide_id, "attempts": str(record.get("attempts", 1)), **seconds,
                             "peak_mb": f"{record.get('peak_bytes', 0) / 1e6:.0f}",
                             "n_encoded": str(record.get("n_encoded", 0)), "cached": "yes" if record.get("is_cached") else "no"})  # fmt: skip
        return rows

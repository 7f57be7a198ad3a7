"""An audit's report as lines for a person and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from wsi_ips.engine.audit import AuditReport, Finding
from wsi_ips.engine.auditfolder import printed

__all__ = ["report_json", "report_lines"]


def report_lines(report: AuditReport, most: int = 200) -> list[str]:
    """Lay a report out as plain lines.

    Args:
        report: of `audit_run`.
        most: lines of one list that are shown.
    """
    state = "a run is going on" if report.is_running else "ended" if report.has_ended else "the last start did not come to its end"
    statuses = ", ".join(f"{n} {status}" for status, n in sorted(report.statuses.items()))
    lines = [f"{'run':<12}{printed(report.folder)}", f"{'state':<12}{state}", f"{'rows':<12}{report.rows}" + (f": {statuses}" if statuses else ""),
             f"{'files':<12}{report.n_files} compared with their hashes, {report.n_tables} tables and pages laid out again"]  # fmt: skip
    lines += [f"{'note':<12}{printed(note)}" for note in report.notes]
    lines += _part("DOES NOT HOLD", _finding_rows(report.findings), most)
    lines += _part("BEING WRITTEN (the run goes on; audit again)", _finding_rows(report.unsettled), most)
    lines += _part("NAMED BY NO RECORD (left by a killed process, or put there by somebody)", [(n,) for n in report.unnamed], most)
    lines += _part("KEPT BESIDE (marks of people, evaluations; no record has their hash)", [(n,) for n in report.beside], most)
    rows = [(d.subject, d.name, f"{d.then} -> {d.now}" if d.then else d.now) for d in report.differences]
    lines += _part("WOULD DIFFER IF MADE AGAIN NOW", rows, most)
    if not report.differences:
        lines += ["", "Made again now, from the same files and by the same versions, it would be the same."]
    lines += ["", "Everything holds." if report.holds else f"{len(report.findings)} found; each line says what to do."]
    return lines


def report_json(report: AuditReport) -> bytes:
    """Give all of a report as JSON."""
    found = asdict(report) | {"folder": str(report.folder), "holds": report.holds}
    named = {k: [one._asdict() for one in getattr(report, k)] for k in ("findings", "unsettled", "differences")}
    return json.dumps(found | named, indent=1, sort_keys=True).encode()


def _finding_rows(findings: Iterable[Finding]) -> list[tuple[str, ...]]:
    return [(f.what, f.name, f.text) for f in findings]


def _part(title: str, rows: Sequence[tuple[str, ...]], most: int) -> list[str]:
    if not rows:
        return []
    shown = [tuple(printed(cell) if i < len(row) - 1 else _whole(cell) for i, cell in enumerate(row)) for row in rows[:most]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]) - 1)]
    lines = ["  " + "  ".join([*(c.ljust(w) for c, w in zip(row[:-1], widths, strict=True)), row[-1]]) for row in shown]
    more = [f"  and {len(rows) - most} more; --json FILE holds all"] if len(rows) > most else []
    return ["", title, *lines, *more]


def _whole(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)

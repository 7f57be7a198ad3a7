"""`audit`: does every file of a run hold what its record says, and what would differ if the run were made again?

Hashes prove that files are what the run wrote, against a disk, a copy or a careless hand; they are no signature: whoever
may write the folder may write its records, too. Nothing is written and no lock is taken, so a run that is going on is
not disturbed, and a folder that can only be read is enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import wsi_ips
from wsi_ips.config import TaskSettings
from wsi_ips.engine.auditfolder import AuditFolder, FileFaultError, printed
from wsi_ips.engine.rerun import Difference, rerun_differences
from wsi_ips.engine.runfacts import recorded_manifest
from wsi_ips.engine.runpages import page_files
from wsi_ips.engine.runtables import RunTables
from wsi_ips.errors import ConfigError
from wsi_ips.files import is_inside
from wsi_ips.locking import is_held
from wsi_ips.slidefiles import is_slide_id

__all__ = ["AuditReport", "Finding", "audit_run"]

_TIMED = ("run.json", "log.jsonl", "timings.csv")
_TABLES = ("predictions.csv", "patients.csv")
_PAGES = ("index.html", "gallery.html", "faithfulness.csv")
_BY_PEOPLE = ("reviews.csv", ".reviews.lock")
_EVALUATION = "evaluation/"
_MOST_THUMBNAIL, _MOST_THUMBNAILS = 256 << 10, 512 << 20  # bytes of one, which has 10 KB, and of all
_AGAIN = "run the same classify command again: it does this slide again and keeps the others"


class Finding(NamedTuple):
    """Something that does not hold."""

    what: str  # missing, changed, record, link, unreadable, table, page
    name: str  # of the file in the run folder, or what else it is about
    text: str  # what is wrong, and the cure


@dataclass
class AuditReport:
    """What an audit found; mutable while it is made."""

    folder: Path
    is_running: bool  # some process holds the folder
    has_ended: bool  # the last start of classify came to its end
    rows: int  # of the manifest
    statuses: dict[str, int] = field(default_factory=dict)  # rows by status, as the records give it
    n_files: int = 0  # compared with their hashes
    n_tables: int = 0  # laid out again and compared
    findings: list[Finding] = field(default_factory=list)
    unsettled: list[Finding] = field(default_factory=list)  # of slides that the run seems to be writing just now
    unnamed: list[str] = field(default_factory=list)  # files that no record names
    beside: list[str] = field(default_factory=list)  # marks of people and evaluations, which belong to no slide's record
    notes: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Tell whether everything that has a record is what it says."""
        return not self.findings


def audit_run(
    run: str | Path, *, strict: bool = False, progress: Callable[[int, int], None] = lambda done, of: None
) -> AuditReport:
    """Check every file of a run against its record, and say what would differ if the run were made again now.

    Args:
        run: run folder of classify; may be read-only, and a run may be going on in it.
        strict: read slides whole that are recorded by all their bytes; else their size is looked at.
        progress: called with slides done and slides in all.

    Raises:
        ConfigError: the folder is not a run, or a newer version has made it.
    """
    folder = AuditFolder(run)
    facts = folder.facts()
    is_running = is_held(folder.path)
    report = AuditReport(folder.path, is_running, "ended" in facts, len(facts["slides"]))
    present = dict(folder.files())
    ids = sorted({*facts["slides"], *_slide_ids(present)})
    named: set[str] = {*_TIMED, *_TABLES, *_PAGES, *_BY_PEOPLE}
    sound: dict[str, dict[str, Any]] = {}
    for done, slide_id in enumerate(ids):
        progress(done, len(ids))
        record, names, findings = _look_settled(folder, slide_id, present, report.is_running)
        named |= names
        report.n_files += max(0, len(names) - 1)  # the record itself has no hash
        _sort(report, folder, findings)
        if record is not None:
            sound[slide_id] = {k: record.get(k, {}) for k in ("identity", "made_with")}
    progress(len(ids), len(ids))
    if not report.is_running and is_held(folder.path):
        report.is_running = True
    _check_tables(report, folder, facts, present)
    judged = {n for n in present if n.startswith(_EVALUATION)}
    report.beside = [n for n in _BY_PEOPLE if n in present] + ([f"{_EVALUATION} ({len(judged)} files)"] if judged else [])
    spare = [n for n in present if n not in named | judged]
    report.unnamed = [n for n in spare if not (report.is_running and n.rpartition("/")[2].startswith("."))]
    if strangers := [i for i in sound if i not in facts["slides"]]:
        report.notes.append(f"{len(strangers)} slides are in the folder and not in the run's manifest: {_some(strangers)}")
    report.differences = rerun_differences(facts, sound, strict=strict)
    return report


def _slide_ids(present: Mapping[str, Any]) -> Iterator[str]:
    for name in present:
        parts = name.split("/")
        if len(parts) > 2 and parts[0] == "slides" and is_slide_id(parts[1]):
            yield parts[1]


def _look_settled(
    folder: AuditFolder, slide_id: str, present: Mapping[str, Any], is_running: bool
) -> tuple[dict[str, Any] | None, set[str], list[Finding]]:
    """Look at a slide's files; again when its record changed meanwhile."""
    found = _look(folder, slide_id, present)
    for _ in range(2 if is_running and found[2] else 0):
        again = _look(folder, slide_id, present)
        if again[0] == found[0]:
            return again
        found = again
    return found


def _look(
    folder: AuditFolder, slide_id: str, present: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, set[str], list[Finding]]:
    """Compare a slide's files with its record: the record, if it is sound; names it accounts for; what does not hold."""
    place = f"slides/{slide_id}"
    state = f"{place}/state.json"
    try:
        record = folder.sound_record(slide_id)
    except FileFaultError as error:
        if error.what == "missing" and state not in present:
            return None, set(), []  # not done yet; its files, if there are some, are listed as files without a record
        return None, {state}, [Finding(error.what, state, f"{error}; {_AGAIN}")]
    names, findings, added = {state}, [], set(record.get("added", ()))
    for name, digest in sorted(record["outputs"].items()):
        whole = f"{place}/{name}"
        names.add(whole)
        cure = f"made by a later command: `wsi-ips heatmap RUN --only {slide_id}` with its options makes it again" if name in added else _AGAIN
        try:
            if folder.sha256(whole) != digest:
                findings.append(Finding("changed", whole, f"its content is not what the record's hash says; {cure}"))
        except FileFaultError as error:
            findings.append(Finding(error.what, whole, f"{error}; {cure}"))
    return record, names, findings


def _sort(report: AuditReport, folder: AuditFolder, findings: list[Finding]) -> None:
    """While a run goes on, files younger than its start may be just being written."""
    began = folder.modified("run.json")
    young = bool(findings) and report.is_running and all(folder.modified(f.name) >= began for f in findings)
    (report.unsettled if young else report.findings).extend(findings)


def _check_tables(report: AuditReport, folder: AuditFolder, facts: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Lay the run's tables and pages out again from its records, and compare them byte for byte."""
    model = facts["model"]
    try:
        tasks = tuple(TaskSettings(**t) for t in model["model_settings"]["tasks"])
        tables = RunTables(folder, recorded_manifest(facts), tasks, model)
        rows = tables.rows()
        wanted = tables.tables(rows)
        pages = _pages(folder, facts, tasks, rows)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        why = f"{type(error).__name__}: {printed(error)}"
        report.findings.append(Finding("table", "run.json", f"the tables cannot be laid out from it and the records ({why})"))
        return
    report.statuses = dict(Counter(row["status"] for row in rows))
    if len(rows) != len(facts["slides"]):
        text = f"lists {len(rows)} rows and {len(facts['slides'])} slides; run the same classify command again"
        report.findings.append(Finding("table", "run.json", text))
    if report.is_running:
        report.notes.append("a run is going on: tables and pages are written at its end and were not compared")
        return
    if not pages:
        report.notes.append("the pages were not compared: a picture or a record that goes into them cannot be used")
    again = "run the same classify command again: it lays out the tables" + ("" if report.has_ended else ", which the last start did not reach")
    for name, data in (wanted | pages).items():
        what = "table" if name in wanted else "page"
        try:
            is_same = folder.read_bytes(name) == data
        except FileFaultError as error:
            report.findings.append(Finding(error.what, name, f"{error}; {again}"))
            continue
        report.n_tables += 1
        if not is_same and what == "page" and facts.get("wsi_ips_version") != wsi_ips.__version__:
            report.notes.append(f"{name} differs from what this version lays out; another version made it")
        elif not is_same:
            report.findings.append(Finding(what, name, f"is not what the records give; {again}"))
    report.notes += [f"{name} is left of an earlier start" for name in _PAGES if name in present and pages and name not in pages]


def _pages(
    folder: AuditFolder, facts: Mapping[str, Any], tasks: tuple[TaskSettings, ...], rows: list[dict[str, str]]
) -> dict[str, bytes]:
    """Lay the pages out, when every picture that goes into them can be read without harm."""
    records = {r["slide_id"]: folder.read_record(r["slide_id"]) for r in rows if r["status"] != "not_run"}
    n_bytes = 0
    for slide_id, record in records.items():
        name = f"{slide_id}.thumbnail.jpg"
        if record and name in record["outputs"]:
            try:
                n_bytes += len(folder.read_bytes(f"slides/{slide_id}/{name}", most=_MOST_THUMBNAIL))
            except FileFaultError:
                return {}
        if n_bytes > _MOST_THUMBNAILS or (record and not all(isinstance(t, dict) and is_inside(t.get("file")) for t in record.get("tiles", ()))):
            return {}
    return page_files(folder, rows, tasks, facts["model"], records)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

"""`audit`: what does not hold is named, what would differ is told, and a folder of somebody else can do no harm."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from wsi_ips.cli import app
from wsi_ips.config import ModelSettings, ReadSettings, result_hash
from wsi_ips.engine import rerun
from wsi_ips.engine.audit import AuditReport, audit_run
from wsi_ips.engine.auditreport import report_lines
from wsi_ips.engine.classify import ClassifyOptions
from wsi_ips.engine.provenance import describe_run, made_with
from wsi_ips.engine.rerun import Difference
from wsi_ips.engine.runfacts import check_mixture, run_facts
from wsi_ips.engine.runtables import RunTables, row_identity
from wsi_ips.errors import ConfigError
from wsi_ips.locking import sole_writer
from wsi_ips.manifest import Manifest, load_manifest
from wsi_ips.results import read_predictions
from wsi_ips.runfolder import RunFolder
from wsi_ips.slide.metadata import fingerprint, modified_ns
from wsi_ips.tasks import prediction_cells

Change = Callable[[Path], object]


def _info(tiny_bundle: Path, settings: ModelSettings) -> dict[str, Any]:
    from wsi_ips.model.bundle_config import bundle_hash, read_bundle_config

    return {"model_hash": bundle_hash(read_bundle_config(tiny_bundle)), "settings_hash": result_hash(settings, ReadSettings()),
            "model_settings": settings.model_dump(mode="json"), "learned_from": [], "takes_tiles": True, "engine": "torch",
            "device": "cpu", "batch": 8, "made_with": made_with(describe_run())}  # fmt: skip


@pytest.fixture(scope="module")
def info(tiny_bundle: Path, tiny_settings: ModelSettings) -> dict[str, Any]:
    return _info(tiny_bundle, tiny_settings)


def _record(r: Any, info: dict[str, Any], settings: ModelSettings, logit: float) -> dict[str, Any]:
    outputs = np.array([logit], np.float32)
    identity = row_identity(r, info) | {"file": fingerprint(r.slide_path), "mtime_ns": modified_ns(r.slide_path)}
    return {"status": "ok", "reason": "", "message": "", "identity": identity, "made_with": info["made_with"],
            "cells": prediction_cells(outputs, settings.tasks) | {"n_tiles": "9"}, "outputs_logits": outputs.tolist()}  # fmt: skip


def _write(out: Path, manifest: Manifest, bundle: Path, info: dict[str, Any], settings: ModelSettings, done: int) -> None:
    """Write a run as classify does, from records that are made up."""
    run = RunFolder(out)
    with run.start():
        facts = run_facts(manifest, str(bundle), ClassifyOptions(), info, {})
        run.write_json("run.json", facts)
        for i, r in enumerate(manifest.records[:done]):
            files = {f"{r.slide_id}.ledger.h5": b"ledger of " + r.slide_id.encode(), f"{r.slide_id}.top_tiles/01.png": b"px"}
            run.write_slide(r.slide_id, files, _record(r, info, settings, 0.5 - i))
        RunTables(run, manifest, settings.tasks, info).write()
        run.write_json("run.json", facts | {"ended": "2026-01-01T00:00:00Z"})


@pytest.fixture
def run(tmp_path: Path, tiny_bundle: Path, tiny_settings: ModelSettings, info: dict[str, Any]) -> Path:
    """A run of four rows: two slides of one patient that are labelled, one that was not reached, one excluded."""
    for name in "abc":
        (tmp_path / f"{name}.svs").write_bytes(name.encode() * 5000)
    (tmp_path / "m.csv").write_text(
        "slide_path,patient_id,grade,label,exclude\nb.svs,P1,=3,x,\na.svs,P1,2,y,\nc.svs,P2,2,x,\ngone.svs,P3,1,x,yes\n"
    )
    _write(tmp_path / "run", load_manifest(tmp_path / "m.csv"), tiny_bundle, info, tiny_settings, 2)
    return tmp_path / "run"


def _names(report: AuditReport) -> list[tuple[str, str]]:
    return [(f.what, f.name) for f in report.findings]


def _differences(report: AuditReport) -> list[Difference]:
    """All but the state of the code: somebody may be editing this checkout."""
    return [d for d in report.differences if not d.name.startswith("code")]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_run_as_it_was_written_holds(run: Path) -> None:
    """Every file has its hash, tables are laid out again byte for byte, and made again it would be the same."""
    report = audit_run(run)
    assert report.holds, report.findings
    assert (report.rows, report.statuses, report.n_files, report.n_tables) == (4, {"ok": 2, "not_run": 2}, 4, 3)
    assert (report.unnamed, report.notes) == ([], [])
    assert not _differences(report)
    assert report.has_ended
    assert not report.is_running
    assert "Everything holds." in report_lines(report)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda run: _flip(run / "slides/a/a.ledger.h5"), [("changed", "slides/a/a.ledger.h5")]),
        (lambda run: (run / "slides/a/a.top_tiles/01.png").unlink(), [("missing", "slides/a/a.top_tiles/01.png")]),
        (lambda run: (run / "slides/a/a.ledger.h5").write_bytes(b""), [("changed", "slides/a/a.ledger.h5")]),
        (lambda run: (run / "slides/b/state.json").write_text('{"schema'),
         [("record", "slides/b/state.json"), ("table", "predictions.csv"), ("table", "patients.csv"), ("page", "index.html")]),
        (lambda run: shutil.rmtree(run / "slides/b"),
         [("table", "predictions.csv"), ("table", "patients.csv"), ("page", "index.html")]),
        (lambda run: _flip(run / "predictions.csv"), [("table", "predictions.csv")]),
        (lambda run: (run / "patients.csv").unlink(), [("missing", "patients.csv")]),
        (lambda run: _flip(run / "index.html"), [("page", "index.html")]),
    ],
    ids=["flipped bit", "removed", "emptied", "torn record", "removed slide", "table", "removed table", "page"],
)  # fmt: skip
def test_fault_088_what_is_damaged_later_is_named_with_the_cure(run: Path, change: Change, found: list[tuple[str, str]]) -> None:
    """Each damage is found, nothing else is, and the message says how it is mended."""
    change(run)
    report = audit_run(run)
    assert _names(report) == found
    assert all("run the same classify command again" in f.text for f in report.findings)
    assert not report.holds


def test_files_that_no_record_names_are_listed_and_do_not_fail(run: Path) -> None:
    """Leftovers are told apart from what people put there; files that were added later are checked like others."""
    RunFolder(run).add_files("a", {"a.maps.json": b"{}", "a.layers/attention.png": b"px"})
    (run / "reviews.csv").write_text("time\n")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "index.html").write_text("how good")
    (run / "slides/a/.a.ledger.h5.99999999.tmp").write_bytes(b"half")
    (run / "slides/c").mkdir()
    (run / "slides/c/c.ledger.h5").write_bytes(b"no record")
    report = audit_run(run)
    assert report.holds
    assert sorted(report.unnamed) == ["slides/a/.a.ledger.h5.99999999.tmp", "slides/c/c.ledger.h5"]
    assert report.beside == ["reviews.csv", "evaluation/ (1 files)"]
    _flip(run / "slides/a/a.layers/attention.png")
    (finding,) = audit_run(run).findings
    assert finding.name == "slides/a/a.layers/attention.png"
    assert "heatmap RUN --only a" in finding.text


def test_fault_117_the_table_is_the_union_of_the_records(run: Path, tmp_path: Path) -> None:
    """One row a manifest row whatever became of it; a row too few or too many does not hold."""
    table = read_predictions(run)
    assert table["slide_id"].tolist() == ["b", "a", "c", "gone"]
    assert table["status"].tolist() == ["ok", "ok", "not_run", "not_run"]
    lines = (run / "predictions.csv").read_text().splitlines(keepends=True)
    for wrong in (lines[:-1], [*lines, lines[-1]]):
        (run / "predictions.csv").write_text("".join(wrong))
        assert _names(audit_run(run)) == [("table", "predictions.csv")]


def test_what_would_differ_is_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions, model, manifest rows and slides; the run itself still holds."""
    now = describe_run()
    monkeypatch.setattr(rerun, "describe_run", lambda: now | {"packages": now["packages"] | {"numpy": "1.0"}})
    text = (tmp_path / "m.csv").read_text().replace("c.svs,P2", "c.svs,P9").replace("gone.svs", "new.svs")
    (tmp_path / "m.csv").write_text(text)
    (tmp_path / "a.svs").write_bytes(b"other content")
    os.utime(tmp_path / "b.svs", (1, 1))
    report = audit_run(run)
    assert report.holds
    found = {(d.subject, d.name): d.now for d in _differences(report)}
    assert found[("software", "numpy")] == "1.0"
    assert found[("manifest", "rows changed")] == "1: c"
    assert (found[("manifest", "rows added")], found[("manifest", "rows gone")]) == ("1: new", "1: gone")
    assert found[("slide", "a")] == "13 bytes"
    assert "written to since" in found[("slide", "b")]
    assert len(found) == 6


def test_fault_067_a_flipped_bit_in_the_weights_is_told(run: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    """The bundle at its recorded place is compared whole, and settings that were changed since are told, too."""
    shutil.copytree(tiny_bundle, tmp_path / "model")
    facts = json.loads((run / "run.json").read_text())
    facts["model"]["path"] = str(tmp_path / "model")
    facts["options"]["read"]["max_bad_tiles"] = 0.5
    (run / "run.json").write_text(json.dumps(facts))
    _flip(tmp_path / "model" / "model.safetensors")
    found = {d.subject: d.now for d in audit_run(run).differences}
    assert "missing or damaged" in found["model"]
    assert found["settings"] != facts["model"]["settings_hash"]


def test_a_slide_known_by_all_bytes_is_read_whole_when_asked(run: Path, tmp_path: Path) -> None:
    """A byte between the samples is seen by --strict alone."""
    (tmp_path / "a.svs").write_bytes(os.urandom(2_000_000))
    state = run / "slides/a/state.json"
    record = json.loads(state.read_text())
    record["identity"] |= {"file": fingerprint(tmp_path / "a.svs", strict=True)}
    del record["identity"]["mtime_ns"]
    state.write_text(json.dumps(record))
    with (tmp_path / "a.svs").open("r+b") as f:
        f.seek(100_000)
        byte = f.read(1)
        f.seek(100_000)
        f.write(bytes([byte[0] ^ 1]))
    assert _differences(audit_run(run)) == []
    (difference,) = _differences(audit_run(run, strict=True))
    assert (difference.name, "other content" in difference.now) == ("a", True)


def test_masks_features_and_addresses(run: Path, tmp_path: Path) -> None:
    """Files beside the slide are compared, too; an address on the network is never asked for."""
    for name in ("mask.png", "a.h5"):
        (tmp_path / name).write_bytes(b"before")
    identity = {"file": fingerprint(tmp_path / "a.h5", strict=True), "slide": fingerprint(tmp_path / "a.svs"),
                "mask": fingerprint(tmp_path / "mask.png")}  # fmt: skip
    state, facts = run / "slides/a/state.json", json.loads((run / "run.json").read_text())
    record = json.loads(state.read_text())
    state.write_text(json.dumps(record | {"identity": record["identity"] | identity}))
    facts["slides"]["a"] |= {"mask_path": str(tmp_path / "mask.png"), "features_path": str(tmp_path / "a.h5")}
    facts["slides"]["b"]["path"] = "https://example.invalid/b.svs"
    (run / "run.json").write_text(json.dumps(facts))
    for name in ("mask.png", "a.h5"):
        (tmp_path / name).write_bytes(b"behind")
    found = [(d.subject, d.name) for d in _differences(audit_run(run, strict=True)) if d.subject != "mixture"]
    assert found == [("features", "a"), ("mask", "a"), ("slide", "1 files")]


def test_an_audit_writes_nothing_and_takes_no_lock(run: Path, tmp_path: Path) -> None:
    """It works in a folder that can only be read, and beside a run, which it tells."""
    def look() -> dict[str, tuple[int, int]]:
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in [run, *run.rglob("*")]}

    places = [run, *(p for p in run.rglob("*") if p.is_dir())]
    for place in places:
        place.chmod(0o555)
    before = look()
    assert audit_run(run).holds
    assert look() == before
    for place in places:
        place.chmod(0o755)
    with sole_writer(run):
        _flip(run / "predictions.csv")
        _flip(run / "slides/a/a.ledger.h5")
        report = audit_run(run)
    assert report.is_running
    assert report.holds
    assert [f.name for f in report.unsettled] == ["slides/a/a.ledger.h5"]
    assert any("a run is going on" in line for line in report_lines(report))


def test_a_hostile_folder_leads_nowhere(run: Path, tmp_path: Path) -> None:
    """Names that leave the folder, links, pipes, endless records and controls of a terminal: findings, no more."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"ledger of a")
    record = json.loads((run / "slides/a/state.json").read_text())

    def with_outputs(outputs: dict[str, str]) -> list[tuple[str, str]]:
        (run / "slides/a/state.json").write_text(json.dumps(record | {"outputs": outputs}))
        report = audit_run(run)
        assert all(c.isprintable() for line in report_lines(report) for c in line)
        return [f for f in _names(report) if f[1].startswith("slides/a")]

    digest = "0" * 64
    state = ("record", "slides/a/state.json")
    for name in ("../../../secret", str(secret), "x/../../b/state.json", "a\\b", ""):
        assert with_outputs({name: digest}) == [state]
    assert with_outputs({"\x1b[2J": digest}) == [("missing", "slides/a/\x1b[2J")]
    (run / "slides/a/a.ledger.h5").unlink()
    (run / "slides/a/a.ledger.h5").symlink_to(secret)
    assert with_outputs({"a.ledger.h5": record["outputs"]["a.ledger.h5"]}) == [("link", "slides/a/a.ledger.h5")]
    (run / "slides/a/out").symlink_to(tmp_path)
    assert with_outputs({"out/secret": digest}) == [("link", "slides/a/out/secret")]
    os.mkfifo(run / "slides/a/pipe")
    assert with_outputs({"pipe": digest}) == [("unreadable", "slides/a/pipe")]
    for text in ('{"a":' * 100_000, "[1]", "\0", '{"schema_version": 1, "slide_id": "a"}'):
        (run / "slides/a/state.json").write_text(text)
        assert state in _names(audit_run(run))
    with (run / "slides/a/state.json").open("wb") as f:
        f.truncate(1 << 40)
    assert ("unreadable", "slides/a/state.json") in _names(audit_run(run))
    shutil.rmtree(run / "slides/a")
    (run / "slides/a").symlink_to(tmp_path)
    assert not audit_run(run).holds


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 1, "slides": {"../x": {}}, "model": {}}', '{"schema_version": 99}'])
def test_what_is_no_run_is_refused(tmp_path: Path, text: str) -> None:
    """Exit status 2 with a sentence, also for a newer version's run."""
    with pytest.raises(ConfigError, match="not a run folder"):
        audit_run(tmp_path)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"not a run folder|not that of classify|no slide id|made by a newer"):
        audit_run(tmp_path)


def test_the_command_prints_and_exits_by_what_it_found(run: Path, tmp_path: Path) -> None:
    """0 and 1; --json holds everything and lies outside the run."""
    runner = CliRunner()
    done = runner.invoke(app, ["audit", str(run), "--json", str(tmp_path / "audit.json")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "audit.json").read_text())["holds"] is True
    _flip(run / "slides/b/b.ledger.h5")
    done = runner.invoke(app, ["audit", str(run)])
    assert done.exit_code == 1
    assert "slides/b/b.ledger.h5" in done.output
    refused = runner.invoke(app, ["audit", str(run), "--json", str(run / "slides" / "audit.json")])
    assert isinstance(refused.exception, ConfigError)
    assert not (run / "slides" / "audit.json").exists()


def test_fault_115_slides_of_other_versions_are_not_mixed_unless_told(
    run: Path, tmp_path: Path, info: dict[str, Any]
) -> None:
    """A start by another torch is refused with the cure; told to, it goes on and says so; another commit is only said."""
    todo = load_manifest(tmp_path / "m.csv").records
    assert check_mixture(RunFolder(run), todo, info, is_allowed=False) == []
    other = info | {"made_with": info["made_with"] | {"torch": "9.9"}}
    with pytest.raises(ConfigError, match=r"2 finished slides were made with torch .*, now it is 9.9.*--allow-mixed"):
        check_mixture(RunFolder(run), todo, other, is_allowed=False)
    (said,) = check_mixture(RunFolder(run), todo, other, is_allowed=True)
    assert "torch" in said
    moved = info | {"made_with": info["made_with"] | {"code": "0123456789ab"}}
    assert len(check_mixture(RunFolder(run), todo, moved, is_allowed=False)) == 1
    other_model = other | {"model_hash": "f" * 64}  # whose slides are all done again
    assert check_mixture(RunFolder(run), todo, other_model, is_allowed=False) == []
    record = run / "slides/a/state.json"
    found = json.loads(record.read_text())
    found["made_with"]["torch"] = "1.0"
    record.write_text(json.dumps(found))
    assert [(d.name, d.then) for d in audit_run(run).differences if d.subject == "mixture"] == [("torch of 1 slides", "1.0")]

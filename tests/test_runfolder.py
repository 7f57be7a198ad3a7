"""The run folder: whole files or none, and finished means that every hash still holds."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from wsi_ips import locking
from wsi_ips import runfolder as run_module
from wsi_ips.engine.classify import RunSummary
from wsi_ips.errors import ConfigError, StoppedError
from wsi_ips.results import SCHEMA_VERSION
from wsi_ips.runfolder import RunFolder
from wsi_ips.stopping import write_whole
from wsi_ips.tables import table_bytes

IDENTITY = {"model_hash": "m", "settings_hash": "s", "row": "r", "file": {"size": 3}}


def _written(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.write_slide("a", {"a.ledger.h5": b"numbers", "a.top_tiles/01.png": b"picture"},
                    {"status": "ok", "reason": "", "message": "", "cells": {}, "identity": IDENTITY})  # fmt: skip
    return run


def test_a_finished_slide_is_recognised(tmp_path: Path) -> None:
    """The same inputs and settings, and outputs that still hold their hashes, need not be done again."""
    assert _written(tmp_path).is_finished("a", IDENTITY)


@pytest.mark.parametrize("key", sorted(IDENTITY))
def test_another_model_setting_row_or_file_is_done_again(tmp_path: Path, key: str) -> None:
    """A change of anything the result depends on makes it stale."""
    assert not _written(tmp_path).is_finished("a", IDENTITY | {key: "other"})


def test_files_are_added_to_a_finished_slide_and_the_others_stay(tmp_path: Path) -> None:
    """What is added counts as output from then on; the record, the other files and their hashes stay as they were."""
    run = _written(tmp_path)
    before = run.read_record("a")
    run.add_files("a", {"a.fine.h5": b"finer", "a.top_tiles/01.cam.png": b"map"}, {"refined": True})
    after = run.read_record("a")
    assert before is not None
    assert after is not None
    assert after["refined"] is True
    assert {k: v for k, v in after["outputs"].items() if k in before["outputs"]} == before["outputs"]
    assert (run.slide_folder("a") / "a.ledger.h5").read_bytes() == b"numbers"
    assert run.is_finished("a", IDENTITY)
    run.add_files("a", {"a.fine.h5": b"finest"}, drop=["a.fine.h5", "a.top_tiles/01.cam.png", "not_ours.txt"])
    assert (run.slide_folder("a") / "a.fine.h5").read_bytes() == b"finest"
    assert not (run.slide_folder("a") / "a.top_tiles" / "01.cam.png").exists()
    assert run.is_finished("a", IDENTITY)


def test_files_are_added_to_nothing_and_nowhere(tmp_path: Path) -> None:
    """A slide without a record, and a place outside its folder, are refused."""
    run = _written(tmp_path)
    with pytest.raises(ConfigError, match=r"b: has no record.*classify it first"):
        run.add_files("b", {"x": b""})
    with pytest.raises(ConfigError, match="outside the slide's folder"):
        run.add_files("a", {"../x": b""})


@pytest.mark.parametrize("damage", ["change", "remove", "record"])
def test_fault_077_a_damaged_output_is_done_again(tmp_path: Path, damage: str) -> None:
    """A file that exists is not believed: its hash is."""
    run = _written(tmp_path)
    folder = run.slide_folder("a")
    if damage == "change":
        (folder / "a.ledger.h5").write_bytes(b"numbert")
    elif damage == "remove":
        (folder / "a.top_tiles" / "01.png").unlink()
    else:
        (folder / "state.json").write_text('{"status": "ok"')
    assert not run.is_finished("a", IDENTITY)


@pytest.mark.parametrize("slide_id", ["../a", "/a", "..", "a/../../b", "a\nb", ""])
def test_fault_048_an_id_never_leads_out_of_the_folder(tmp_path: Path, slide_id: str) -> None:
    """Also where it does not come from a manifest: nothing is read or written elsewhere."""
    run = RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError, match="cannot name a slide's folder"):
        run.write_slide(slide_id, {"x": b""}, {"status": "ok", "identity": IDENTITY})
    assert not list(tmp_path.rglob("*"))
    (tmp_path / "run" / "slides").mkdir(parents=True)
    (tmp_path / "state.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION}))
    assert run.read_record("../..") is None


def test_fault_062_a_slide_without_tissue_is_a_result(tmp_path: Path) -> None:
    """It is not tried again, not even with --retry-failed, and does not touch the exit status."""
    run = RunFolder(tmp_path)
    record = {"status": "no_tissue", "reason": "E_NO_TISSUE", "message": "", "cells": {}, "identity": IDENTITY}
    run.write_slide("a", {}, record)
    assert run.is_finished("a", IDENTITY, retry_failed=True)
    assert not RunSummary(tmp_path, {"no_tissue": 3, "ok": 1}, 1.0, 0, 0).has_failures


def test_failed_slides_are_kept_unless_asked(tmp_path: Path) -> None:
    """A failure is a result; --retry-failed does it again."""
    run = RunFolder(tmp_path)
    run.write_slide("a", {}, {"status": "failed", "reason": "E_TILE", "message": "", "cells": {}, "identity": IDENTITY})
    assert run.is_finished("a", IDENTITY)
    assert not run.is_finished("a", IDENTITY, retry_failed=True)


def test_a_death_between_any_two_file_operations_never_leaves_a_false_finish(tmp_path: Path, monkeypatch: Any) -> None:
    """Killed at each rename in turn, the slide is either finished and whole or not finished."""
    real, finished = Path.replace, 0
    for crash_at in range(4):
        folder = tmp_path / str(crash_at)
        calls = iter(range(100))

        def replace(self: Path, target: Any, calls: Any = calls, crash_at: int = crash_at) -> Path:
            if next(calls) == crash_at:
                raise KeyboardInterrupt
            return real(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        try:
            _written(folder)
        except KeyboardInterrupt:
            pass
        else:
            finished += 1
        monkeypatch.setattr(Path, "replace", real)
        run = RunFolder(folder)
        if run.is_finished("a", IDENTITY):
            assert (run.slide_folder("a") / "a.ledger.h5").read_bytes() == b"numbers"
            assert crash_at == 3, "finished although it died before its record"
    assert finished == 1  # two files and a record: the fourth rename never comes


def test_stale_files_of_an_earlier_result_disappear(tmp_path: Path) -> None:
    """A slide's folder holds this result's files and no others."""
    run = _written(tmp_path)
    run.write_slide(
        "a", {"a.ledger.h5": b"new"}, {"status": "ok", "reason": "", "message": "", "cells": {}, "identity": IDENTITY}
    )
    files = {p.relative_to(run.slide_folder("a")).as_posix() for p in run.slide_folder("a").rglob("*") if p.is_file()}
    assert files == {"a.ledger.h5", "state.json"}


def test_files_that_are_not_ours_are_never_deleted(tmp_path: Path) -> None:
    """Slides or notes that lie in a slide's folder stay; a folder of something else is refused as output."""
    mine = tmp_path / "slides" / "a" / "annotations.geojson"
    mine.parent.mkdir(parents=True)
    mine.write_text("weeks of work")
    run = _written(tmp_path)
    run.write_slide("a", {}, {"status": "failed", "reason": "E_TILE", "message": "", "cells": {}, "identity": IDENTITY})
    assert mine.read_text() == "weeks of work"
    assert not (run.slide_folder("a") / "a.ledger.h5").exists()
    (tmp_path / "m.csv").write_text("slide_path")
    with pytest.raises(ConfigError, match=r"holds other files \(m.csv\)"):
        with run.start():
            pass


def test_fault_074_a_full_disk_is_said_and_leaves_nothing_half_made(tmp_path: Path, monkeypatch: Any) -> None:
    """ENOSPC becomes a StoppedError that says so; the old content stays."""
    path = tmp_path / "predictions.csv"
    write_whole(path, b"old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_module.os, "fsync", full)
    with pytest.raises(StoppedError, match=r"predictions.csv: cannot be written: the disk is full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["predictions.csv"]


def test_fault_086_an_output_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    """Before any work, with what to do."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="--out"):
        with RunFolder(tmp_path / "file" / "run").start():
            pass


def test_a_newer_schema_is_refused_with_the_version(tmp_path: Path) -> None:
    """A run made by a later version is not overwritten."""
    (tmp_path / "run.json").write_text('{"schema_version": 99}')
    with pytest.raises(ConfigError, match="schema_version 99"):
        with RunFolder(tmp_path).start():
            pass


def test_tables_keep_text_as_text() -> None:
    """Commas, quotes and line ends in a message survive; missing cells are empty."""
    assert table_bytes(["a", "b"], [{"a": 'x,"y"\nz'}]) == b'a,b\n"x,""y""\nz",\n'


def test_files_added_later_neither_prove_a_label_nor_are_lost(tmp_path: Path) -> None:
    """A damaged added file costs no second pass; a result that is only completed keeps what was added and is whole."""
    with RunFolder(tmp_path / "run").start() as run:
        run.write_slide("s", {"s.ledger.h5": b"ledger"}, {"identity": {"a": 1}, "status": "ok"})
        run.add_files("s", {"s.asap.xml": b"<x/>", "s.fine.h5": b"fine", "s.ledger.h5": b"ledger"})
        folder = run.slide_folder("s")
        (folder / "s.asap.xml").write_bytes(b"<half")
        assert run.is_finished("s", {"a": 1})
        run.write_slide("s", {"s.ledger.h5": b"more"}, {"identity": {"a": 1, "evidence": "bag"}, "status": "ok"},
                        keep=["s.asap.xml", "s.fine.h5"])  # fmt: skip
        assert not (folder / "s.asap.xml").exists()  # it was not whole
        assert (folder / "s.fine.h5").read_bytes() == b"fine"
        assert set(run.read_record("s")["outputs"]) == {"s.ledger.h5", "s.fine.h5"}
        (folder / "s.ledger.h5").write_bytes(b"half")
        assert not run.is_finished("s", {"a": 1, "evidence": "bag"})
        run.write_slide("s", {"s.ledger.h5": b"other"}, {"identity": {"a": 2}, "status": "ok"})
        assert not (folder / "s.fine.h5").exists()  # of another result


def test_fault_074_a_disk_that_is_full_when_the_folder_is_taken_stops_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    """The lock cannot be written: exit status 3 with the cure, and nothing of it stays behind."""

    def full(path: Path) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(locking, "open_new", full)
    with pytest.raises(StoppedError, match=r"the disk is full.*run the same command again"), RunFolder(tmp_path / "o").start():
        pass
    assert os.listdir(tmp_path / "o") == ["slides"]


def test_fault_087_a_folder_that_vanishes_is_not_made_again(tmp_path: Path) -> None:
    """Behind a mount that is gone lies an empty folder of another disk: nothing is written there, the run stops and says so."""
    run, out = RunFolder(tmp_path / "run"), tmp_path / "run"
    with run.start():
        run.write_slide("s", {"s.txt": b"x"}, {"identity": IDENTITY, "status": "ok"})
        out.rename(tmp_path / "elsewhere")
        for is_mount_point in (False, True):
            if is_mount_point:
                out.mkdir()
            for write in (
                lambda: run.write_slide("t", {"t.txt": b"x"}, {"identity": IDENTITY, "status": "ok"}),
                lambda: run.add_files("s", {"more.txt": b"x"}),
                lambda: run.write_table("predictions.csv", ["a"], []),
                lambda: run.write_json("run.json", {}),
                lambda: run.log("slide"),
            ):
                with pytest.raises(StoppedError, match=r"the folder is gone\. Finished slides are kept"):
                    write()
            assert not out.exists() or not list(out.iterdir())
    assert (tmp_path / "elsewhere" / "slides" / "s" / "state.json").exists()

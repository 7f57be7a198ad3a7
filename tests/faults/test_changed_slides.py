"""A slide that is written over while it is read: no result, nothing kept of it, done again by the next start."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsi_ips.engine import worker
from wsi_ips.engine.worker import SlideWorker
from wsi_ips.runfolder import RunFolder
from wsi_ips.slide.metadata import fingerprint


@pytest.fixture
def slides(cohort: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A slide to do, and another one."""
    a, b = sorted((cohort.parent / "slides").glob("*.tif"))[:2]
    return Path(shutil.copy(a, tmp_path / "a.tif")), b


@pytest.fixture
def made(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlideWorker:
    monkeypatch.setattr(worker, "make_deterministic", lambda threads: None)  # which would last
    RunFolder(tmp_path / "run").slide_folder("a").parent.mkdir(parents=True)
    machine, cache = {"threads": 1, "device": "cpu"}, {"place": str(tmp_path / "cache"), "strict": False}
    return SlideWorker(str(tiny_bundle), str(tmp_path / "run"), {}, None, False, {"name": "torch", "or_torch": False}, machine, cache)


def _payload(path: Path) -> dict[str, Any]:
    return {"slide_id": "a", "patient_id": "p", "slide_path": str(path), "features_path": None, "mpp": None, "mask_path": None,
            "identity": {"row": "a"}, "retry_failed": False, "formats": []}  # fmt: skip


def _when(name: str, change: Callable[[], object], monkeypatch: pytest.MonkeyPatch, *, before: bool) -> None:
    """Let something happen once, just before or after the worker calls one of its steps."""
    real, todo = getattr(worker, name), [change]

    def watched(*arguments: Any, **more: Any) -> Any:
        if before and todo:
            todo.pop()()
        result = real(*arguments, **more)
        if not before and todo:
            todo.pop()()
        return result

    monkeypatch.setattr(worker, name, watched)


@pytest.mark.parametrize(("step", "before"), [("open_slide", True), ("label_slide", True), ("slide_files", True)])
def test_fault_026_a_slide_replaced_while_it_is_read_has_no_result(
    made: SlideWorker, slides: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, before: bool
) -> None:
    """After it was hashed, before its tiles are read, before it is drawn: `failed E_CHANGED`, no file, nothing under a
    wrong name in the cache; the same command does it again, as what it is now.
    """
    path, other = slides
    _when(step, lambda: shutil.copy(other, path), monkeypatch, before=before)
    record = made.work(_payload(path), lambda stage, done, total: None)
    assert (record["status"], record["reason"]) == ("failed", "E_CHANGED")
    assert "a.tif: the file was changed while it was read" in record["message"]
    assert (record["identity"]["file"], record["outputs_logits"]) == (None, [])
    assert [p.name for p in (tmp_path / "run" / "slides" / "a").iterdir()] == ["state.json"]
    again = made.work(_payload(path), lambda stage, done, total: None)
    assert (again["status"], again["is_cached"]) == ("ok", False)
    assert again["identity"]["file"] == fingerprint(other)


def test_fault_026_a_slide_changed_before_its_turn_is_simply_read(made: SlideWorker, slides: tuple[Path, Path]) -> None:
    """Only a change under the reader's hands counts."""
    path, other = slides
    assert made.work(_payload(path), lambda stage, done, total: None)["status"] == "ok"
    shutil.copy(other, path)
    assert made.work(_payload(path), lambda stage, done, total: None)["status"] == "ok"

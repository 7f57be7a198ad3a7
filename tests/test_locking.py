"""One writer a folder: who holds it, when a holder counts as gone, and what a holder that slept is told."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from wsi_ips import locking
from wsi_ips.errors import ConfigError, StoppedError
from wsi_ips.locking import LEASE_SECONDS, sole_writer
from wsi_ips.runfolder import RunFolder

ELSEWHERE = {"host": "another-machine", "pid": 1, "started": 1.0}


def _lock(folder: Path, content: str, silent_seconds: float = 0.0) -> Path:
    lock = folder / ".lock"
    lock.write_text(content)
    then = time.time() - silent_seconds
    os.utime(lock, (then, then))
    return lock


def test_fault_081_a_second_run_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    """By this very process, or by another machine that gave a sign of life just now."""
    with sole_writer(tmp_path), pytest.raises(ConfigError, match=f"pid {os.getpid()}"), sole_writer(tmp_path):
        pass
    lock = _lock(tmp_path, json.dumps(ELSEWHERE), LEASE_SECONDS / 2)
    with pytest.raises(ConfigError, match="another-machine"), sole_writer(tmp_path):
        pass
    assert json.loads(lock.read_text()) == ELSEWHERE  # untouched
    assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.parametrize(
    "content",
    [json.dumps(ELSEWHERE), json.dumps({"host": os.uname().nodename, "pid": 999_999_999, "started": 1.0}), "", "[1, 2]", "null",
     '{"pid": 1e400}', '{"pid": {}}', "[" * 100_000, "x" * 10_000_000],
    ids=["another machine", "a dead process", "empty", "a list", "null", "infinite", "a mapping", "nested", "long"],
)  # fmt: skip
def test_fault_080_a_stale_lock_is_taken_over(tmp_path: Path, content: str) -> None:
    """Of a machine that was silent for longer than the lease, of a dead process, or nonsense; the lock is gone afterwards."""
    _lock(tmp_path, content, 2 * LEASE_SECONDS)
    with sole_writer(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_fault_116_the_clock_of_this_machine_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Age is the difference between two files of one file system: a machine an hour ahead does not take a live lock."""
    _lock(tmp_path, json.dumps(ELSEWHERE))
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(ConfigError, match="another-machine"), sole_writer(tmp_path):
        pass


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is touched while it works."""
    monkeypatch.setattr(locking, "_BEAT_SECONDS", 0.01)
    with sole_writer(tmp_path):
        lock = tmp_path / ".lock"
        os.utime(lock, (0, 0))
        _until(lambda: lock.stat().st_mtime > 1.0)


def test_a_holder_that_slept_through_its_lease_stops_before_it_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspended machine wakes up: the run says so, and leaves the new holder's lock alone."""
    monkeypatch.setattr(locking, "_BEAT_SECONDS", 0.01)
    with RunFolder(tmp_path / "run").start() as run:
        run.log("start")
        _lock(tmp_path / "run", json.dumps(ELSEWHERE))

        def is_told() -> bool:
            try:
                run.log("slide")
            except StoppedError as error:
                return "took this folder over" in str(error)
            return False

        _until(is_told)
    assert json.loads((tmp_path / "run" / ".lock").read_text()) == ELSEWHERE


def test_a_lock_taken_in_between_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs find one dead lock; the slower removes it when the faster has already put its own there."""
    lock = _lock(tmp_path, json.dumps(ELSEWHERE), 2 * LEASE_SECONDS)
    faster = json.dumps({"host": os.uname().nodename, **_alive()})
    real = locking.is_alive

    def late(holder: Any, silent_seconds: float) -> bool:
        found = real(holder, silent_seconds)
        if holder == ELSEWHERE:
            lock.write_text(faster)
        return found

    monkeypatch.setattr(locking, "is_alive", late)
    with pytest.raises(ConfigError, match=f"pid {os.getpid()}"), sole_writer(tmp_path):
        pass
    assert lock.read_text() == faster
    assert os.listdir(tmp_path) == [".lock"]


def test_fault_082_a_file_system_without_links_holds_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is made exclusively there, and neither needs the kernel's file locks."""

    def no_links(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    with sole_writer(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        with pytest.raises(ConfigError, match="another run"), sole_writer(tmp_path):
            pass
    assert os.listdir(tmp_path) == []


def _alive() -> dict[str, Any]:
    mine = locking.this_process()
    return {"pid": mine["pid"], "started": mine["started"]}


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)

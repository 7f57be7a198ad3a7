"""The folder of a training: one training's alone, and one process's at a time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsi_ips.errors import ConfigError, ModelError
from wsi_ips.training.workfolder import patient_hash, work_folder


def test_another_training_is_refused_and_the_same_goes_on(tmp_path: Path) -> None:
    """Identities decide, whatever lies there: a finished one is not written over either."""
    with work_folder(tmp_path / "m.training", ["a", "b"], is_leader=True):
        pass
    with work_folder(tmp_path / "m.training", ["a", "b"], is_leader=True):
        pass
    with pytest.raises(ModelError, match="holds another training"), work_folder(tmp_path / "m.training", ["a"], is_leader=True):
        pass


def test_a_process_that_is_at_work_is_not_disturbed(tmp_path: Path) -> None:
    """A second one is refused with the first one's number; once that is dead its folder is free."""
    folder = tmp_path / "m.training"
    code = ("import sys, time\nfrom pathlib import Path\nfrom wsi_ips.training.workfolder import work_folder\n"
            "with work_folder(Path(sys.argv[1]), ['a'], is_leader=True):\n    print('in', flush=True)\n    time.sleep(60)\n")  # fmt: skip
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"in\n"
    try:
        with pytest.raises(ConfigError, match=rf"another run holds this folder.*pid {other.pid}"):
            with work_folder(folder, ["a"], is_leader=True):
                pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    started = time.monotonic()
    with work_folder(folder, ["a"], is_leader=True):
        assert time.monotonic() - started < 10.0


def test_of_several_processes_the_leader_holds_it(tmp_path: Path) -> None:
    """The others neither write nor wait."""
    with work_folder(tmp_path / "m.training", ["a"], is_leader=False):
        assert not (tmp_path / "m.training").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """With the cure; a file stands in the way."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="give another --out"), work_folder(tmp_path / "file" / "m", ["a"], is_leader=True):
        pass


def test_a_patient_is_known_again_and_not_named() -> None:
    """The same text is the same hash, another is not, and no part of the name is in it."""
    assert patient_hash("P-17") == patient_hash("P-17") != patient_hash("P-18")
    assert "17" not in {patient_hash("P-17")[i : i + 4] for i in range(13)}
    assert len(patient_hash("P-17")) == 16

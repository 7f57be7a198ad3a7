"""A run that is told to end, or killed, in the middle of a slide: what it says, what it leaves, and how it goes on."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

TIMED = {"state.json", "run.json", "log.jsonl", "timings.csv"}

# Workers import the main file, so what it changes holds in them, too: chunks take half a second, and are put by one by one.
SLOW_COMMAND = """
import time
from wsi_ips.cli import main
from wsi_ips.engine import entrywriter, sources

entrywriter._PART_SECONDS = {part_seconds}
real = sources.PixelSource._embedded

def slow(self, chunk, colours):
    time.sleep(0.4)
    return real(self, chunk, colours)

sources.PixelSource._embedded = slow

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def manifest(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One slide."""
    folder = tmp_path_factory.mktemp("one")
    shutil.copy(min((cohort.parent / "slides").glob("*.tif")), folder / "a.tif")
    (folder / "m.csv").write_text("slide_path\na.tif\n")
    return folder / "m.csv"


@pytest.fixture(scope="module")
def undisturbed(manifest: Path, tiny_bundle: Path) -> dict[str, str]:
    """Hashes of what an undisturbed run leaves."""
    out = manifest.parent / "undisturbed"
    words = ["classify", str(manifest), "--model", str(tiny_bundle), "--out", str(out), "--workers", "1", "--cache", "off"]
    subprocess.run([sys.executable, "-m", "wsi_ips.cli", *words], check=True, capture_output=True, timeout=240)
    return _hashes(out)


def _hashes(run: Path) -> dict[str, str]:
    return {p.relative_to(run).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(run.rglob("*")) if p.is_file() and p.name not in TIMED}  # fmt: skip


def _until(holds: Callable[[], object], leader: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert leader.poll() is None, "it ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "place"),
    [(signal.SIGINT, 130, "off"), (signal.SIGTERM, 143, "cache"), (signal.SIGKILL, -9, "off"), (signal.SIGKILL, -9, "cache")],
    ids=["Ctrl-C", "SIGTERM", "SIGKILL", "SIGKILL with a cache"],
)
def test_fault_092_and_094_and_095_it_goes_on_in_the_middle_of_a_slide(
    manifest: Path, tiny_bundle: Path, undisturbed: dict[str, str], tmp_path: Path, number: int, status: int, place: str
) -> None:
    """A signal puts the slide by and writes the table within seconds; a kill loses what was not put by; then: the same bytes."""
    out, is_kill = tmp_path / "run", number == signal.SIGKILL
    parts = out / ".parts" if place == "off" else tmp_path / "cache"
    words = ["classify", str(manifest), "--model", str(tiny_bundle), "--out", str(out), "--workers", "1",
             "--cache", "off" if place == "off" else str(parts)]  # fmt: skip
    script = tmp_path / "slow.py"
    script.write_text(SLOW_COMMAND.format(part_seconds=0.0 if is_kill else 1e9))  # a signal puts by what was not yet
    leader = subprocess.Popen([sys.executable, str(script), *words], stderr=subprocess.PIPE, text=True)
    if is_kill:
        _until(lambda: len(list(parts.glob(".new-*/*.h5"))) >= 2, leader)
    else:
        _until(lambda: (out / "log.jsonl").exists(), leader)
        time.sleep(1.0)  # in the first chunks
    children = psutil.Process(leader.pid).children(recursive=True)
    asked = time.monotonic()
    leader.send_signal(number)
    _, said = leader.communicate(timeout=30)
    assert leader.returncode == status
    assert time.monotonic() - asked < 10.0
    psutil.wait_procs(children, timeout=5.0)
    assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]  # row 94
    if not is_kill:
        assert "the same command goes on" in said.splitlines()[-1]
        with (out / "predictions.csv").open(newline="") as f:
            assert [row["reason"] for row in csv.DictReader(f)] == ["E_NOT_REACHED"]
    left = list(parts.glob(".new-*/unfinished.json"))
    assert len(left) == 1
    n_put_by = sum(part["n"] for part in json.loads(left[0].read_text())["parts"])
    assert n_put_by > 0

    again = subprocess.run([sys.executable, "-m", "wsi_ips.cli", *words], capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    record = json.loads((out / "slides" / "a" / "state.json").read_text())
    assert record["n_encoded"] == int(record["cells"]["n_tiles"]) - n_put_by
    assert _hashes(out) == undisturbed
    assert not [name for name in os.listdir(out) if name.startswith(".")]

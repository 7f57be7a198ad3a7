"""What is printed never ends a run, whatever has become of the terminal, and commands no terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsi_ips.cli.output import printable_lines
from wsi_ips.engine.progress import Reporter

DEVFULL = Path("/dev/full")
TALK = (
    "import sys\n"
    "from wsi_ips.cli.output import forgive_streams\n"
    "from wsi_ips.engine.progress import Reporter\n"
    "forgive_streams()\n"
    "with Reporter('slides', 2) as r:\n"
    "    for i in range(2000): r.line('x' * 100); print('y' * 100)\n"
    "print('name \\udc80')\n"
    "open(sys.argv[1], 'w').write('done')\n"
)


@pytest.mark.skipif(not DEVFULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("how", ["closed", "full", "reader gone"])
def test_fault_097_output_that_goes_nowhere_is_never_fatal(tmp_path: Path, how: str) -> None:
    """Stdout and stderr closed, full, or with a reader that has left: the work is done and the exit status is 0."""
    command = [sys.executable, "-c", TALK, str(tmp_path / "mark")]
    if how == "closed":
        done = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command], check=False).returncode
    elif how == "full":
        with DEVFULL.open("w") as full:
            done = subprocess.run(command, stdout=full, stderr=full, check=False).returncode
    else:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for pipe in (running.stdout, running.stderr):
            assert pipe is not None
            pipe.close()
        done = running.wait()
    assert done == 0
    assert (tmp_path / "mark").read_text() == "done"


@pytest.mark.skipif(not DEVFULL.exists(), reason="no /dev/full here")
def test_fault_097_a_lost_table_is_said_where_somebody_reads(tmp_path: Path) -> None:
    """Stdout on a full disk: one line on stderr, no traceback."""
    with DEVFULL.open("w") as full:
        done = subprocess.run([sys.executable, "-m", "wsi_ips.cli", "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    assert "output is lost" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_fault_097_progress_without_a_terminal_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a library, too: no stderr at all, a closed one, one that fails."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    closed = io.StringIO()
    closed.close()
    for stream in (None, Broken()):
        monkeypatch.setattr(sys, "stderr", stream)
        with Reporter("slides", 1) as reporter:
            reporter.tiles("a", 1, 2)
            reporter.slide("a", "ok")
    with Reporter("slides", 1) as reporter:
        monkeypatch.setattr(sys, "stderr", closed)
        reporter.slide("a", "ok")


def test_what_is_printed_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences, bells and overrides of the direction, from names of files or cells of tables, become marks."""
    with Reporter("slides", 1) as reporter:
        reporter.slide("a\x1b[2J", "failed: \u202egnp.\x07 \x9b31m")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not any(c in said for c in "\x1b\u202e\x07\x9b")
    assert printable_lines("one\ntwo\x1b]0;x\x07") == "one\ntwo?]0;x?"
    assert os.linesep not in printable_lines("x")

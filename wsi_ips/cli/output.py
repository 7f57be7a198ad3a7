"""Stdout and stderr of the command line, which may be closed, full, or gone with their terminal: never a reason to end.

Results are in files; what is printed says how it goes. A lost table (`plan`, `inspect`) is said on stderr, where one is left.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO, cast

from wsi_ips.errors import printable

__all__ = ["forgive_streams", "printable_lines"]


def printable_lines(text: str) -> str:
    """Make a message of several lines safe for a terminal: names of files and cells of tables may hold its commands."""
    return "\n".join(printable(line) for line in text.split("\n"))


def forgive_streams() -> None:
    """Let nothing that is printed from here on end the program."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
        nowhere = io.TextIOWrapper(io.FileIO(os.devnull, "w")) if stream is None else stream
        setattr(sys, name, cast(TextIO, _Forgiving(nowhere)))


class _Forgiving:
    """A stream that goes silent where writing fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or lose it."""
        with self._silenced():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or lose it."""
        with self._silenced():
            self._stream.flush()

    @contextlib.contextmanager
    def _silenced(self) -> Any:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it was closed in here
            # what waits in the buffer goes to nowhere when the program ends, without a second complaint
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            is_told = isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EIO) and sys.stderr is not self
            if is_told:  # a reader that has seen enough, and a terminal that is gone, need no word
                print(f"wsi-ips: output is lost: {error}", file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

"""A worker whose libraries have known faults; started in a child process by the executor's tests."""

from __future__ import annotations

import sys
from types import SimpleNamespace

sys.modules["openslide"] = SimpleNamespace(__library_version__="4.0.0")  # type: ignore[assignment]


def make(**setup: object) -> None:
    raise AssertionError("it is refused before")

"""Limits of the machine that a run would meet in its middle are looked at before it starts."""

from __future__ import annotations

import pytest

from wsi_ips.engine.environment import allow_open_files
from wsi_ips.errors import ConfigError

resource = pytest.importorskip("resource")


@pytest.mark.parametrize(
    ("limits", "asked"),
    [((256, 65536), [(4096, 65536)]), ((256, 1000), [(1000, 1000)]), ((8192, 65536), []), ((256, -1), [(4096, -1)]), ((-1, -1), [])],
)  # fmt: skip
def test_fault_089_as_many_files_as_allowed(monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], asked: list[tuple[int, int]]) -> None:
    """The soft limit is raised to what a run may need; one that is higher stays."""
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: done.append(new))
    allow_open_files()
    assert done == asked


def test_fault_089_too_few_files_refuse_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first slide, with the cure."""
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (20, 64))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: None)
    with pytest.raises(ConfigError, match=r"may open 64 files.*ulimit -n 1024"):
        allow_open_files()

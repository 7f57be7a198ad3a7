"""Slides that end the worker that reads them: two attempts over all runs, then they are left alone unless asked for.

Such a slide has no record of its own, for its worker is gone; the leader writes one. It holds the slide's stamps, so that
a file that was replaced is tried again; nothing of the file is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsi_ips.engine.executors import Outcome
from wsi_ips.runfolder import RunFolder
from wsi_ips.slide.stamps import stamps

__all__ = ["given_up", "record_death"]


def record_death(run: RunFolder, outcome: Outcome, identity: Mapping[str, Any], path: str | None) -> dict[str, Any]:
    """Write the record of a slide that ended its workers.

    Args:
        run: the run folder.
        outcome: what is known.
        identity: of the slide, without what only its worker would have read.
        path: of its file.
    """
    before = given_up(run, outcome.id, identity, path) or {}
    record = {
        "status": "failed", "reason": outcome.code, "message": f"{outcome.message}; --retry-failed tries it again", "cells": {},
        "identity": _identity(identity), "attempts": outcome.attempts + int(before.get("attempts", 0)), "ended_worker": _stamps(path),
    }  # fmt: skip
    run.write_slide(outcome.id, {}, record)
    return record


def given_up(run: RunFolder, slide_id: str, identity: Mapping[str, Any], path: str | None) -> dict[str, Any] | None:
    """Find the record of a slide that ended its workers in an earlier run, if it is the very same task and file."""
    record = run.read_record(slide_id)
    if record is None or "ended_worker" not in record or record.get("identity") != _identity(identity):
        return None
    return record if record["ended_worker"] == _stamps(path) else None


def _identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {**identity, "file": None}


def _stamps(path: str | None) -> list[list[int]]:
    return [list(stamp) for stamp in stamps(path or "")]

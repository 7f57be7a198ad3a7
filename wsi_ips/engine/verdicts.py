"""What is said of a slide in its record: status, reason, message, measured cells; and how much memory the worker took."""

from __future__ import annotations

import sys
from typing import Any

import psutil

from wsi_ips.engine.runtables import measured_cells
from wsi_ips.errors import ModelError, SlideError, UnreadableSlideError
from wsi_ips.results import SlidePrediction, SlideResult
from wsi_ips.slide.stamps import Stamps, refuse_changed

__all__ = ["changed", "peak_bytes", "record", "refused", "verdict"]


def verdict(p: SlidePrediction) -> tuple[Any, str, str]:
    """Status, reason and message of a slide that was labelled."""
    codes = ";".join(dict.fromkeys(n.code for n in p.notes))
    return (
        ("ok_with_warnings" if p.notes else "ok"),
        codes,
        " ".join(dict.fromkeys(n.message.rstrip(".") + "." for n in p.notes)),
    )


def refused(slide_id: str, error: SlideError | ModelError) -> SlideResult:
    """What becomes of a slide that cannot be labelled."""
    return SlideResult(slide_id, "failed", error.code, error.message if isinstance(error, SlideError) else str(error))


def changed(slide_id: str, path: str | None, before: Stamps) -> SlideResult | None:
    """What becomes of a slide whose files are not what they were: whatever was read of them is no result. None: they are."""
    try:
        refuse_changed(path, before)
    except UnreadableSlideError as error:
        return refused(slide_id, error)
    return None


def record(result: SlideResult) -> dict[str, Any]:
    """What `state.json` says of a result, beside how it was made."""
    p = result.prediction
    return {
        "status": result.status, "reason": result.reason, "message": result.message,
        "cells": measured_cells(p) if p else {}, "outputs_logits": p.outputs.tolist() if p else [],
    }  # fmt: skip


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

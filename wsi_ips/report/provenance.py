"""What every picture, map and page carries of where it comes from: all that is the same between equal runs.

No path, no time, no name of a person: those stand in the timed files of a run alone.
"""

from __future__ import annotations

import json
import math
from typing import Any

import wsi_ips
from wsi_ips.report.readout import RESEARCH_USE
from wsi_ips.results import SlidePrediction

__all__ = ["file_said", "provenance", "provenance_text"]


def provenance(p: SlidePrediction) -> dict[str, Any]:
    """Say what a result of a slide was made from and by, ready for JSON."""
    mpp = [p.mpp.x, p.mpp.y] if math.isfinite(p.mpp.x) else None
    about = {"made_by": f"wsi-ips {wsi_ips.__version__}", "slide_id": p.slide_id, "model_hash": p.model_hash,
             "settings_hash": p.settings_hash, "mpp": mpp, "mpp_source": p.mpp.source, "reader": p.reader}  # fmt: skip
    file = {k: p.file[k] for k in sorted(p.file)} if p.file else None  # one order, whether it comes from a ledger or not
    return about | ({"slide_file": file} if file else {}) | {"note": RESEARCH_USE}


def provenance_text(p: SlidePrediction) -> str:
    """Say the same in one line of ASCII: JSON that programs can read back from a picture's metadata."""
    return json.dumps(provenance(p), sort_keys=True)


def file_said(p: SlidePrediction | None) -> str:
    """Say for a person by which content a slide was known; "" where that was not recorded."""
    file = p.file if p else None
    return f"{file['size']:,} bytes, {file['sha256']} ({file['method']})" if file else ""

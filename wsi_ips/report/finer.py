"""What a slide's page says of finer maps and of stability, where `heatmap --refine` and `--stability` have made them."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from wsi_ips.refined import read_stability
from wsi_ips.report.stability import stability_sentences

__all__ = ["Finer", "read_finer"]


class Finer(NamedTuple):
    """Files are named relative to the slide's folder."""

    fine: str = ""  # picture of the refined attention
    within: str = ""  # strip of maps within the top tiles
    stability: tuple[str, ...] = ()  # sentences


def read_finer(slide_id: str, outputs: Container[str], folder: Path) -> Finer:
    """Find what has been made for a slide.

    Args:
        slide_id: its name.
        outputs: names of its files, from its record.
        folder: where they lie.
    """
    fine, within = f"{slide_id}.attention.fine.png", f"{slide_id}.top_tiles.cam.png"
    stable = f"{slide_id}.stability.json"
    has_said = stable in outputs and (folder / stable).exists()
    said = stability_sentences(read_stability((folder / stable).read_bytes())) if has_said else ()
    return Finer(fine if fine in outputs else "", within if within in outputs else "", tuple(said))

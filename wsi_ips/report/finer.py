"""What a slide's page says of finer maps and of stability, where `heatmap --refine` and `--stability` have made them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from wsi_ips.files import is_regular
from wsi_ips.refined import read_stability
from wsi_ips.report.stability import stability_sentences

__all__ = ["Finer", "read_finer"]


class Finer(NamedTuple):
    """Files are named relative to the slide's folder."""

    fine: tuple[str, ...] = ()  # pictures of the refined attention, one a task
    within: tuple[str, ...] = ()  # strips of maps within the top tiles, likewise
    stability: tuple[str, ...] = ()  # sentences


def read_finer(slide_id: str, outputs: Collection[str], folder: Path) -> Finer:
    """Find what has been made for a slide.

    Args:
        slide_id: its name.
        outputs: names of its files, from its record.
        folder: where they lie.
    """
    fine, within = (
        tuple(sorted((n for n in outputs if n.startswith(f"{slide_id}.{stem}.") and n.endswith(".png")), key=len))
        for stem in ("attention.fine", "top_tiles.cam")
    )
    stable = f"{slide_id}.stability.json"
    has_said = stable in outputs and is_regular(folder / stable)
    said = stability_sentences(read_stability((folder / stable).read_bytes())) if has_said else ()
    return Finer(fine, within, tuple(said))

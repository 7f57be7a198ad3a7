"""Where the time of a run went, stage by stage, and what to do about it.

Stages of the thread that encodes add up to its time; those of reader threads run beside, and so does what was made
ready of a slide while another was encoded. What limits is the longest stage of the encoding thread, or, when that
waits for pixels, the longest of the readers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from wsi_ips.stages import STAGES

__all__ = ["RunProfile"]

_BESIDE = ("read", "decode", "resize", "copy")  # of reader threads
_WAITS = 0.15  # share of the pass that the encoder waits, above which the readers limit
_ADVICE = {
    "open": "opening limits: slides are opened on a slow disk or network, or are many and small; more workers (--workers) would help",
    "mask": "finding tissue limits; more workers (--workers) would help",
    "select": "selecting limits: the model's head is large beside its encoder; more cores would help",
    "write": "drawing limits; fewer maps (--formats) or more workers (--workers) would help",
}


class RunProfile:
    """Adds up the records of a run's slides; mutable.

    Args:
        device: that the encoder runs on.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._seconds: Counter[str] = Counter()
        self._ahead: Counter[str] = Counter()  # of these, while another slide was encoded
        self._total = 0.0
        self._n_tiles = self._n_slides = 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in a slide that was done; records without times are left out."""
        stages = record.get("stages")
        if stages and not record.get("kept"):
            self._seconds.update(stages)
            self._ahead.update(record.get("stages_ahead", {}))
            self._total += float(record["seconds"]["total"])
            self._n_tiles += int(record["cells"].get("n_tiles") or 0)
            self._n_slides += 1

    def text(self) -> str:
        """Lay the table out, and the sentence below it."""
        if not self._n_slides:
            return "profile: no slide was done in this start"
        own = self._own()
        lines = [f"{'stage':<8}{'seconds':>10}{'share':>9}{'ms/tile':>10}"]
        for stage in (*STAGES, "other"):
            seconds = self._seconds[stage] if stage != "other" else own["other"]
            is_own = stage not in _BESIDE
            share = f"{100 * own[stage] / max(1e-9, self._total):.1f} %" if is_own else "beside"
            note = f"  {self._ahead[stage]:.1f} s of it beside" if self._ahead[stage] >= 0.05 else ""
            lines.append(f"{stage:<8}{seconds:>10.1f}{share:>9}{1000 * seconds / max(1, self._n_tiles):>10.2f}{note}")
        lines.append(f"{self._n_slides} slides, {self._n_tiles} tiles, {self._total:.1f} s of workers; `beside`: in other threads")
        return "\n".join([*lines, self.sentence()])

    def sentence(self) -> str:
        """Name what limits, and what to do about it."""
        own = self._own()
        in_pass = own["idle"] + own["encode"] + own["select"]
        waits = own["idle"] / max(1e-9, in_pass)
        longest = max((s for s in own if s not in ("idle", "other")), key=lambda s: own[s])
        if waits >= _WAITS and own["idle"] + own["encode"] >= own[longest]:
            return _readers_limit({s: self._seconds[s] for s in _BESIDE}, waits)
        if longest == "encode":
            on_gpu = "a smaller encoder, or more GPUs," if self._device.startswith("cuda") else "a GPU, or the extra fast,"
            return f"encoding limits: readers kept ahead (idle {100 * waits:.0f} % of the pass); {on_gpu} would help"
        return _ADVICE[longest]

    def _own(self) -> dict[str, float]:
        """Seconds by stage of the thread that encodes."""
        own = {s: max(0.0, self._seconds[s] - self._ahead[s]) for s in STAGES if s not in _BESIDE}
        return own | {"other": max(0.0, self._total - sum(own.values()))}


def _readers_limit(beside: Mapping[str, float], waits: float) -> str:
    said = f"the encoder waited {100 * waits:.0f} % of the pass"
    if not beside["read"] + beside["decode"]:  # a reader that does not count
        return f"reading limits: {said}; more readers (--readers) or cores would help"
    longest = max(beside, key=lambda s: beside[s])
    if longest == "read":
        return f"reading limits: {said} for bytes of the file; more readers (--readers), or slides on a nearer disk, would help"
    names = {"decode": "decoding", "resize": "resizing", "copy": "copying"}
    return f"{names[longest]} limits: {said}; more readers (--readers) or cores would help"

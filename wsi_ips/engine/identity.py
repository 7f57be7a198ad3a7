"""What a slide's result depends on, files by content: equal identities need not be done again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from wsi_ips.slide.metadata import STRICT_METHOD, fingerprint, modified_ns

__all__ = ["Identity", "identify"]


class Identity(NamedTuple):
    """Of one slide, as it stands in its record."""

    facts: dict[str, Any]  # hashes of model, settings, row; "file", "slide", "mask" by content; "mtime_ns"
    slide: dict[str, Any] | None  # the slide's fingerprint; None where it cannot be read
    known_as: dict[str, Any] | None  # to the embedding cache; None: it takes the fingerprint itself


def identify(payload: Mapping[str, Any], record: Mapping[str, Any] | None, *, strict: bool, takes_tiles: bool) -> Identity:
    """Look at a slide's files.

    A record that was made by all bytes is compared by all bytes, whatever this start asks for; one made by samples is
    not enough for a start that asks for all. Beside samples counts when the file was last written to.

    Args:
        payload: slide_path, features_path, mask_path, identity (see `row_identity`).
        record: of an earlier start.
        strict: take all bytes instead of samples.
        takes_tiles: the model takes slides, not files of features.
    """
    before = (record or {}).get("identity") or {}
    kept_by = before.get("file" if takes_tiles else "slide") or {}
    by_all = strict or kept_by.get("method") == STRICT_METHOD
    slide = _content_hash(payload["slide_path"], by_all)
    facts: dict[str, Any] = dict(payload["identity"])
    known_as = slide if by_all == strict else None
    if takes_tiles:
        facts["file"] = slide
        if slide and not by_all:
            facts["mtime_ns"] = modified_ns(payload["slide_path"])
            if kept_by == slide and before.get("mtime_ns") not in (None, facts["mtime_ns"]):
                # written to since its record: what samples do not see may be new, and so are its embeddings
                known_as = slide | {"mtime_ns": facts["mtime_ns"]}
    else:
        facts["file"], facts["slide"] = _content_hash(payload["features_path"], strict=True), slide
    if payload["mask_path"]:
        facts["mask"] = _content_hash(payload["mask_path"], strict)
    return Identity(facts, slide, known_as)


def _content_hash(path: str | None, strict: bool) -> dict[str, Any] | None:
    """Fingerprint of a file; None without one, or where it cannot be read, which opening it then explains."""
    try:
        return fingerprint(path, strict) if path else None
    except OSError:
        return None

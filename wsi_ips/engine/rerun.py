"""What would differ if a run were made again now: installation, machine, model, settings, manifest, slides.

What run.json names is looked at, and only at regular files on this machine: it may come from somebody else.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from wsi_ips.config import ModelSettings, ReadSettings, load_settings, result_hash
from wsi_ips.engine.auditfolder import printed
from wsi_ips.engine.provenance import describe_run, differences_between, made_with
from wsi_ips.errors import ConfigError, ManifestError, ModelError
from wsi_ips.manifest import is_uri, load_manifest
from wsi_ips.model.bundle_config import WEIGHTS, bundle_hash, read_bundle_config
from wsi_ips.results import sha256_file
from wsi_ips.slide.metadata import STRICT_METHOD, fingerprint, modified_ns

__all__ = ["Difference", "rerun_differences"]

_MOST_MANIFEST = 256 << 20  # bytes
_NOT_OF_THE_RUN = ("engine", "device")  # chosen anew by each start


class Difference(NamedTuple):
    """Something that is not as the run found it."""

    subject: str  # software, model, settings, manifest, slides
    name: str
    then: str
    now: str


def rerun_differences(
    facts: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], *, strict: bool = False
) -> list[Difference]:
    """Compare what a run was made from and by with what is here now.

    Args:
        facts: of run.json.
        records: of the slides that have a sound one.
        strict: read slides whole that are recorded by all their bytes.
    """
    now = made_with(describe_run())
    environment = facts.get("environment")
    then = made_with(environment if isinstance(environment, Mapping) else {})
    found = [Difference("software", *d) for d in differences_between(then, now)]
    found += _mixtures(then, records)
    return [*found, *_model(facts["model"]), *_settings(facts), *_manifest(facts), *_slides(facts, records, strict)]


def _mixtures(then: Mapping[str, str], records: Mapping[str, Mapping[str, Any]]) -> Iterator[Difference]:
    """Slides that another start, with other versions, has made."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for record in records.values():
        made = {k: v for k, v in record.get("made_with", {}).items() if k not in _NOT_OF_THE_RUN}
        counts.update(differences_between(then, made) if made else ())
    for (name, last, of_slide), n in counts.items():
        yield Difference("mixture", f"{name} of {n} slides", of_slide, f"{last} at the last start")


def _model(said: Mapping[str, Any]) -> Iterator[Difference]:
    path, then = str(said.get("path", "")), str(said.get("model_hash", ""))
    if not _is_looked_at(path):
        yield Difference("model", path, then[:12], "not looked at")
        return
    try:
        config = read_bundle_config(path)
        weights = Path(path, WEIGHTS)
        is_whole = weights.is_file() and sha256_file(weights) == config["weights"]["sha256"]
    except (ModelError, OSError, ValueError):
        yield Difference("model", path, then[:12], "no bundle there")
        return
    now = bundle_hash(config)
    if now != then:
        yield Difference("model", path, then[:12], now[:12])
    elif not is_whole:
        yield Difference("model", path, then[:12], f"{WEIGHTS} is missing or damaged")


def _settings(facts: Mapping[str, Any]) -> Iterator[Difference]:
    then = str(facts["model"].get("settings_hash", ""))
    try:
        settings = load_settings(ModelSettings, facts["model"]["model_settings"])
        now = result_hash(settings, load_settings(ReadSettings, facts["options"]["read"]))
    except (ConfigError, KeyError, TypeError, ValueError, RecursionError):
        now = "not known to this version"
    if now != then:
        yield Difference("settings", "settings_hash", then, now)


def _manifest(facts: Mapping[str, Any]) -> Iterator[Difference]:
    said = facts.get("manifest")
    if not isinstance(said, Mapping) or not isinstance(said.get("options"), Mapping) or not said["options"]:
        return  # a single slide, or a run of an earlier version
    path = str(said.get("path", ""))
    try:
        is_fit = _is_looked_at(path) and stat.S_ISREG(os.stat(path).st_mode) and os.stat(path).st_size <= _MOST_MANIFEST
        if is_fit and sha256_file(Path(path)) == said.get("sha256"):
            return
        options = {k: said["options"].get(k) for k in ("label_columns", "slide_root", "ext", "features")}
        records = load_manifest(path, **options, allow_missing=True, check_files=False).records if is_fit else None
    except FileNotFoundError:
        yield Difference("manifest", path, f"{len(facts['slides'])} rows", "is not there")
        return
    except (ManifestError, ConfigError, OSError, TypeError, ValueError, AttributeError):
        records = None
    if records is None:
        yield Difference("manifest", path, f"{len(facts['slides'])} rows", "cannot be read as it was")
        return
    rows = {k: v.get("row_hash") for k, v in facts["slides"].items() if isinstance(v, Mapping)}
    now = {r.slide_id: r.content_hash for r in records}
    for what, ids in (("rows changed", [i for i in now if i in rows and rows[i] != now[i]]),
                      ("rows added", [i for i in now if i not in rows]), ("rows gone", [i for i in rows if i not in now])):  # fmt: skip
        if ids:
            some = ", ".join(ids[:5]) + (", .." if len(ids) > 5 else "")
            yield Difference("manifest", what, "", f"{len(ids)}: {some}")


def _slides(facts: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], strict: bool) -> Iterator[Difference]:
    """Files of the slides that have a record: the slide itself, its features, its mask."""
    n_unread = 0
    for slide_id, said in facts["slides"].items():
        identity = records.get(slide_id, {}).get("identity") or {}
        by_features = "slide" in identity
        files = (("path", "slide" if by_features else "file", "slide"), ("features_path", "file" if by_features else "", "features"),
                 ("mask_path", "mask", "mask"))  # fmt: skip
        for place, key, subject in files:
            known, path = identity.get(key), said.get(place) if isinstance(said, Mapping) else None
            if not isinstance(known, Mapping) or not isinstance(path, str) or not path:
                continue
            if not _is_looked_at(path):
                n_unread += 1
                continue
            mtime_ns = identity.get("mtime_ns") if subject == "slide" else None
            if now := _file_now(path, known, mtime_ns, strict):
                yield Difference(subject, slide_id, f"{printed(known.get('size'))} bytes, {printed(known.get('sha256'))[:12]}", now)
    if n_unread:
        yield Difference("slide", f"{n_unread} files", "", "not looked at: they lie at network addresses")


def _file_now(path: str, known: Mapping[str, Any], mtime_ns: object, strict: bool) -> str:
    """Say how a file differs from what was read; "" when they do not, as far as was looked."""
    by_all = known.get("method") == STRICT_METHOD
    main = Path(path.removeprefix("file://"))
    try:
        about = os.stat(main)
        if not (stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode)) or (stat.S_ISREG(about.st_mode) and not about.st_size):
            return "is empty, or no file"
        found = fingerprint(main, strict=by_all and strict)
    except FileNotFoundError:
        return "is not there"
    except (OSError, ValueError):
        return "cannot be read"
    if found["size"] != known.get("size"):
        return f"{found['size']} bytes"
    if found["method"] != known.get("method"):
        return ""  # recorded by all bytes: --strict reads them
    if found["sha256"] != known.get("sha256"):
        return f"other content, {found['sha256'][:12]}"
    if isinstance(mtime_ns, int) and mtime_ns != modified_ns(main):
        return "same size and samples, written to since (--strict at classify would know all bytes)"
    return ""


def _is_looked_at(path: str) -> bool:
    """Tell whether a path is one of this machine; a network address would be asked for by looking."""
    return bool(path) and "\0" not in path and not (is_uri(path) and not path.startswith("file://")) and not path.startswith(("\\\\", "//"))

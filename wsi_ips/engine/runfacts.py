"""What `run.json` says of a run: model, options, manifest, slides, installation and machine, times and warnings.

The rows of the manifest stand in it whole, so that the run's tables can be laid out again, and checked, without the
manifest. It is one of the timed files, and with log.jsonl the only one that holds paths.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import wsi_ips
from wsi_ips.engine.provenance import command_line, describe_run, differences_between, utc_now
from wsi_ips.engine.runtables import row_identity
from wsi_ips.errors import ConfigError
from wsi_ips.manifest import Manifest, SlideRecord
from wsi_ips.results import SCHEMA_VERSION
from wsi_ips.runfolder import RunFolder

__all__ = ["check_mixture", "recorded_manifest", "run_facts"]

_OF_THE_MACHINE = ("python", "system", "cpu_flags", "gpus", "code", "device")  # differences that are told, not refused


def run_facts(
    manifest: Manifest, model: str, options: Any, info: Mapping[str, Any], before: Mapping[str, Any]
) -> dict[str, Any]:
    """Gather what run.json holds when the run begins.

    Args:
        manifest: the slides.
        model: folder of the bundle.
        options: of classify, a dataclass.
        info: what a worker says of the model and of itself.
        before: run.json of an earlier start; {} at the first.
    """
    started = utc_now()
    settings = asdict(options) if is_dataclass(options) and not isinstance(options, type) else dict(options)
    settings |= {k: v.model_dump() for k in ("read", "tile") if (v := settings.get(k)) is not None}
    environment = describe_run() | {k: info[k] for k in ("device", "batch", "worker_memory_bytes", "libraries", "deterministic", "gpu") if k in info}
    return {
        "schema_version": SCHEMA_VERSION,
        "command": "classify",
        "wsi_ips_version": wsi_ips.__version__,
        "command_line": command_line(),
        "started": started,
        "first_started": before.get("first_started", started),
        "model": {"path": os.path.abspath(model), **{k: info[k] for k in ("model_hash", "settings_hash", "model_settings", "learned_from", "takes_tiles")},
                  "shows_patients": bool(info.get("shows_patients"))},
        "options": settings,
        "engine": info["engine"],  # which `auto` keeps to when the run is started again
        "manifest": {
            "path": os.path.abspath(manifest.path) if manifest.options else str(manifest.path), "sha256": manifest.sha256, "options": dict(manifest.options),
            "slide_ids": [r.slide_id for r in manifest.records],
            "columns": list(dict.fromkeys(c for r in manifest.records for c in (*r.labels, *r.carried))),
        },
        "slides": {r.slide_id: _slide_facts(r) for r in manifest.records},
        "environment": environment,
        "warnings": [f"{note.code}: {note.message}" for note in manifest.notes],
    }


def _slide_facts(r: SlideRecord) -> dict[str, Any]:
    always = {"path": r.slide_path, "mpp": r.mpp, "mask_path": r.mask_path, "patient_id": r.patient_id,
              "features_path": r.features_path, "row_hash": r.content_hash}  # fmt: skip
    some = {"cells": {**r.labels, **r.carried}, "stated": r.stated}
    return always | {k: v for k, v in some.items() if v} | ({"excluded": r.exclude_reason} if r.is_excluded else {})


def recorded_manifest(facts: Mapping[str, Any]) -> Manifest:
    """Make the manifest of a run again from its run.json, as far as the tables need it.

    Raises:
        ConfigError: run.json does not hold the rows.
    """
    try:
        said, slides = facts["manifest"], facts["slides"]
        records = tuple(_recorded(i, slides[i], said["columns"]) for i in said["slide_ids"])
        return Manifest(records, Path(said["path"]), (), str(said["sha256"]), options=dict(said["options"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"run.json does not hold the manifest's rows ({type(error).__name__}: {error})") from error


def _recorded(slide_id: str, facts: Mapping[str, Any], columns: Sequence[str]) -> SlideRecord:
    cells = facts.get("cells", {})
    return SlideRecord(
        slide_id=str(slide_id), slide_path=str(facts["path"]), patient_id=str(facts["patient_id"]), mpp=facts["mpp"],
        mask_path=facts["mask_path"], features_path=facts["features_path"], is_excluded="excluded" in facts,
        exclude_reason=str(facts.get("excluded", "")), stated={str(k): str(v) for k, v in facts.get("stated", {}).items()},
        carried={str(c): str(cells[c]) for c in columns if c in cells},
    )  # fmt: skip


def check_mixture(
    run: RunFolder, todo: Sequence[SlideRecord], info: Mapping[str, Any], *, is_allowed: bool
) -> list[str]:
    """Look whether finished slides of a run were made with other versions or on another kind of machine.

    Returns:
        Sentences for a person: what differs and is let pass.

    Raises:
        ConfigError: versions differ, and that is not allowed.
    """
    found: dict[tuple[str, str, str], int] = {}
    for r in todo:
        record = run.read_record(r.slide_id) or {}
        before, identity = record.get("made_with"), record.get("identity") or {}
        if not isinstance(before, dict) or any(identity.get(k) != v for k, v in row_identity(r, info).items()):
            continue  # an older record, or one that is done again anyway
        for difference in differences_between(before, info["made_with"]):
            found[difference] = found.get(difference, 0) + 1
    said = [f"{n} finished slides were made with {name} {then}, now it is {now}" for (name, then, now), n in found.items()]
    refused = [text for text, (name, _, _) in zip(said, found, strict=True) if name not in _OF_THE_MACHINE]
    if refused and not is_allowed:
        raise ConfigError(
            f"{run.path}: {'; '.join(refused[:4])}{'; ..' if len(refused) > 4 else ''}. One table would mix both: use another --out, "
            "install what made them, or accept it by --allow-mixed"
        )
    return said

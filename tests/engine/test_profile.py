"""Where the time went: stages add up, and the one that limits is named."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi_ips.config import ReadSettings
from wsi_ips.engine.passtools import PassTools
from wsi_ips.engine.predict import PredictJob, label_slide
from wsi_ips.engine.profile import RunProfile
from wsi_ips.model.bundle import Bundle, load_bundle
from wsi_ips.slide.arrayslide import ArraySlide
from wsi_ips.slide.faultyslide import Fault, FaultySlide
from wsi_ips.stages import STAGES


def _record(n_tiles: int = 1000, ahead: dict[str, float] | None = None, total: float | None = None, **stages: float) -> dict[str, Any]:
    beside = ("read", "decode", "resize", "copy")
    own = sum(v for k, v in stages.items() if k not in beside) - sum((ahead or {}).values())
    return {"stages": stages, "stages_ahead": ahead or {}, "seconds": {"total": total or own}, "cells": {"n_tiles": str(n_tiles)}}


@pytest.mark.parametrize(
    ("record", "device", "said"),
    [
        (_record(idle=0.1, encode=9.8, select=0.1, decode=0.5), "cpu", "encoding limits: readers kept ahead (idle 1 % of the pass)"),
        (_record(idle=0.1, encode=9.8, select=0.1, decode=0.5), "cuda:0", "or more GPUs"),
        (_record(idle=4.3, encode=5.6, select=0.1, decode=8.0), "cpu", "decoding limits: the encoder waited 43 % of the pass; more readers"),
        (_record(idle=4.3, encode=5.6, select=0.1, decode=1.0, read=7.0), "cpu", "reading limits: the encoder waited 43 % of the pass"),
        (_record(idle=4.3, encode=5.6, select=0.1), "cpu", "reading limits"),
        (_record(idle=0.1, encode=1.0, write=5.0), "cpu", "drawing limits; fewer maps"),
        (_record(mask=5.0, encode=1.0), "cpu", "finding tissue limits"),
        (_record(ahead={"mask": 5.0}, mask=5.0, encode=1.0), "cpu", "encoding limits"),  # beside the slide before
    ],
)
def test_the_limiting_stage_is_named_with_a_cure(record: dict[str, Any], device: str, said: str) -> None:
    """One sentence, by what the encoding thread spent its time on."""
    profile = RunProfile(device)
    profile.add(record)
    assert said in profile.sentence()
    assert profile.text().splitlines()[-1] == profile.sentence()


def test_the_table_sums_slides_and_tells_own_from_beside() -> None:
    """Seconds, share and ms per tile of each stage; kept slides and what ran beside are no part of the whole."""
    profile = RunProfile("cpu")
    for kept in (False, False, True):
        record = _record(500, {"mask": 1.0}, total=5.0, mask=2.0, idle=0.0, encode=3.0, decode=1.0)
        profile.add(record | ({"kept": True} if kept else {}))
    rows = {line.split()[0]: line.split() for line in profile.text().splitlines()}
    assert rows["encode"] == ["encode", "6.0", "60.0", "%", "6.00"]
    assert rows["decode"] == ["decode", "2.0", "beside", "2.00"]
    assert rows["mask"][:5] == ["mask", "4.0", "20.0", "%", "4.00"]
    assert rows["mask"][5:] == ["2.0", "s", "of", "it", "beside"]
    assert rows["other"][1] == "2.0"
    assert RunProfile("cpu").text() == "profile: no slide was done in this start"


@pytest.mark.parametrize("slow", ["reader", "encoder"])
def test_a_made_bottleneck_is_found(slow: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader, or an encoder, that dawdles is what limits; the stages of the pass add up to its time."""
    bundle: Bundle = load_bundle(tiny_bundle)
    pixels = np.full((1100, 1700, 3), 243, np.uint8)
    pixels[90:990, 120:1560] = (205, 120, 180)
    slide = FaultySlide(ArraySlide(pixels, mpp=1.0), [Fault("stall", seconds=0.004)] if slow == "reader" else [])
    if slow == "encoder":
        real = type(bundle.classifier).embed_tiles
        monkeypatch.setattr(type(bundle.classifier), "embed_tiles", lambda *given: time.sleep(0.1) or real(*given))
    tools, started = PassTools(), time.monotonic()
    n_tiles = label_slide(slide, bundle, PredictJob("s", read=ReadSettings(n_readers=1)), None, None, tools).prediction.n_tiles
    total = time.monotonic() - started
    stages = tools.clock.seconds()
    own = sum(stages[s] for s in STAGES if s not in ("read", "decode", "resize", "copy"))
    assert 0.8 * total < own <= total
    profile = RunProfile("cpu")
    profile.add({"stages": stages, "seconds": {"total": total}, "cells": {"n_tiles": str(n_tiles)}})
    assert profile.sentence().startswith("encoding limits" if slow == "encoder" else "reading limits")


def test_the_command_prints_it_and_only_timed_files_hold_it(cohort: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """`--profile` counts what the readers do, too; seconds stand in state.json, log.jsonl and timings.csv."""
    words = ["classify", cohort, "--model", tiny_bundle, "--out", tmp_path / "o", "--limit", "2", "--cache", "off", "--profile", "--formats", "none"]
    command = [sys.executable, "-m", "wsi_ips.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert "ms/tile" in done.stdout
    assert "reading with" in done.stderr
    assert " limits" in done.stdout.splitlines()[-1]
    states = [json.loads(p.read_text()) for p in (tmp_path / "o" / "slides").glob("*/state.json")]
    assert all(s["stages"]["encode"] > 0 for s in states)
    assert all(s["stages"]["decode"] + s["stages"]["copy"] > 0 for s in states)
    assert all(s["pace"]["batch"] == s["pace"]["chunk"] == 16 for s in states)
    lines = [json.loads(line) for line in (tmp_path / "o" / "log.jsonl").read_text().splitlines()]
    assert all(line["stages"]["write"] > 0 for line in lines if line["event"] == "slide")
    assert [line["readers"] for line in lines if line["event"] == "pace"]
    with (tmp_path / "o" / "timings.csv").open(newline="") as f:
        assert all(float(row["stage_encode_s"]) > 0 for row in csv.DictReader(f))

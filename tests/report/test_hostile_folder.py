"""A run folder that somebody else can write into: nothing outside it is written, removed, read or waited for."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from wsi_ips.engine.runpages import rewrite_pages, slide_links
from wsi_ips.errors import ConfigError, StoppedError
from wsi_ips.report.finer import read_finer
from wsi_ips.results import ledger_bytes, read_ledger
from wsi_ips.runfolder import RunFolder
from wsi_ips.slide.arrayslide import ArraySlide

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, pipes and sparse files of Unix")

RECORD = {"status": "ok", "reason": "", "message": "", "cells": {}, "identity": {"row": "r"}}
SECRET = b"what lies outside the run folder"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file of the person who runs the command."""
    path = tmp_path / "home" / "thesis.txt"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of one finished slide."""
    made = RunFolder(tmp_path / "shared" / "run")
    made.write_slide("a", {"a.ledger.h5": b"numbers", "a.thumbnail.jpg": b"picture"}, RECORD)
    return made


def _state(run: RunFolder) -> Path:
    return run.slide_folder("a") / "state.json"


def _claim(run: RunFolder, **changes: Any) -> None:
    found = json.loads(_state(run).read_text())
    _state(run).write_text(json.dumps(found | changes))


@pytest.mark.parametrize("form", ["up", "absolute"])
def test_a_record_that_names_files_elsewhere_has_none_of_them_removed(run: RunFolder, outside: Path, form: str) -> None:
    """`outputs` decides what is removed when a slide is done again; a name that leads out makes the record no record."""
    name = str(outside) if form == "absolute" else os.path.relpath(outside, run.slide_folder("a"))
    _claim(run, outputs={name: "0" * 64})
    assert run.read_record("a") is None
    run.write_slide("a", {"a.ledger.h5": b"new"}, RECORD)
    assert outside.read_bytes() == SECRET
    _claim(run, outputs={"a.ledger.h5": "0" * 64, name: "0" * 64}, added=[name])
    with pytest.raises(ConfigError, match="has no record"):
        run.add_files("a", {"b.png": b"x"}, drop=[name])
    assert outside.read_bytes() == SECRET


@pytest.mark.parametrize("bad", [b"[" * 200_000, b"5", b'{"schema_version": 1, "outputs": []}', b'{"schema_version": 1, "outputs": {"a\\u0000b": ""}}', b""])
def test_a_record_of_any_form_is_no_record(run: RunFolder, bad: bytes) -> None:
    """Deep, of another kind, with a NUL, empty: the slide is done again."""
    _state(run).write_bytes(bad)
    assert run.read_record("a") is None
    assert not run.is_finished("a", {"row": "r"})


def test_large_files_and_pipes_are_not_read(run: RunFolder) -> None:
    """A terabyte of zeros and a pipe under the names of JSON files are neither read nor waited for."""
    for make in (lambda p: os.truncate(p, 1 << 40), lambda p: (p.unlink(), os.mkfifo(p))):
        make(_state(run))
        assert run.read_record("a") is None
    (run.path / "run.json").touch()
    for make in (lambda p: os.truncate(p, 1 << 40), lambda p: (p.unlink(), os.mkfifo(p)), lambda p: (p.unlink(), p.symlink_to("/dev/zero"))):
        make(run.path / "run.json")
        with pytest.raises(ConfigError, match="not a run folder"):
            run.read_json("run.json")


def test_an_output_that_is_a_link_or_a_pipe_is_not_whole(run: RunFolder, outside: Path) -> None:
    """A link to the right bytes is no output of the run; a pipe is not waited for."""
    assert run.is_finished("a", {"row": "r"})
    ledger = run.slide_folder("a") / "a.ledger.h5"
    outside.write_bytes(ledger.read_bytes())
    ledger.unlink()
    ledger.symlink_to(outside)
    assert not run.is_finished("a", {"row": "r"})
    ledger.unlink()
    os.mkfifo(ledger)
    assert not run.is_finished("a", {"row": "r"})


@pytest.mark.parametrize("place", ["slides/a", "slides", "slides/a/a.top_tiles"])
def test_a_folder_that_is_a_link_is_not_written_through(run: RunFolder, outside: Path, place: str) -> None:
    """The run stops and names it; what lies behind stays."""
    folder = run.path / place
    if folder.exists():
        folder.rename(folder.with_name("away"))
    folder.symlink_to(outside.parent)
    with pytest.raises(StoppedError, match="is a link"):
        run.write_slide("a", {"a.ledger.h5": b"new", "a.top_tiles/01.png": b"new"}, RECORD)
    assert os.listdir(outside.parent) == ["thesis.txt"]
    if place != "slides/a/a.top_tiles":
        assert run.read_record("a") is None


def test_planted_temporary_names_are_not_written_through(run: RunFolder, outside: Path) -> None:
    """Links under the names that this process will write are removed, the log's is refused, and their ends stay."""
    names = (f"slides/a/.a.ledger.h5.{os.getpid()}.tmp", f"slides/a/.state.json.{os.getpid()}.tmp", f".probe.{os.getpid()}", f".lock.{os.getpid()}",
             f".run.json.{os.getpid()}.tmp")  # fmt: skip
    for name in names:
        (run.path / name).symlink_to(outside)
    run.write_slide("a", {"a.ledger.h5": b"new"}, RECORD)
    run.write_json("run.json", {"schema_version": 1})
    with run.start():
        pass
    (run.path / "log.jsonl").symlink_to(outside)
    with pytest.raises(StoppedError, match=r"log\.jsonl"):
        run.log("start", note="$(rm -rf ~)")
    assert outside.read_bytes() == SECRET
    assert run.is_finished("a", {"row": "r"})


@pytest.mark.parametrize("lock", ["5", "[[1]]", "[" * 100_000, '{"host": null, "pid": {}, "started": []}', '{"pid": 1e400, "started": 0}'])
def test_a_lock_of_any_form_is_that_of_a_dead_process(run: RunFolder, lock: str) -> None:
    """A lock that names nobody does not stop a run."""
    (run.path / ".lock").write_text(lock)
    run.write_json("run.json", {"schema_version": 1})
    with run.start():
        assert json.loads((run.path / ".lock").read_text())["pid"] == os.getpid()


def test_a_lock_cannot_write_to_the_terminal(run: RunFolder) -> None:
    """What a lock says of its holder is quoted and short."""
    (run.path / ".lock").write_text(json.dumps({"host": "\x1b]0;owned\x07" + "x" * 999, "pid": 1}))
    with pytest.raises(ConfigError, match="another run holds") as caught, run.start():
        pass
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_ids_that_are_paths_name_no_slide(run: RunFolder) -> None:
    """Whatever run.json or a table calls a slide, its folder lies in the run."""
    for name in ("../a", "/etc", "a/b", "", "..", "a\0b"):
        with pytest.raises(ConfigError, match="cannot name a slide's folder"):
            run.slide_folder(name)


def test_a_small_picture_that_is_a_link_does_not_enter_the_page(run: RunFolder, outside: Path) -> None:
    """index.html carries thumbnails; behind a link may lie anything of the person who draws the page."""
    thumbnail = run.slide_folder("a") / "a.thumbnail.jpg"
    assert slide_links(run, "a", run.read_record("a")).thumbnail == b"picture"
    thumbnail.unlink()
    thumbnail.symlink_to(outside)
    assert slide_links(run, "a", run.read_record("a")).thumbnail is None
    stable = run.slide_folder("a") / "a.stability.json"
    stable.symlink_to(outside)
    assert read_finer("a", ["a.stability.json"], run.slide_folder("a")).stability == ()


@pytest.fixture
def ledger(make_slide: Callable[..., ArraySlide], make_prediction: Callable[..., Any], tmp_path: Path) -> Path:
    """A sound ledger."""
    path = tmp_path / "x.ledger.h5"
    path.write_bytes(ledger_bytes(make_prediction(make_slide(301, 203), m=3)))
    return path


def _external(f: h5py.File, outside: Path) -> None:
    shape = f["tissue"].shape
    del f["tissue"]
    f.create_dataset("tissue", shape, np.float32, external=[(str(outside), 0, h5py.h5f.UNLIMITED)])


def _linked(f: h5py.File, outside: Path) -> None:
    with h5py.File(outside.with_suffix(".h5"), "w") as other:
        other["x"] = f["tissue"][()]
    del f["tissue"]
    f["tissue"] = h5py.ExternalLink(str(outside.with_suffix(".h5")), "x")


def _virtual(f: h5py.File, outside: Path) -> None:
    layout = h5py.VirtualLayout(f["tissue"].shape, np.float32)
    layout[:] = h5py.VirtualSource(str(outside), "x", f["tissue"].shape)
    del f["tissue"]
    f.create_virtual_dataset("tissue", layout)


def _endless(f: h5py.File, outside: Path) -> None:
    del f["tissue_mask"]
    f.create_dataset("tissue_mask", (1 << 22, 1 << 22), np.uint8, chunks=(1 << 10, 1 << 10), compression="gzip")


def _short(f: h5py.File, outside: Path) -> None:
    attention = f["attention"][1:]
    del f["attention"]
    f["attention"] = attention


def _deep(f: h5py.File, outside: Path) -> None:
    f.attrs["meta"] = "[" * 60_000


def _other(f: h5py.File, outside: Path) -> None:
    f.attrs["meta"] = json.dumps(json.loads(f.attrs["meta"]) | {"extent0": 5, "surprise": 1})


def _words(f: h5py.File, outside: Path) -> None:
    n = len(f["tissue"])
    del f["tissue"]
    f["tissue"] = ["x"] * n


@pytest.mark.parametrize("change", [_external, _linked, _virtual, _endless, _short, _deep, _other, _words])
def test_a_ledger_that_leads_elsewhere_or_cannot_be_one_is_one_sentence(
    ledger: Path, outside: Path, change: Callable[[h5py.File, Path], None]
) -> None:
    """Numbers in other files are never drawn, sizes are looked at before memory is taken, shapes belong together."""
    assert read_ledger(ledger).n_tiles > 0
    with h5py.File(ledger, "r+") as f:
        change(f, outside)
    with pytest.raises(ConfigError, match="not a complete ledger") as caught:
        read_ledger(ledger)
    assert "\n" not in str(caught.value).split("(", 1)[0]


def test_a_ledger_behind_a_link_or_a_pipe_is_not_read(ledger: Path) -> None:
    """Neither is waited for."""
    link, pipe = ledger.with_name("link.h5"), ledger.with_name("pipe.h5")
    link.symlink_to(ledger)
    os.mkfifo(pipe)
    for path in (link, pipe):
        with pytest.raises(ConfigError, match="is no ledger"):
            read_ledger(path)


def test_pages_are_laid_out_whatever_the_table_calls_a_slide(run: RunFolder, outside: Path) -> None:
    """A table that names a path gets its row in the page, and neither a link nor a file there."""
    with (run.path / "predictions.csv").open("w", newline="") as f:
        csv.writer(f).writerows([["slide_id", "status", "reason", "message"], ["../../../home", "ok", "", ""]])
    settings = {"tasks": [{"classes": ["a", "b"]}], "tile": {"size_px": 32, "mpp": 1.0}, "encoder": {"name": "x"}}
    rewrite_pages(run, {"model": {"model_hash": "m", "settings_hash": "s", "model_settings": settings}})
    page = (run.path / "index.html").read_text()
    assert "../../../home</td>" in page
    assert "<a " not in page
    assert os.listdir(outside.parent) == ["thesis.txt"]

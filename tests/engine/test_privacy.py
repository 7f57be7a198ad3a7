"""What a run writes of names, paths and metadata, what its pages make of hostile tables, and whom it calls: nobody."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import h5py
import numpy as np
import pytest
import tifffile
import torch

from wsi_ips.config import ModelSettings
from wsi_ips.engine import classify as classify_module
from wsi_ips.engine import draw, worker
from wsi_ips.engine.classify import ClassifyOptions, classify
from wsi_ips.engine.drawoptions import DrawOptions
from wsi_ips.engine.executors import Job, Outcome, Progress
from wsi_ips.engine.worker import SlideWorker
from wsi_ips.manifest import load_manifest
from wsi_ips.model.bundle import save_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.encoder import build_encoder
from wsi_ips.training.evaluate import EvaluateOptions, evaluate_run

SECRET = "Mustermann"
EVIL = ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(2)>", "</script><svg/onload=alert(3)>", "javascript:alert(4)",
        "\u202egnp.exe\u2066", "=cmd|'/c calc'!A1", "&lt;b&gt;&#0;"]  # fmt: skip
CLASSES = (EVIL[0], EVIL[1])
JOURNALS = {"run.json", "log.jsonl"}
TABLES = {"predictions.csv", "patients.csv", "cases.csv"}


class _Here:
    """Stands for the executor: one worker, in this process."""

    peak_bytes, memory_bytes = 0, 1 << 30

    def __init__(self, setup: dict[str, Any]) -> None:
        self._worker = SlideWorker(**setup)

    def ready(self) -> dict[str, Any]:
        return dict(self._worker.info)

    def run(self, jobs: Sequence[Job], on_progress: Callable[[Progress], None]) -> Iterator[Outcome]:
        for job in jobs:
            yield Outcome(job.id, self._worker.work(job.payload, lambda stage, done, total: None))

    def close(self) -> None:
        pass


class Made(NamedTuple):
    """A run over a slide full of names, from a manifest full of markup."""

    run: Path
    pages: dict[str, str]  # HTML by name
    calls: list[str]  # attempts to reach a network
    left: list[str]  # temporary files that were left


def _slide(path: Path) -> None:
    """Write a slide as a scanner does: name of a patient in the description, a label image behind the pyramid."""
    rng = np.random.default_rng(0)
    pixels = np.full((700, 900, 3), 243, np.uint8)
    cv2.ellipse(pixels, (450, 350), (300, 220), 0, 0, 360, (200, 110, 170), -1)
    pixels = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
    about = f"Aperio Image Library v12\r\n900x700 |AppMag = 10|MPP = 1.0|Filename = {SECRET}^Erika|User = Dr. {SECRET}|Date = 01/02/50"
    with tifffile.TiffWriter(path) as f:
        f.write(pixels, tile=(256, 256), photometric="rgb", description=about, metadata=None, software=SECRET, compression="deflate")
        label = np.zeros((100, 80, 3), np.uint8)
        label[:] = (255, 0, 255)
        f.write(label, photometric="rgb", description=f"Aperio\r\nlabel 80x100 {SECRET}", metadata=None, subfiletype=1)


def _manifest(folder: Path, name: str, rows: int) -> Path:
    with (folder / name).open("w", newline="", encoding="utf-8") as f:
        table = csv.writer(f)
        table.writerow(["slide_path", "slide_id", "patient_id", "label", "note", "site", EVIL[1], "age <b>"])
        for i in range(rows):
            table.writerow([f"{SECRET}/{i}.tif", f"s@ +{i}", f"{EVIL[i % 2]} {SECRET}", CLASSES[i % 2], EVIL[2], EVIL[3], EVIL[4], EVIL[5]])
    return folder / name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_settings: ModelSettings) -> Made:
    """Classify, draw again and evaluate with no network, in a private folder for temporary files."""
    folder = tmp_path_factory.mktemp("privacy")
    (folder / SECRET).mkdir()
    for i in range(2):
        _slide(folder / SECRET / f"{i}.tif")
    (folder / SECRET / "2.tif").write_text(f"no slide of {SECRET}")
    settings = tiny_settings.replace(tasks=[{"name": "label", "classes": list(CLASSES)}])
    torch.manual_seed(1)
    save_bundle(folder / "m", IPSClassifier(build_encoder(settings.encoder, 32), settings), settings, card="#")
    manifest = load_manifest(_manifest(folder, "m.csv", 3), label_columns=["label"])
    calls: list[str] = []

    def refuse(*arguments: object, **_: object) -> None:
        calls.append(str(arguments[-1]))
        raise OSError("no network in here")

    with pytest.MonkeyPatch.context() as patch:
        (folder / "tmp").mkdir()
        patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        patch.setattr(worker, "make_deterministic", lambda threads: None)  # which would last
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        options = ClassifyOptions(device="cpu", quiet=True, cache="off", engine="torch", look_ahead=False, evidence="bag")
        setup = {"model": str(folder / "m"), "out": str(folder / "run"), "read": options.read.model_dump(), "tile": None,
                 "allow_mismatch": False, "engine": {"name": "torch", "or_torch": False},
                 "machine": {"threads": 1, "device": "cpu", "look_ahead": False}, "cache": {"place": "off", "strict": False}}  # fmt: skip
        patch.setattr(classify_module, "_local_executor", lambda *_: _Here(setup))
        classify(manifest, str(folder / "m"), folder / "run", options)
        drawer = draw.DrawWorker(str(folder / "run"), DrawOptions(("png", "geojson", "asap", "ome")), "none", None)
        facts = json.loads((folder / "run" / "run.json").read_text())
        for job in draw.slide_jobs(draw.RunFolder(folder / "run"), facts, ()):
            assert drawer.work(job.payload, None) == {"message": ""}
        draw.rewrite_pages(draw.RunFolder(folder / "run"), facts)
        evaluate_run(folder / "run", folder / "m.csv", EvaluateOptions(split="all", n_resamples=100))
    pages = {p.relative_to(folder / "run").as_posix(): p.read_text(encoding="utf-8") for p in sorted((folder / "run").rglob("*.html"))}
    return Made(folder / "run", pages, calls, os.listdir(folder / "tmp"))


class _Browser(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "formaction", "data", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_fault_124_no_page_of_a_run_acts_on_what_a_table_says(made: Made) -> None:
    """Index, gallery, slide pages and evaluation, from a manifest and a model full of markup: only our own scripts, links within the run."""
    assert {"index.html", "gallery.html", "evaluation/index.html", "slides/s@ +0/s@ +0.report.html"} <= made.pages.keys()
    for name, page in made.pages.items():
        seen = _Browser()
        seen.feed(page)
        assert seen.handlers == [], name
        assert seen.tags.count("script") <= 1, name
        assert "svg" not in seen.tags, name
        assert "object" not in seen.tags, name
        assert "default-src 'none'" in page, name
        for link in seen.links:
            assert link.startswith(("./", "../", "data:image/", "data:,")), (name, link[:60])
            assert not re.match(r"(?i)\s*javascript:", link)
        assert EVIL[0] not in page, name
        assert EVIL[0] in seen.text or "slides/s@ +2" in name, name  # shown as it is


def _contents(path: Path) -> bytes:
    """All that a file holds, unpacked where it is packed."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".h5":
        with h5py.File(path, "r") as f:
            return data + repr([dict(f.attrs), *(dict(f[name].attrs) for name in f)]).encode()
    return data


def test_fault_129_and_130_and_131_names_in_files_folders_and_tables_reach_no_output(made: Made) -> None:
    """Metadata, label image, folder and patient: in no picture, page, map or ledger; paths in the journals, patients in the tables alone."""
    for path in made.run.rglob("*"):
        if path.is_file() and path.name not in JOURNALS | TABLES:
            assert SECRET.encode() not in _contents(path), path.name
    table = (made.run / "predictions.csv").read_text()
    assert f"{SECRET}/" not in table
    assert SECRET in table  # its column patient_id
    assert "no slide" not in table
    assert stat.S_IMODE((made.run / "log.jsonl").stat().st_mode) == 0o600


def test_fault_129_the_label_image_is_in_no_picture(made: Made) -> None:
    """Its colour, which no map and no tissue has, stands in no picture of the run."""
    pictures = [p for p in made.run.rglob("*") if p.suffix in (".png", ".jpg", ".tif")]
    assert len(pictures) > 20
    for path in pictures:
        levels = [page.asarray() for page in tifffile.TiffFile(path).pages] if path.suffix == ".tif" else [cv2.imread(str(path))[..., ::-1]]
        for pixels in (p for p in levels if p.ndim == 3 and p.dtype == np.uint8):
            rgb = pixels[..., :3].astype(int)
            assert not ((rgb[..., 0] > 235) & (rgb[..., 1] < 20) & (rgb[..., 2] > 235)).any(), path.name


def test_fault_132_messages_of_failed_slides_name_no_path_and_quote_no_content(made: Made) -> None:
    """The row of a file that is no slide has a code and a sentence, with the slide's id beside it."""
    with (made.run / "predictions.csv").open(newline="") as f:
        row = {r["slide_id"]: r for r in csv.DictReader(f)}["s@ +2"]
    assert (row["status"], row["reason"]) == ("failed", "E_NOT_A_SLIDE")
    assert str(made.run.parent) not in row["message"]
    assert SECRET not in row["message"]


def test_fault_133_pictures_carry_pixels_alone(made: Made) -> None:
    """PNG without profile, EXIF or foreign text; JPEG without EXIF, profile or comment."""
    n = 0
    for path in made.run.rglob("*"):
        data = path.read_bytes() if path.suffix in (".png", ".jpg") else b""
        if path.suffix == ".png":
            at, kinds = 8, []
            while at < len(data):
                length = int.from_bytes(data[at : at + 4], "big")
                kinds.append(data[at + 4 : at + 8])
                at += 12 + length
            assert set(kinds) <= {b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"pHYs", b"tEXt"}, path.name
            # the text is what we say of how the picture was made, see docs/provenance.md
            assert kinds.count(b"tEXt") == data.count(b'tEXtDescription\x00{"made_by"') <= 1, path.name
            n += 1
        elif path.suffix == ".jpg":
            at = 2
            while data[at + 1] != 0xDA:
                assert data[at + 1] in (0xE0, 0xDB, 0xC0, 0xC2, 0xC4, 0xDD), path.name  # JFIF and tables
                at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            n += 1
    assert n > 20


def test_fault_135_nothing_is_left_in_folders_for_temporary_files(made: Made) -> None:
    """Features that are put by, trained models, whatever a run needs for a while: gone, and never under a name others can read."""
    assert made.left == []


def test_fault_136_a_run_calls_nobody(made: Made) -> None:
    """Classify, heatmap and evaluate with local files: not one connection was tried, not one name looked up."""
    assert made.calls == []


def test_fault_137_the_hash_of_a_slide_is_in_no_table_and_the_documents_say_what_it_tells(made: Made) -> None:
    """It names the file to whoever has it; where it stands, and that it does, is said in docs/provenance.md."""
    digest = json.loads((made.run / "slides" / "s@ +0" / "state.json").read_text())["identity"]["file"]["sha256"]
    assert len(digest) == 64
    for path in made.run.rglob("*"):
        if path.suffix in (".csv",):
            assert digest[:12].encode() not in _contents(path), path.name
    text = (Path(__file__).resolve().parents[2] / "docs" / "provenance.md").read_text(encoding="utf-8")
    assert "hash of a slide's file names that file" in text

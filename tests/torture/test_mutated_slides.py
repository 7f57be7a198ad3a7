"""500 spoilt slides in one batch of the real command: it ends by itself, says of each what became of it, and makes up no px.

See `mutants` for how they are spoilt, `truth` for how an invented px would be found.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from mutants import MPP, SIDE_PX, Sound, mutant_names, sound_slides, spoil
from truth import ForeignTrouble, compare
from watching import WatchedCommand

from wsi_ips.config import load_settings
from wsi_ips.engine.predict import PredictJob, predict_slide
from wsi_ips.model.bundle import Bundle, load_bundle, save_bundle
from wsi_ips.model.classifier import IPSClassifier
from wsi_ips.model.encoder import build_encoder
from wsi_ips.recipe import FinetuneSettings
from wsi_ips.results import SlidePrediction, read_ledger
from wsi_ips.slide.reader import open_slide
from wsi_ips.synthetic import SlideRecipe, paint_slide

pytestmark = [pytest.mark.torture, pytest.mark.timeout(1500)]

SIZE = (700, 500)  # width, height of the sound slides, px
MAX_WORKER_BYTES = 2 << 30
GOOD = ("ok", "ok_with_warnings")


class Batch(NamedTuple):
    """What the command left behind."""

    rows: dict[str, dict[str, str]]
    folder: Path
    slides: dict[str, Path]
    bundle: Bundle
    exit_status: int | None
    peaks: list[int]  # bytes, largest first
    left: list[int]  # processes
    strangers: list[str]  # files where none belong


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Sound]:
    """The slides before they are spoilt: of real tissue where there is some, else painted."""
    try:
        real = request.getfixturevalue("shared_data") / "slides" / "aperio" / "CMU-1-Small-Region.svs"
        with open_slide(real) as slide:
            pixels = slide.read_region(600, 900, 0, *SIZE).pixels
    except pytest.skip.Exception:
        pixels = paint_slide(SlideRecipe(3)).pixels[700:1200, 900:1600]
    return sound_slides(np.ascontiguousarray(pixels), tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory, sound: dict[str, Sound], tiny: dict[str, Any]) -> Batch:
    """One run over 500 spoilt slides and the four sound ones."""
    root = tmp_path_factory.mktemp("batch")
    contents = {f"{base}-whole-000": (one.data, one.ending) for base, one in sound.items()} | {name: spoil(name, sound) for name in mutant_names()}
    slides = {}
    for name, (data, ending) in contents.items():  # a folder each, for files of one DICOM series find each other
        slides[name] = root / "slides" / name / f"{name}{ending}"
        slides[name].parent.mkdir(parents=True)
        slides[name].write_bytes(data)
    (root / "m.csv").write_text("slide_path,slide_id\n" + "".join(f"{path},{name}\n" for name, path in slides.items()))
    model, private = _model(root / "model", tiny), {name: root / name.lower() for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "cwd")}
    for folder in private.values():
        folder.mkdir()
    before = _listed(root)
    words = ["classify", root / "m.csv", "--model", model, "--out", root / "run", "--cache", "off", "--device", "cpu", "--workers", "2",
             "--engine", "module", "--stall-seconds", "60"]  # fmt: skip
    with WatchedCommand(words, private.pop("cwd"), tmp_path_factory.mktemp("log") / "log.txt", {k: str(v) for k, v in private.items()}) as command:
        status = command.wait(1300)
        left = command.left_after(5.0)
        peaks = sorted(command.peaks.values(), reverse=True)
    with (root / "run" / "predictions.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [r["slide_id"] for r in rows] == list(slides)  # each once, in the order of the manifest
    after = _listed(root)
    strangers = [name for name in sorted(after.keys() | before.keys()) if before.get(name) != after.get(name) and not name.startswith("run/")]
    strangers = [name for name in strangers if not name.startswith("xdg_cache_home/matplotlib/")]  # its list of the system's fonts
    return Batch({r["slide_id"]: r for r in rows}, root / "run", slides, load_bundle(model), status, peaks, left, strangers)


def _model(folder: Path, tiny: dict[str, Any]) -> Path:
    """An untrained bundle whose tiles are 64 px at half the slides' resolution, and whose logits tell one tile from another."""
    import torch

    encoder = tiny["model"]["encoder"] | {"kwargs": {"channels": [16, 16, 16, 16], "norm_layer": "groupnorm"}}
    settings = load_settings(FinetuneSettings, {"model": tiny["model"] | {"encoder": encoder, "tile": {"size_px": 64, "mpp": 2.0 * MPP}}}).model
    torch.manual_seed(2)
    save_bundle(folder, IPSClassifier(build_encoder(settings.encoder, 64), settings), settings, card="# tiny")
    return folder


def _listed(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(root)): (p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}


def test_the_batch_ends_and_says_what_became_of_each(batch: Batch) -> None:
    """Every slide has a status, and a reason where it needs one; the sound ones are sound; the exit status tells."""
    assert batch.exit_status == 1
    assert len(batch.rows) == 504
    for name, row in batch.rows.items():
        assert row["status"] in (*GOOD, "no_tissue", "failed"), name
        assert (row["status"] == "ok") == (not row["reason"]) == (not row["message"]), (name, row)
        assert all(code.startswith("E_") for code in row["reason"].split(";") if code), name
        assert "Traceback" not in row["message"], name
        state = json.loads((batch.folder / "slides" / name / "state.json").read_text())
        assert state["status"] == row["status"], name
    for base in ("svs", "tif", "lossless", "dicom"):
        assert batch.rows[f"{base}-whole-000"]["status"] == "ok"
    _print_table(batch)


def test_nothing_is_left_behind(batch: Batch) -> None:
    """No process, no file outside of the run folder, no process that grew beyond bounds."""
    assert batch.left == []
    assert batch.strangers == []
    assert batch.peaks[0] < MAX_WORKER_BYTES
    mib = ", ".join(f"{n >> 20}" for n in batch.peaks[:6])
    print(f"\npeak resident memory of {len(batch.peaks)} processes, the largest, MiB: {mib}")


def test_no_px_is_made_up(batch: Batch, sound: dict[str, Sound]) -> None:
    """P6: tiles that went into a label hold what the file holds, by a second opinion; unspoilt places what they always held."""
    px: Counter[str] = Counter()
    tiles: Counter[str] = Counter()
    made_up, unfollowed = [], []
    for name, row in batch.rows.items():
        if row["status"] not in GOOD:
            continue
        path, ledger = batch.slides[name], read_ledger(batch.folder / "slides" / name / f"{name}.ledger.h5")
        with open_slide(path) as slide:
            again = predict_slide(slide, batch.bundle, PredictJob(name))
            try:
                found = compare(path, slide)
            except ForeignTrouble as error:
                unfollowed.append(f"{name} ({error})")
                found = []
        # the pass in the worker and this one saw the same px: what is true of these is true of those
        assert np.array_equal(ledger.coords, again.coords), name
        assert np.allclose(ledger.logits, again.logits, atol=1e-4), name
        base, data = name.split("-")[0], path.read_bytes()
        px.update(f"{base}: {word}" for word in found)
        made_up += [f"{name}: stored tile {i} is {word}" for i, word in enumerate(found) if word == "made up"]
        assert "missing" not in found or int(row["n_missing"]), name
        whole = read_ledger(batch.folder / "slides" / f"{base}-whole-000" / f"{base}-whole-000.ledger.h5")
        tiles += _against_whole(ledger, whole, sound[base], data, name)
    print(f"\nstored tiles of level 0: {dict(sorted(px.items()))}\ntiles of labels: {dict(tiles)}\nno second opinion: {unfollowed}")
    logits = read_ledger(batch.folder / "slides" / "svs-whole-000" / "svs-whole-000.ledger.h5").logits.reshape(-1, 2)
    assert len(np.unique(logits.round(4), axis=0)) > len(logits) / 2  # other px would have shown
    assert made_up == []
    assert tiles["as before"] > 1000
    assert len(unfollowed) <= 5


def _same_tiles(data: bytes, sound: Sound) -> list[bool]:
    """Tell of each stored tile whether its bytes are still the sound slide's."""
    return [data[at : at + n] == sound.data[at : at + n] for at, n in sound.tiles]


def _against_whole(ledger: SlidePrediction, whole: SlidePrediction, sound: Sound, data: bytes, name: str) -> Counter[str]:
    """Hold tiles whose bytes were not touched against those of the sound slide; count them and the others."""
    kept, same = data[: len(sound.data)].ljust(len(sound.data), b"\0"), _same_tiles(data, sound)
    outside, spoilt = bytearray(sound.data), bytearray(kept)
    for at, n in sound.tiles:
        outside[at : at + n] = spoilt[at : at + n] = bytes(n)
    if outside != spoilt or ledger.extent0 != whole.extent0:
        return Counter({"under a changed header": len(ledger.coords)})
    before = {tuple(xy): logits for xy, logits in zip(whole.coords.tolist(), whole.logits, strict=True)}
    across, side0, found = -(-SIZE[0] // SIDE_PX), round(ledger.extent0[0]), Counter[str]()
    for (x0, y0), logits in zip(ledger.coords.tolist(), ledger.logits, strict=True):
        columns, rows = (range(at // SIDE_PX, (min(size, at + side0) - 1) // SIDE_PX + 1) for at, size in ((x0, SIZE[0]), (y0, SIZE[1])))
        if all(same[row * across + column] for row in rows for column in columns):
            assert (x0, y0) not in before or np.allclose(before[x0, y0], logits, atol=1e-4), (name, x0, y0)
            found["as before" if (x0, y0) in before else "new, from the same bytes"] += 1
        else:
            found["of changed bytes"] += 1
    return found


def _print_table(batch: Batch) -> None:
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for name, row in batch.rows.items():
        base, kind, _ = name.split("-")
        what = "junk of 14 formats" if kind == "junk" else f"{base} {kind}"
        by_kind[what][f"{row['status']} {row['reason']}".strip()] += 1
    print()
    for what, counts in by_kind.items():
        print(f"{what:<20} {', '.join(f'{n} {end}' for end, n in counts.most_common())}")

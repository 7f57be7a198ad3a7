"""Finer maps added to a finished run: the command, its files, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wsi_ips.engine.refining import RefineRunOptions, refine_run
from wsi_ips.errors import ConfigError
from wsi_ips.refined import read_fine
from wsi_ips.results import read_ledger, sha256_file
from wsi_ips.runfolder import RunFolder


def _cli(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsi_ips.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def run(cohort: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], Path]:
    """A finished run of two slides, and the command that made it."""
    out = tmp_path_factory.mktemp("refining") / "run"
    words = ["classify", cohort, "--model", tiny_bundle, "--out", out, "--limit", "2"]
    done = _cli(*words)
    assert done.returncode == 0, done.stderr
    return words, out


@pytest.mark.slow
def test_files_are_added_and_everything_else_stays(
    run: tuple[list[object], Path], tiny_bundle: Path
) -> None:
    """Fine map, cams, numbers and stability lie beside the old files; the slide still counts as finished."""
    words, out = run
    slide_id = sorted(p.name for p in (out / "slides").iterdir())[0]
    folder = out / "slides" / slide_id
    before = {p: sha256_file(p) for p in folder.rglob("*") if p.is_file() and p.name != "state.json"}
    options = ["--only", slide_id, "--model", tiny_bundle, "--device", "cpu"]
    done = _cli("heatmap", out, "--refine", "--stride", "0.25", "--stability", "stain", *options)
    assert done.returncode == 0, done.stderr
    assert "1 slides done, 0 could not be" in done.stdout
    assert "Shifting the grid by half a tile" in done.stderr
    changed = {p.name for p, digest in before.items() if sha256_file(p) != digest}
    assert changed == {"slide_001.report.html"}  # which shows them
    p = read_ledger(folder / f"{slide_id}.ledger.h5")
    fine = read_fine(folder / f"{slide_id}.fine.h5")
    assert (fine.stride, fine.n_tiles, fine.model_hash) == (0.25, p.n_tiles, p.model_hash)
    assert np.array_equal(fine.attention[fine.run_row >= 0], p.attention[fine.run_row[fine.run_row >= 0]])
    outputs = json.loads((folder / "state.json").read_text())["outputs"]
    added = {f"{slide_id}.attention.fine.png", f"{slide_id}.fine.h5", f"{slide_id}.stability.json",
             f"{slide_id}.top_tiles/01_row{p.selected[0]}.cam.png", f"{slide_id}.top_tiles.cam.png"}  # fmt: skip
    assert added | {str(path.relative_to(folder).as_posix()) for path in before} <= set(outputs)
    said = json.loads((folder / f"{slide_id}.stability.json").read_text())
    assert [c["kind"] for c in said["changes"]] == ["shift", "stain"]
    assert f"{slide_id}: ok (kept)" in _cli(*words).stderr
    page = (folder / f"{slide_id}.report.html").read_text()
    assert "Shifting the grid by half a tile" in page
    assert f"{slide_id}.attention.fine.png" in page
    first = (folder / f"{slide_id}.fine.h5").read_bytes()
    assert refine_run(out, tiny_bundle, RefineRunOptions(stride=0.25, only=(slide_id,), quiet=True)) == (1, 0)
    assert (folder / f"{slide_id}.fine.h5").read_bytes() == first
    assert json.loads((folder / "state.json").read_text())["outputs"] == outputs


@pytest.mark.slow
def test_cams_of_an_earlier_time_go(run: tuple[list[object], Path], tiny_bundle: Path) -> None:
    """What a new start no longer makes is not left behind as if it were its own; other files stay."""
    _, out = run
    slide_id = sorted(p.name for p in (out / "slides").iterdir())[1]
    folder = RunFolder(out)
    old = f"{slide_id}.top_tiles/99_row7.cam.png"
    folder.add_files(slide_id, {old: b"old", "note.txt": b"mine"})
    assert refine_run(out, tiny_bundle, RefineRunOptions(only=(slide_id,), quiet=True)) == (1, 0)
    outputs = (folder.read_record(slide_id) or {})["outputs"]
    assert old not in outputs
    assert not (folder.slide_folder(slide_id) / old).exists()
    assert "note.txt" in outputs


@pytest.mark.slow
def test_what_does_not_belong_is_refused(run: tuple[list[object], Path], tiny_bundle: Path, tmp_path: Path) -> None:
    """Exit 2 and a sentence: no model, another model, an unknown slide or word."""
    import torch

    from wsi_ips.model.bundle import load_bundle, save_bundle

    _, out = run
    bundle = load_bundle(tiny_bundle)
    with torch.no_grad():
        bundle.classifier.attention.query += 1.0
    save_bundle(tmp_path / "other", bundle.classifier, bundle.settings, card="# other")
    for more, said in (
        (["--refine"], "name the run's bundle by --model"),
        (["--refine", "--model", tmp_path / "other"], "give the run's own bundle"),
        (["--stability", "turn", "--model", tiny_bundle], "expected shift or stain"),
        (["--refine", "--model", tiny_bundle, "--only", "zz"], "no slide zz"),
    ):
        done = _cli("heatmap", out, *more)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert said in " ".join(done.stderr.split()), done.stderr
    with pytest.raises(ConfigError, match="--stride 2"):
        refine_run(out, tiny_bundle, RefineRunOptions(stride=2.0))


@pytest.mark.slow
def test_a_slide_that_was_replaced_is_its_own_line(
    run: tuple[list[object], Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    """Another file under the same name is told by its content, and nothing of the run changes."""
    _, out = run
    facts = json.loads((out / "run.json").read_text())["slides"]
    a, b = sorted(p.name for p in (out / "slides").iterdir())
    (tmp_path / Path(facts[a]["path"]).name).write_bytes(Path(facts[b]["path"]).read_bytes())
    before = (out / "slides" / a / "state.json").read_bytes()
    done = _cli("heatmap", out, "--refine", "--model", tiny_bundle, "--only", a, "--slide-root", tmp_path)
    assert done.returncode == 1
    assert "is not the file that was classified; classify it again" in done.stderr
    assert (out / "slides" / a / "state.json").read_bytes() == before
